"""What benchmarks/peers.py measured, in docs/benchmarks.md: tables between its two marks, and a plot.

    python benchmarks/peers_page.py [--json docs/results/peers.json] [--page docs/benchmarks.md] [--plot FILE.svg]

The plot needs matplotlib (the extra `results`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["COLOURS", "grid", "marked", "median_cell", "plot", "quartiles", "ratios", "section", "table"]

ROOT = Path(__file__).resolve().parent.parent
MARKS = ("<!-- peers: made by benchmarks/peers_page.py -->", "<!-- end of peers -->")
Run = dict[str, Any]
Case = tuple[str, int]  # test, threads
RATIOS = (
    ("pyskip fast", "ik_llama.cpp"),
    ("pyskip fast", "pyskip upstream"),
    ("pyskip upstream", "ik_llama.cpp"),
    ("pyskip upstream", "llama.cpp"),
)
# Okabe and Ito's colours, apart for every kind of colour vision
COLOURS = ("#999999", "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Of rates that were measured in the same rounds."""
    return [x / y for x, y in zip(a, b, strict=True)]


def _samples(run: Run) -> dict[tuple[str, Case], list[float]]:
    return {(row["arm"], (row["test"], row["n_threads"])): row["samples_ts"] for row in run["rows"]}


def _cases(run: Run) -> list[Case]:
    return list(dict.fromkeys((row["test"], row["n_threads"]) for row in run["rows"]))


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def median_cell(values: Sequence[float] | None, digits: int) -> str:
    """The median, with the quartiles behind it."""
    if not values:
        return "-"
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def grid(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines)]


def _rates(runs: Sequence[Run], arms: Sequence[str]) -> list[str]:
    lines = []
    for run in runs:
        samples = _samples(run)
        skipped = {(row["arm"], (row["test"], row["n_threads"])): row["skip_rate"] for row in run["rows"]}
        for case in _cases(run):
            cells = [median_cell(samples.get((arm, case)), 1) for arm in arms]
            rates = [skipped.get((arm, case), 0) for arm in arms]
            with_rates = [f"{c}, {r:.0%} skipped" if r else c for c, r in zip(cells, rates, strict=True)]
            lines.append([_model(run), case[0], str(case[1]), *with_rates])
    return grid(["model", "test", "threads", *arms], lines)


def _ratios(runs: Sequence[Run], arms: Sequence[str]) -> list[str]:
    known = [(a, b) for a, b in RATIOS if a in arms and b in arms]
    skipping = [(a, a.partition(",")[0]) for a in arms if "," in a]
    pairs = [*known, *skipping]
    if not pairs:
        return []
    lines = []
    for run in runs:
        samples = _samples(run)
        for case in _cases(run):
            both = [(samples.get((a, case)), samples.get((b, case))) for a, b in pairs]
            cells = [median_cell(ratios(x, y), 2) if x and y else "-" for x, y in both]
            lines.append([_model(run), case[0], str(case[1]), *cells])
    return grid(["model", "test", "threads", *(f"{a} / {b}".replace("pyskip ", "") for a, b in pairs)], lines)


def _model(run: Run) -> str:
    return str(run["model"]).removesuffix(".gguf")


def table(runs: Sequence[Run]) -> str:
    """Rates and their ratios, in Markdown: one part for each machine and instruction set."""
    parts = []
    for cpu, words in dict.fromkeys((run["cpu"], run["instructions"]) for run in runs):
        group = [run for run in runs if (run["cpu"], run["instructions"]) == (cpu, words)]
        arms = _unique(arm["name"] for run in group for arm in run["arms"])
        dates, commits = _unique(run["date"] for run in group), _unique(run["commit"] for run in group)
        counts = sorted({len(row["samples_ts"]) for run in group for row in run["rows"]})
        rounds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        about = _unique(f"`{arm['name']}`: {arm['build']}, `{arm['flags']}`" for run in group for arm in run["arms"])
        parts += [f"### {words}: {cpu}, {group[0]['n_cores']} cores", ""]
        parts += [
            f"{rounds} rounds, {' and '.join(dates)}, pyskip at {' and '.join(commits)}. Tokens/s: median (quartiles)."
        ]
        parts += ["", *_rates(group, arms), "", "Ratios of rates by round:", "", *_ratios(group, arms), ""]
        parts += [*(f"- {line}" for line in about), ""]
    return "\n".join(parts).rstrip() + "\n"


