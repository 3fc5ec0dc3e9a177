"""`pyskip bench`: how fast policies are on this machine."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import ui
from .options import kernels_option

if TYPE_CHECKING:
    from pyskip.bench import Arm, BenchResult

__all__ = ["bench"]

COUNT = click.IntRange(1, 1 << 20)
COLUMNS = (
    "test", "arm", "tokens/s", "speed-up", "bytes allow", "efficiency", "skipped", "attention", "tokens/J", "peak RSS"
)  # fmt: skip


class Counts(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """0,1024,4096"""

    name = "N,N..."

    def __init__(self, low: int) -> None:
        self.low = low

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            counts = tuple(int(item) for item in str(value).split(","))
        except ValueError:
            counts = ()
        if not counts or not all(self.low <= n <= 1 << 20 for n in counts):
            self.fail(f"{value!r} is not a list of numbers from {self.low} to {1 << 20}.", param, ctx)
        return counts


@click.command()
@click.argument("model")
@click.option(
    "--skip", "skips", multiple=True, metavar="SPEC",
    help="A policy beside off; may be given several times. [default: the profile's recommended point]",
)  # fmt: skip
@click.option("-p", "n_prompt", type=Counts(0), default="0", show_default=True, help="Prompt tokens; 0: none.")
@click.option("-n", "n_gen", type=Counts(0), default="64", show_default=True, help="Generated tokens; 0: none.")
@click.option("-d", "depth", type=Counts(0), default="0", show_default=True, help="Tokens in the context before.")
@click.option("--text", metavar="FILE", help="UTF-8 text to decode. [default: what the model writes itself]")
@click.option("-r", "--rounds", type=COUNT, default=10, show_default=True, metavar="N", help="Samples of each arm.")
@click.option(
    "-t", "n_threads", type=click.IntRange(1, 512), metavar="N", help="Threads. [default: the physical cores]"
)
@click.option("--profile", metavar="FILE", help="Profile to use instead of the one beside the model.")
@kernels_option
@click.option("--peer", metavar="PYTHON", help="A Python with llama-cpp-python but without pyskip, as one more arm.")
@click.option(
    "--format", "form", type=click.Choice(["md", "csv", "json", "jsonl"]), default="md", show_default=True,
    help="Of the table on stdout.",
)  # fmt: skip
def bench(
    model: str,
    skips: tuple[str, ...],
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    depth: tuple[int, ...],
    text: str | None,
    rounds: int,
    n_threads: int | None,
    profile: str | None,
    kernels: str,
    peer: str | None,
    form: str,
) -> None:
    """Measure decode rates of MODEL under policies, in turns, against off.

    MODEL is a path, demo, a name of pyskip list, or hf:REPO[:FILE]. speed-up is the median of the rounds'
    own ratios; what the bytes allow is a machine whose time is all reading weights; efficiency is the one over the
    other.
    """
    from pyskip.bench import Test, run_bench
    from pyskip.evaluation.tasks import read_text
    from pyskip.policy import parse_skip
    from pyskip.system import physical_cores

    for spec in skips:
        parse_skip(spec)
    content = None if text is None else read_text(text)
    path = ui.resolve(model)
    tests = [Test("pp", n, d) for d in depth for n in n_prompt if n]
    tests += [Test("tg", n, d) for d in depth for n in n_gen if n]
    if not tests:
        raise click.UsageError("Nothing to measure: give -p or -n above 0.", click.get_current_context())
    arms = _arms(path, skips, profile, kernels, peer)
    with ui.progress_line() as show:
        result = run_bench(
            path, arms, tests, rounds=rounds, n_threads=n_threads or physical_cores(), profile=profile,
            text=content, progress=lambda done, total: show(done, total, " samples"),
        )  # fmt: skip
    click.echo(FORMATS[form](result))


def _arms(path: Path, skips: tuple[str, ...], profile: str | None, kernels: str, peer: str | None) -> list[Arm]:
    from pyskip.bench import Arm
    from pyskip.models.gguf_info import inspect
    from pyskip.models.profile import find_profile

    if not skips and (profile is not None or find_profile(path, inspect(path).fingerprint) is not None):
        skips = ("profile",)
    specs = ["off", *(skip for skip in dict.fromkeys(skips) if skip != "off")]
    arms = [Arm(skip, skip, kernels=kernels) for skip in specs]
    return arms if peer is None else [*arms, Arm("llama-cpp-python", None, peer)]


def _markdown(result: BenchResult) -> str:
    lines = [
        f"{result.model}, {result.model_bytes / 2**20:.0f} MiB; {result.cpu}, {result.n_threads} threads, governor "
        f"{result.governor}; {result.rounds} rounds; {result.date}",
        *(f"{arm}: {build}" for arm, build in result.builds.items() if arm in ("off", "llama-cpp-python")),
        "",
    ]
    rows = [
        (
            row.test, row.arm, f"{row.avg_ts:.2f} ± {row.spread_ts:.2f}", f"{row.speedup:.3f}",
            _known(row.ideal_speedup, 3), _known(row.efficiency, 3), f"{row.skip_rate:.1%}",
            f"{row.attention_skip_rate:.1%}", _known(row.tokens_per_joule, 2), f"{row.peak_rss / 2**20:.0f} MiB",
        )
        for row in result.rows
    ]  # fmt: skip
    shown = [c != "attention" or any(row.attention_skip_rate for row in result.rows) for c in COLUMNS]
    for cells in (COLUMNS, ("---",) * len(COLUMNS), *rows):
        lines.append("| " + " | ".join(cell for cell, is_shown in zip(cells, shown, strict=True) if is_shown) + " |")
    return "\n".join(lines)


def _known(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _rows(result: BenchResult) -> list[dict[str, object]]:
    """Flat, each with what the whole run shares."""
    whole = {k: v for k, v in asdict(result).items() if k not in ("rows", "builds")}
    return [{**whole, "build": result.builds[row.arm], **asdict(row)} for row in result.rows]


def _csv(result: BenchResult) -> str:
    rows = _rows(result)
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        samples = row["samples_ts"]
        assert isinstance(samples, tuple)
        writer.writerow({**row, "samples_ts": " ".join(f"{s:.3f}" for s in samples)})
    return out.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[BenchResult], str]] = {
    "md": _markdown,
    "csv": _csv,
    "json": lambda result: json.dumps(asdict(result), indent=1),
    "jsonl": lambda result: "\n".join(map(json.dumps, _rows(result))),
}
