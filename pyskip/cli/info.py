"""`pyskip info`: what a model is, and how much of it skipping can reach."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from . import ui

if TYPE_CHECKING:
    from pyskip.models.profile import Profile

__all__ = ["info"]

RATES = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the blocks that can be skipped


@click.command()
@click.argument("model")
@click.option(
    "-ngl",
    "n_elsewhere",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Layers elsewhere, as serve --rpc.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of a table.")
def info(model: str, n_elsewhere: int, as_json: bool) -> None:
    """Tell what MODEL is, and how much of it skipping can reach.

    MODEL is a path, demo, a name of pyskip list, or hf:REPO[:FILE]. Tells its shape, the share of its FFN weights, the
    layers that can skip, and its size against this machine's memory.
    """
    from pyskip.errors import PolicyError
    from pyskip.models.gguf_info import inspect
    from pyskip.models.profile import find_profile
    from pyskip.runtime.probe import skippable_sublayers
    from pyskip.system import available_memory, total_memory

    path = ui.resolve(model)
    gguf = inspect(path)
    reason = None
    try:
        skippable = ui.in_thread(lambda: skippable_sublayers(path))
        layers, attention = list(skippable.layers), list(skippable.attention)
    except PolicyError as error:
        layers, attention, reason = [], [], str(error)
    here = gguf.n_layer if n_elsewhere == 0 else max(gguf.n_layer + 1 - n_elsewhere, 0)  # the output counts as one
    remote = list(range(here, gguf.n_layer))
    if n_elsewhere:
        layers = [il for il in layers if il < here - 1]  # the last one hands the stream over
        attention = [il for il in attention if il < here]
        reason = reason or "none is left here"
    n_ctx = gguf.default_n_ctx
    memory = Memory(gguf.bytes, n_ctx, n_ctx * gguf.kv_bytes_per_token, total_memory(), available_memory())
    share = len(layers) / gguf.n_layer if gguf.n_layer else 0.0
    profile = find_profile(path, gguf.fingerprint)
    rows = {
        "architecture": gguf.architecture,
        "name": gguf.name,
        "n_layer": gguf.n_layer,
        "n_embd": gguf.n_embd,
        "n_ff": gguf.n_ff,
        "n_ctx_train": gguf.n_ctx_train,
        "n_params": gguf.n_params,
        "bytes": gguf.bytes,
        "ffn_bytes": gguf.ffn_bytes,
        "ffn_share": round(gguf.ffn_share, 4),
        "skippable_layers": layers,
        "skippable_attention": attention,
        "remote_layers": remote,
        "ideal_speedup": {str(rate): round(gguf.ideal_speedup(rate * share), 4) for rate in RATES},
        "memory": asdict(memory) | {"fits": memory.fits},
        "profile": _describe(profile) if profile else None,
    }
    if as_json:
        click.echo(json.dumps(rows))
        return
    rows["bytes"] = f"{gguf.bytes:,}"
    rows["ffn_bytes"] = f"{gguf.ffn_bytes:,} ({gguf.ffn_share:.0%} of the weights)"
    rows["n_params"] = f"{gguf.n_params:,}"
    rows["skippable_layers"] = _ranges(layers) if layers else f"none: {reason}"
    rows["skippable_attention"] = _ranges(attention) if attention else "none"
    rows["memory"] = str(memory)
    rows["remote_layers"] = f"{_ranges(remote)}, dense" if remote else "none"
    rows["profile"] = str(profile.path) if profile else "none"
    del rows["ffn_share"], rows["ideal_speedup"]
    click.echo(ui.plain(str(path)))
    _table(rows)
    if profile:
        click.echo("skip rate  perplexity / dense  ideal speed-up")
        for point in profile.curve:
            mark = "  recommended" if point == profile.recommended else ""
            click.echo(f"{point.rate:9.3f}  {point.ppl_ratio:18.3f}  {point.ideal_speedup:13.2f}x{mark}")
        if profile.attention_curve:
            click.echo("attn rate  perplexity / dense  ideal speed-up, before the cache grows")
        for point in profile.attention_curve:
            click.echo(f"{point.rate:9.3f}  {point.ppl_ratio:18.3f}  {point.ideal_speedup:13.2f}x")
        for by, steps in profile.static_sets.items():
            click.echo(f"{'static:n':>9}  perplexity / dense  sublayers, chosen by {by}")
            for n, step in enumerate(steps, start=1):
                place = f"{'attn=' if step.is_attention else ''}{step.il}"
                click.echo(f"{n:9}  {step.ppl_ratio:18.3f}  {'and ' if n > 1 else ''}{place}")
    elif layers:
        click.echo("skip rate  ideal speed-up, before stand-ins (pyskip calibrate tells what it costs)")
        for rate in RATES:
            click.echo(f"{rate:9.3f}  {gguf.ideal_speedup(rate * share):13.2f}x")


@dataclass(frozen=True)
class Memory:
    """What a model needs and what there is, in bytes."""

    weights: int
    n_ctx: int
    kv: int
    total: int | None
    available: int | None

    @property
    def fits(self) -> bool:
        """Into what is free now. Weights that do not are read from the disk again for every token."""
        return self.available is None or self.weights + self.kv <= self.available

    def __str__(self) -> str:
        from pyskip.models.quantisations import size_text

        needed = f"{size_text(self.weights)} of weights, {size_text(self.kv)} for {self.n_ctx} tokens of context"
        if self.total is None or self.available is None:
            return needed
        if self.fits:
            verdict = "fits"
        elif self.weights + self.kv <= self.total:
            verdict = "fits once other programs leave room"
        else:
            verdict = "does not fit: take a smaller quantisation"
        return f"{needed}; {size_text(self.available)} of {size_text(self.total)} are free: {verdict}"


def _describe(profile: Profile) -> dict[str, object]:
    return {
        "path": str(profile.path),
        "stand_in": profile.stand_in,
        "rank": profile.rank,
        "method": profile.method,
        "made_by": profile.made_by,
        "recommended": profile.recommended.rate,
        "curve": [asdict(point) for point in profile.curve],
        "attention_rank": profile.attention_rank,
        "attention_curve": [asdict(point) for point in profile.attention_curve],
        "static_sets": {by: [asdict(step) for step in steps] for by, steps in profile.static_sets.items()},
    }


def _table(rows: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, Text(ui.plain(str(value))))  # the file's own words are no markup
    Console().print(table)


def _ranges(layers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    runs: list[list[int]] = []
    for il in layers:
        if runs and il == runs[-1][1] + 1:
            runs[-1][1] = il
        else:
            runs.append([il, il])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
