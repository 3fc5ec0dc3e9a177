"""The plots of docs/results.md as SVG: the same bytes from the same measurements. Called by page.py."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

try:
    import matplotlib
except ImportError:
    raise SystemExit("results: matplotlib is not installed: pip install 'matplotlib>=3.8'") from None

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, MultipleLocator, NullLocator

__all__ = ["cosines", "quality", "speed"]

# Okabe and Ito's colours, apart for every kind of colour vision, and a marker each for print without colour
STYLES = {
    "random": ("#E69F00", "v", "random"),
    "static": ("#009E73", "s", "static: best layers"),
    "cosine": ("#D55E00", "o", "cosine: the paper"),
    "profile": ("#0072B2", "D", "profile: pyskip"),
}
DENSE = "#777777"
PLACES = {"static": ((-7, 6), "right"), "cosine": ((8, -10), "left"), "profile": ((0, -17), "center")}  # of labels
DASHES = (0, (5, 2))
DATA = {
    "lambada": "LAMBADA",
    "factoid": "Factoid",
    "arc_easy": "ARC easy",
    "cnn": "CNN/DailyMail",
    "mt_bench": "MT-bench",
}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pyskip",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own; wider than what a reader's machine may put in its place
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.9,
    "lines.markersize": 6.5,
    "legend.frameon": False,
    "legend.fontsize": 12,
}
RATIO = "perplexity / dense"
Floats = npt.NDArray[np.float64]


def quality(documents: dict[str, dict[str, Any]], path: Path) -> None:
    """One panel for each input, two for the text: quality against the skip rate that was met."""
    panels = [(name, document) for name, document in documents.items()]
    with matplotlib.rc_context(SETTINGS):
        n_rows = -(-(len(panels) + ("text" in documents)) // 2)
        figure, grid = plt.subplots(n_rows, 2, figsize=(8, 3.0 * n_rows + 0.7), layout="constrained", squeeze=False)
        axes = iter(grid.flat)
        for name, document in panels:
            if name == "text":
                _text_panel(next(axes), document)
                _near_dense(next(axes), document)
            elif name == "mt_bench":
                _same_panel(next(axes), document)
            else:
                _task_panel(next(axes), name, document)
        for axis in axes:
            axis.axis("off")
        dense = Line2D([], [], color=DENSE, linestyle=DASHES, label="dense")
        band = Line2D([], [], color="#BBBBBB", linewidth=9, alpha=0.6, label="± 1 standard error")
        figure.legend(handles=[*_handles(STYLES), dense, band], loc="outside upper center", ncols=3)
        _save(figure, path)


def _text_panel(axis: Axes, document: dict[str, Any]) -> None:
    for policy, rows in _by_policy(document["rows"]):
        _line(axis, policy, *_columns(rows, "ppl_ratio", "ppl_ratio_se"))
    _log_axis(axis)
    _finish(axis, "Wiki text", f"{RATIO} (log)", 1)


def _near_dense(axis: Axes, document: dict[str, Any]) -> None:
    """The same where it matters: up to what the profile costs at most."""
    low, top = 1.0, 1.1
    for policy, rows in _by_policy(document["rows"]):
        x, y, se = _columns(rows, "ppl_ratio", "ppl_ratio_se")
        _line(axis, policy, x, y, se, clip=True)
        if policy == "profile":
            low, top = min([low, *y]), max([top, *y])
    _finish(axis, "Wiki text, near dense", RATIO, 1)
    axis.set_ylim(low - 0.1 * (top - low), top + 0.1 * (top - low))


def _task_panel(axis: Axes, name: str, document: dict[str, Any]) -> None:
    key, label = ("rouge_l", "ROUGE-L F1 (%)") if name == "cnn" else ("accuracy", "accuracy (%)")
    for policy, rows in _by_policy(document["rows"]):
        x, y, se = _columns(rows, key, f"{key}_diff_se")
        _line(axis, policy, x, 100 * y, 100 * se)
    _finish(axis, DATA[name], label, 100 * document["dense"][key])
    axis.set_ylim(0, max(5, axis.get_ylim()[1]))
    axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _same_panel(axis: Axes, document: dict[str, Any]) -> None:
    """How often the next token is dense's."""
    for policy, rows in _by_policy(document["rows"]):
        known = [{**row, "se": 0.0} for row in rows]
        x, y, se = _columns(known, "same_top", "se")
        _line(axis, policy, x, 100 * y, 100 * se)
    _finish(axis, DATA["mt_bench"], "same next token (%)", 100)
    axis.set_ylim(0, 105)


def _columns(rows: list[dict[str, Any]], value: str, error: str) -> tuple[Floats, Floats, Floats]:
    """Skip rate in %, value and its error; what is no number, being infinite, is left out."""
    known = [row for row in rows if row[value] is not None]
    x, y, se = (np.array([row[key] for row in known], np.float64) for key in ("skip_rate", value, error))
    return 100 * x, y, np.nan_to_num(se)


