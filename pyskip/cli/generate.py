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

N_SLOTS = 8  # requests of a file that are decoded at a time
N_ELSEWHERE = 64  # that are asked of a server that is there


@click.command()
@click.argument("model")
@click.option("-p", "--prompt", metavar="TEXT", help="Text to continue; - reads it from stdin.")
@click.option(
    "--input", "input_file", metavar="FILE", help="Answer the requests of a file instead, one a line, many at a time."
)
@click.option(
    "--output", "output_file", metavar="FILE", help="Where to, a line each; what is there is not asked for again."
)
@click.option(
    "--url",
    metavar="URL",
    help="Ask this server for them, such as one of serve --ray; its key is PYSKIP_API_KEY in the environment.",
)
@common_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of text.")
def generate(
    model: str,
    prompt: str | None,
    input_file: str | None,
    output_file: str | None,
    url: str | None,
    options: Options,
    as_json: bool,
) -> int:
    """Continue a prompt with MODEL, or answer a file of requests.

    MODEL is a path, demo, a name of pyskip list, or hf:REPO[:FILE]. The text goes to stdout, the rest to stderr.
    """
    if input_file is not None:
        if prompt is not None or output_file is None:
            raise click.UsageError("--input goes with --output, and not with -p.")
        return _answer_file(model, input_file, output_file, url, options)
    if prompt is None or output_file is not None or url is not None:
        raise click.UsageError("Give a prompt with -p, or requests with --input and --output.")
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


def _answer_file(model: str, input_file: str, output_file: str, url: str | None, options: Options) -> int:
    """By a server that is started for it, on as many requests at a time as it has slots; or by one that is there."""
    import os

    from pyskip.server.batch import answer_all, read_requests
    from pyskip.server.child import Child

    if options.files:
        raise click.UsageError("--image goes with -p: requests have their own.")
    requests = read_requests(input_file, options.request())
    with ui.progress_line() as show:

        def ask(address: str, n: int) -> int:
            key = os.environ.get("PYSKIP_API_KEY")
            return answer_all(
                address, requests, output_file, n, lambda done, total: show(done, total, " requests"), api_key=key
            )

        if url is not None:
            n_failed = ask(url, N_ELSEWHERE)
        else:
            more = ["--", "--parallel", str(N_SLOTS), *options.llama_server()]
            server = Child([model, "--grace", "0", *options.serve(), *more])
            try:
                n_failed = ask(server.url, 2 * N_SLOTS)
            finally:
                server.stop()
    if n_failed:
        ui.note(f"{n_failed} of {len(requests)} answers are errors: {output_file} says which")
    return 0
