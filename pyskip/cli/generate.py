"""`pyskip generate`: continue a prompt."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import asdict

import click

from . import ui
from .options import Options, common_options, load

__all__ = ["generate"]


@click.command()
@click.argument("model")
@click.option("-p", "--prompt", required=True, metavar="TEXT", help="Text to continue; - reads it from stdin.")
@common_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of text.")
def generate(model: str, prompt: str, options: Options, as_json: bool) -> int:
    """Continue a prompt with MODEL.

    MODEL is a path, demo, a name of pyskip list, or hf:REPO[:FILE]. The text goes to stdout, the rest to stderr.
    """
    try:
        raw = sys.stdin.buffer.read() if prompt == "-" else prompt.encode("utf-8")
        raw.decode("utf-8")
    except UnicodeError:
        raise click.BadParameter("the prompt is not valid UTF-8.", param_hint="-p") from None
    if not raw:
        raise click.BadParameter("the prompt is empty.", param_hint="-p")

    parts = options.parts()
    llm = load(model, options)
    from pyskip.runtime.generation import Generation

    if llm.engine.media is not None:
        raw = llm.engine.media.text_of(parts) + raw
    tokens = list(llm.tokenize(raw, add_bos=True, special=True))
    sampling = options.sampling({})
    generation = Generation(llm, tokens, max_tokens=options.n_predict, sampling=sampling, seed=options.seed)
    interrupted, is_terminal = False, sys.stdout.isatty()
    try:
        with closing(ui.stream(llm, generation)) as pieces:
            for piece in pieces:
                if not as_json:
                    click.echo(ui.printable(piece) if is_terminal else piece, nl=False)
                    sys.stdout.flush()
    except KeyboardInterrupt:
        interrupted = True
    answer = generation.answer()
    if as_json:
        skipped = {
            "spec": answer.skip.skip,
            "rate": answer.skip.rate,
            "per_layer": list(answer.skip.per_layer),
            "attention_rate": answer.skip.attention_rate,
            "attention_per_layer": list(answer.skip.attention_per_layer),
        }
        document = {"text": answer.text, "n_prompt": answer.n_prompt, "n_gen": answer.n_gen}
        rates = {"prompt_ts": answer.prompt_ts, "gen_ts": answer.gen_ts}
        pace = None if answer.pace is None else asdict(answer.pace)
        drafted = {"n_drafted": answer.n_drafted, "n_accepted": answer.n_accepted}
        click.echo(json.dumps({**document, **rates, **drafted, "skip": skipped, "pace": pace}))
    else:
        click.echo()
        ui.note(ui.answer_line(answer))
    return 130 if interrupted else 0