def _line(axis: Axes, policy: str, x: Floats, y: Floats, se: Floats, *, clip: bool = False) -> None:
    colour, marker, _ = STYLES[policy]
    axis.fill_between(x, np.maximum(y - se, 0), y + se, color=colour, alpha=0.18, linewidth=0)
    axis.plot(x, y, color=colour, marker=marker, clip_on=clip)


def _finish(axis: Axes, title: str, label: str, dense: float) -> None:
    axis.axhline(dense, color=DENSE, linestyle=DASHES, linewidth=1.5)
    axis.set(title=title, ylabel=label, xlabel="FFN blocks skipped (%)", xlim=(0, None))
    axis.xaxis.set_major_locator(MultipleLocator(10))


def cosines(document: dict[str, Any], cold: int, path: Path) -> None:
    """cos(x, z) by layer: all of it, and what lies between the cold ends."""
    mean, low, high = (np.array(document[key], float) for key in ("mean", "p10", "p90"))
    layers = np.arange(len(mean))
    colour = STYLES["cosine"][0]
    with matplotlib.rc_context(SETTINGS):
        figure, (whole, middle) = plt.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
        for axis in (whole, middle):
            axis.fill_between(layers, low, high, color=colour, alpha=0.22, linewidth=0)
            axis.plot(layers, mean, color=colour, marker="o", markersize=4)
            axis.set(xlabel="layer", ylabel="cos(x, z)")
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for span in ((-0.5, cold - 0.5), (len(mean) - cold - 0.5, len(mean) - 0.5)):
            whole.axvspan(*span, color="#EDEDED", zorder=0, linewidth=0)
        whole.set(title="All layers", xlim=(-0.5, len(mean) - 0.5), ylim=(min(0, low.min()), 1.02))
        whole.text(len(mean) / 2, 0.3, "shaded: always run\nunder cosine", ha="center", color="#444444")
        inner = slice(cold, len(mean) - cold)
        pad = 0.08 * (high[inner].max() - low[inner].min())
        middle.set(title="Between the cold ends", xlim=(cold - 0.5, len(mean) - cold - 0.5))
        middle.set_ylim(low[inner].min() - 2.5 * pad, high[inner].max() + pad)
        middle.text(0.03, 0.04, "line: mean; band: 10 to 90 % of tokens", transform=middle.transAxes, fontsize=11)
        _save(figure, path)


def speed(bench: dict[str, Any], text: dict[str, Any], path: Path) -> None:
    """Speed-up that was measured against the perplexity that the same policy costs."""
    ratios = {(row["policy"], row["nominal"]): row["ppl_ratio"] for row in text["rows"]}
    with matplotlib.rc_context(SETTINGS):
        figure, axis = plt.subplots(figsize=(8, 4.4), layout="constrained")
        for policy, rows in _by_policy(bench["rows"]):
            colour, marker, _ = STYLES[policy]
            rows = [row for row in rows if ratios.get((policy, row["nominal"])) is not None]
            x, y = [row["speedup"] for row in rows], [ratios[policy, row["nominal"]] for row in rows]
            axis.plot(x, y, color=colour, marker=marker)
            for row, a, b in zip(rows, x, y, strict=True):
                axis.annotate(
                    f"{100 * row['nominal']:.0f} %", (a, b), PLACES[policy][0], textcoords="offset points",
                    ha=PLACES[policy][1], color=colour, fontsize=11,
                )  # fmt: skip
        axis.plot([1], [1], color=DENSE, marker="o", linestyle="none")
        axis.annotate("dense", (1, 1), (-6, 7), textcoords="offset points", ha="right", color=DENSE)
        axis.axhline(1, color=DENSE, linestyle=DASHES, linewidth=1.5, zorder=0)
        axis.margins(x=0.1, y=0.14)
        _log_axis(axis)
        axis.set(xlabel="decode rate / dense (higher is faster)", ylabel=f"{RATIO} (log)")
        axis.legend(handles=_handles(row["policy"] for row in bench["rows"] if row["policy"] in STYLES), loc="best")
        _save(figure, path)


# What the plots share


def _by_policy(rows: list[dict[str, Any]]) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """Each policy's rows, from the least skipped on."""
    for policy in STYLES:
        yield policy, sorted((row for row in rows if row["policy"] == policy), key=lambda row: row["skip_rate"])


def _handles(policies: Iterable[str]) -> list[Line2D]:
    styles = (STYLES[policy] for policy in dict.fromkeys(policies))
    return [Line2D([], [], color=colour, marker=marker, label=label) for colour, marker, label in styles]


def _log_axis(axis: Axes) -> None:
    """Ticks as plain numbers, the fewer in a decade the more decades there are."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 15 else (1, 2, 5) if high / low < 300 else (1,)
    ticks = [step * 10.0**e for e in range(0, 12) for step in steps if low <= step * 10.0**e <= high]
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
