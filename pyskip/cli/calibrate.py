"""`pyskip calibrate`: make a model's profile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import ui

if TYPE_CHECKING:
    from pyskip.calibration.calibrate import Calibration, Gather, Settings
    from pyskip.calibration.depth import StaticSet

__all__ = ["calibrate"]


@click.command()
@click.argument("model")
@click.option(
    "--text",
    "text",
    multiple=True,
    metavar="FILE",
    help="UTF-8 text to calibrate on. [default: sampled from the model]",
)
@click.option(
    "--rank",
    type=click.IntRange(0, 1 << 17),
    metavar="R",
    help="Linear stand-ins, of this rank; 0: the mean. [default: gated ones if the block is activation(gate) * up, "
    "else full rank]",
)
@click.option("-o", "--output", metavar="FILE", help="The profile. [default: MODEL.skip.gguf, beside the model]")
@click.option(
    "--quantisation",
    type=click.Choice(["q2_k", "q3_k", "q4_k", "q4_0", "q4_1", "q8_0", "f16"]),
    help="Type of the stand-ins' weights. [default: q2_k if n_embd is a multiple of 256, else q4_0]",
)
@click.option(
    "--fit",
    "n_fit",
    type=click.IntRange(1, 1 << 20),
    metavar="N",
    help="Windows of 512 tokens to fit on; to distill, of the model's own text, beside all of --text. "
    "[default: 32; to distill, 160, or none beside --text]",
)
@click.option(
    "--minutes",
    type=click.FloatRange(1, 1e5),
    metavar="N",
    help="Let the model write as much text as about N minutes in all allow, instead of --fit.",
)
@click.option(
    "--curve",
    "n_curve",
    type=click.IntRange(1, 1 << 20),
    metavar="N",
    help="Windows to measure on. [default: 4, or one of each --text]",
)
@click.option(
    "--harm",
    "n_harm",
    type=click.IntRange(0, 1 << 20),
    default=12,
    show_default=True,
    metavar="N",
    help="Of those to fit on, windows that the harm is measured on; 0: gates predict the error alone.",
)
@click.option(
    "--attention",
    is_flag=True,
    help="Gates and stand-ins of attention, too, for profile:attn=R. Takes about as long again.",
)
@click.option(
    "--static",
    "n_static",
    type=click.IntRange(1, 1 << 13),
    metavar="N",
    help="Find the N sublayers that are missed least, for static:n=N, and write them into MODEL's profile, which is "
    "made first if there is none.",
)
@click.option(
    "--distill",
    type=click.FloatRange(1, 1e7),
    default=None,
    metavar="SECONDS",
    help="Train the stand-ins and gates end to end for so long, earlier runs counted in (needs pyskip[distill]).",
)
@click.option(
    "--state",
    metavar="FILE",
    help="Where --distill saves what it learns, and goes on from. [default: MODEL.distill.npz, beside the profile]",
)
@click.option(
    "--tokens",
    metavar="FILE",
    help="With --distill: write the text as tokens, to train on a machine with a GPU, and stop.",
)
@click.option(
    "--width",
    type=click.IntRange(32, 1 << 17),
    metavar="N",
    help="Neurons of a gated stand-in. [default: 1/2 of the FFN's in q2_k, 1/3 in q4_0, 1/7 to distill]",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    default=1,
    show_default=True,
    metavar="S",
    help="Seed of all that is drawn.",
)
@click.option(
    "-t", "n_threads", type=click.IntRange(1, 512), metavar="N", help="Threads. [default: the physical cores]"
)
@click.option(
    "--ray", "on_ray", is_flag=True, help="Gather the sums on a Ray cluster, workers of -t threads (pyskip[ray])."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of a table.")
def calibrate(
    model: str,
    text: tuple[str, ...],
    rank: int | None,
    output: str | None,
    quantisation: str | None,
    n_fit: int | None,
    minutes: float | None,
    n_curve: int | None,
    n_harm: int,
    attention: bool,
    n_static: int | None,
    distill: float | None,
    state: str | None,
    tokens: str | None,
    width: int | None,
    seed: int,
    n_threads: int | None,
    on_ray: bool,
    as_json: bool,
) -> None:
    """Make the profile of MODEL.

    MODEL is a path, demo, a name of pyskip list, or hf:REPO[:FILE]. Fits stand-ins and gates on text, measures
    what each skip rate costs, and writes it all to one file. The model's own text serves if none is given.
    """
    from pyskip.calibration.calibrate import Settings, write_tokens
    from pyskip.calibration.calibrate import calibrate as run
    from pyskip.models.gguf_info import inspect
    from pyskip.models.profile import find_profile

    if distill and attention:
        raise click.UsageError("--attention with --distill: found both, expected one: attention is fitted, not trained")
    if n_static and (distill or attention or on_ray):
        raise click.UsageError(
            "--static with --attention, --distill or --ray: found both, expected a profile that is made before: run "
            "pyskip calibrate without --static first"
        )
    if tokens and not distill:
        raise click.UsageError("--tokens without --distill: found none, expected the seconds to train: add --distill")
    if on_ray and distill:
        raise click.UsageError("--ray is for the closed form, --distill trains on one machine: leave one out.")
    settings = Settings(
        text=tuple(map(Path, text)),
        rank=rank,
        quantisation=quantisation.upper() if quantisation else None,
        n_fit=n_fit,
        minutes=minutes,
        n_curve=n_curve,
        n_harm=n_harm,
        attention=attention,
        seed=seed,
        distill=distill or 0.0,
        width=width,
        state=Path(state) if state else None,
        output=Path(output) if output else None,
    )
    path = ui.resolve(model)
    if tokens:
        n_tokens = ui.in_thread(lambda: write_tokens(path, settings, Path(tokens), n_threads))
        click.echo(f"{tokens}: {n_tokens} tokens")
        return
    if n_static and (found := find_profile(path, inspect(path).fingerprint)) is not None:
        _find_static(path, found.path, settings, n_static, n_threads, as_json)
        return
    with ui.stage_line() as show:
        if on_ray:
            made = _run_on_ray(model, lambda gather: run(path, settings, show, n_threads, gather), n_threads)
        else:
            made = ui.in_thread(lambda: run(path, settings, show, n_threads))
    if as_json and not n_static:
        document = asdict(made) | {"profile": str(made.profile)}
        click.echo(json.dumps(document))
    elif not as_json:
        _show(made)
    if n_static:
        _find_static(path, made.profile, settings, n_static, n_threads, as_json)


def _show(made: Calibration) -> None:
    click.echo(f"{made.profile}: {made.n_tokens} tokens, {made.seconds:.0f} s")
    if made.attention_curve:
        click.echo(" attn rate  perplexity / dense   KL (nats)")
    for p in made.attention_curve:
        click.echo(f"{p.rate:10.3f}  {p.ppl_ratio:8.4f} ± {p.ppl_ratio_se:.4f}  {p.kld_mean:10.4f}")
    click.echo("skip rate  perplexity / dense   KL (nats)  FFN bytes saved  ideal speed-up")
    for p in made.curve:
        mark = "  recommended" if p == made.recommended else ""
        click.echo(
            f"{p.rate:9.3f}  {p.ppl_ratio:8.4f} ± {p.ppl_ratio_se:.4f}  {p.kld_mean:10.4f}  {p.ffn_bytes_saved:15.3f}  "
            f"{p.ideal_speedup:13.2f}x{mark}"
        )


def _find_static(path: Path, profile: Path, settings: Settings, n: int, n_threads: int | None, as_json: bool) -> None:
    """Prints each set as soon as it is found, and writes those of one kind once they are complete: Ctrl-C leaves the
    kinds before it."""
    from pyskip.calibration.depth import static_sets, steps_of
    from pyskip.calibration.write import add_static
    from pyskip.models.profile import path_beside

    target = settings.output or path_beside(path)
    shows: list[Callable[[str, int, int, str], None]] = []
    sets = static_sets(path, profile, settings, n, lambda *told: shows[-1](*told), n_threads)
    found: list[StaticSet] = []
    while True:
        with ui.stage_line() as show:
            shows.append(show)
            one = ui.in_thread(lambda: next(sets, None))
        kind = [before for before in found if before.by == found[-1].by]
        if kind and (one is None or one.by != kind[0].by):
            add_static(profile, target, {kind[0].by: steps_of(kind)})
            profile = target
        if one is None:
            break
        if not found and not as_json:
            click.echo(f"{'by':6}  {'n':>3}  {'KL (nats)':>10}  perplexity / dense  skip")
        found.append(one)
        if not as_json:
            click.echo(f"{one.by:6}  {one.n:3}  {one.kld_mean:10.4f}  {one.ppl_ratio:18.4f}  {one.skip}")
    if as_json:
        columns = ("by", "n", "kld_mean", "ppl_ratio", "skip")
        document = [{name: getattr(one, name) for name in columns} for one in found]
        click.echo(json.dumps({"profile": str(target), "sets": document}))
    else:
        click.echo(f"{target}: static:n=1 to {n}, by=loss (the default), cosine or norm")


def _run_on_ray(model: str, run: Callable[[Gather], Calibration], n_threads: int | None) -> Calibration:
    from pyskip.ray.calibration import RayGather
    from pyskip.ray.cluster import connected
    from pyskip.system import physical_cores

    with connected() as ray:
        return run(RayGather(ray, model, n_threads or physical_cores()))