def section(runs: Sequence[Run]) -> str:
    """What stands between the marks."""
    return f"![tokens/s of each engine, relative to pyskip with upstream's kernels](results/peers.svg)\n\n{table(runs)}"


def marked(page: str, text: str, marks: tuple[str, str] = MARKS) -> str:
    """The page with `text` between the marks. Raises ValueError unless it has both, once, in order."""
    before, first, rest = page.partition(marks[0])
    _, last, after = rest.partition(marks[1])
    if not first or not last or marks[0] in rest or marks[1] in after:
        raise ValueError(f"found no place for the tables, expected the lines {marks[0]!r} and {marks[1]!r}: add them")
    return f"{before}{marks[0]}\n\n{text}\n{marks[1]}{after}"


def plot(runs: Sequence[Run], path: Path) -> None:
    """Rates relative to `pyskip upstream`, at the most threads: a panel for each instruction set and test."""
    import matplotlib
    import matplotlib.pyplot as plt

    sets = list(dict.fromkeys((run["cpu"], run["instructions"]) for run in runs))
    threads = {key: max(row["n_threads"] for run in runs if _set(run) == key for row in run["rows"]) for key in sets}
    panels = [
        (key, test)
        for key in sets
        for test in _unique(row["test"] for run in runs if _set(run) == key for row in run["rows"])
    ]
    arms = _unique(arm["name"] for run in runs for arm in run["arms"])
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "pyskip", "font.size": 10}
    with matplotlib.rc_context(settings):
        n_columns = min(3, len(panels))
        n_rows = -(-len(panels) // n_columns)
        n_models = max(sum(_set(run) == key for run in runs) for key in sets)
        size = (3.4 * n_columns, (0.5 + 0.19 * n_models * (len(arms) + 1)) * n_rows + 0.6)
        figure, axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False, sharey="row")
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, (key, test) in zip(axes.flat, panels, strict=False):
            _panel(axis, [run for run in runs if _set(run) == key], (test, threads[key]), arms)
            axis.set_title(f"{key[1]}, {test}, {threads[key]} threads", fontsize=10, loc="left")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper center", ncols=3, frameon=False)
        figure.supxlabel("tokens/s relative to pyskip upstream, median and quartiles", fontsize=10)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def _set(run: Run) -> tuple[str, str]:
    return run["cpu"], run["instructions"]


def _panel(axis: Any, runs: Sequence[Run], case: Case, arms: Sequence[str]) -> None:
    height = 0.8 / len(arms)
    for i, arm in enumerate(reversed(arms)):
        places, middles, errors = [], [], []
        for j, run in enumerate(reversed(runs)):
            samples = _samples(run)
            mine, base = samples.get((arm, case)), samples.get(("pyskip upstream", case))
            if mine and base:
                low, middle, high = quartiles(ratios(mine, base))
                places.append(j + (i - (len(arms) - 1) / 2) * height)
                middles.append(middle)
                errors.append((middle - low, high - middle))
        colour = COLOURS[(len(arms) - 1 - i) % len(COLOURS)]
        whiskers = list(zip(*errors, strict=True)) or None
        axis.barh(places, middles, height * 0.9, xerr=whiskers, color=colour, label=arm, ecolor="#444444")
    axis.set_yticks(range(len(runs)), [_model(run) for run in reversed(runs)], fontsize=8)
    axis.axvline(1, color="#777777", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "peers.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "results" / "peers.svg")
    args = parser.parse_args(argv)
    try:
        runs = json.loads(args.json.read_text())["runs"]
        page = marked(args.page.read_text(), section(runs))
        plot(runs, args.plot)
        args.page.write_text(page)
    except ImportError:
        print("peers_page: matplotlib is not installed: pip install 'matplotlib>=3.8'", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError) as error:
        print(f"peers_page: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
