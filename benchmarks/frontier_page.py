"""What benchmarks/frontier.py measured, in docs/frontier.md: tables between its two marks, and a plot for each model.

    python benchmarks/frontier_page.py [--json docs/results/frontier.json] [--page docs/frontier.md]

The plots need matplotlib (the extra `results`).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers_page import COLOURS, grid, marked, median_cell, quartiles, ratios

ROOT = Path(__file__).resolve().parent.parent
MARKS = ("<!-- frontier: made by benchmarks/frontier_page.py -->", "<!-- end of frontier -->")
QUANTISATION = re.compile(r"(?:i?q\d|f16|f32|bf16)[a-z0-9_]*$", re.IGNORECASE)


def quantisation(file: str) -> str:
    """As the file's name has it."""
    stem = file.removesuffix(".gguf")
    found = QUANTISATION.search(stem.replace("-", ".").rpartition(".")[2])
    return found[0].upper() if found else stem


def base_of(run: dict[str, Any]) -> dict[str, Any]:
    """The point that the others are compared with."""
    return next(p for p in run["points"] if p["file"] == run["reference"] and p["skip"] == "off")


def slug(run: dict[str, Any]) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", f"{run['model']}-{run['instructions']}".lower())


def skipped(point: dict[str, Any], kinds: Sequence[str]) -> str:
    """Shares of FFN blocks, and of attention if any was, from the text with the least to that with the most."""
    if point["skip"] == "off":
        return ""
    parts = []
    for what, key in (("", "skip_rate"), ("attention ", "attention_rate")):
        rates = [point["texts"][kind].get(key, 0) for kind in kinds]
        if what == "" or max(rates) > 0:
            parts.append(f"{what}{min(rates):.1%} to {max(rates):.1%}")
    return ", ".join(parts)


def table(run: dict[str, Any]) -> str:
    base = base_of(run)
    kinds = list(base["texts"])
    tests = {"decode": "decode_ts", **({"prompt": "prompt_ts"} if base["prompt_ts"] else {})}
    head = ["file", "MB", "skip", "skipped"]
    head += [cell for test in tests for cell in (f"{test}, tokens/s", "x")]
    head += [f"{kind}: perplexity x, KL" for kind in kinds]
    lines = []
    for point in run["points"]:
        texts = [
            f"{point['texts'][kind]['ppl'] / point['texts'][kind]['dense_ppl']:.3f}, {point['texts'][kind]['kld']:.3f}"
            for kind in kinds
        ]
        speed = [
            cell
            for test in tests.values()
            for cell in (median_cell(point[test], 1), f"{quartiles(ratios(point[test], base[test]))[1]:.2f}")
        ]
        file = [quantisation(point["file"]), f"{point['bytes'] / 1e6:.0f}", point["skip"], skipped(point, kinds)]
        lines.append([*file, *speed, *texts])
    profile = f"a profile of {run['profile_bytes'] / 1e6:.0f} MB" if run["profile_bytes"] else "no profile"
    prompts = f", prompts of {run['n_prompt']} tokens" if base["prompt_ts"] else ""
    about = (
        f"{run['instructions']}: {run['cpu']}, {run['n_threads']} threads, {run['date']}, pyskip at {run['commit']}, "
        f"{profile}. Speed: medians of {len(base['decode_ts'])} rounds in turns (quartiles){prompts}. Quality: "
        f"{run['n_tokens']} tokens of each text, relative to {quantisation(run['reference'])}, dense."
    )
    return "\n".join([about, "", *grid(head, lines)])


def section(runs: Sequence[dict[str, Any]]) -> str:
    """What stands between the marks."""
    parts = []
    for run in runs:
        parts += [f"## {run['model']}, {run['instructions']}", ""]
        parts += [f"![KL divergence against decoding speed, {run['model']}](results/frontier-{slug(run)}.svg)", ""]
        parts += [table(run), ""]
    return "\n".join(parts)


def plot(run: dict[str, Any], path: Path) -> None:
    """Speed against divergence, mean of the texts: a line for each file, from dense on through its rates."""
    import matplotlib
    import matplotlib.pyplot as plt

    base = base_of(run)
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "pyskip", "font.size": 10}
    with matplotlib.rc_context(settings):
        figure, axis = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        for i, file in enumerate(dict.fromkeys(p["file"] for p in run["points"])):
            points = [p for p in run["points"] if p["file"] == file]
            x = [quartiles(ratios(p["decode_ts"], base["decode_ts"]))[1] for p in points]
            y = [sum(t["kld"] for t in p["texts"].values()) / len(p["texts"]) for p in points]
            axis.plot(
                x, y, "o-", color=COLOURS[i % len(COLOURS)], label=quantisation(file), markersize=4, linewidth=1.2
            )
            for p, at in zip(points, zip(x, y, strict=True), strict=True):
                label = "dense" if p["skip"] == "off" else p["skip"]
                axis.annotate(label, at, textcoords="offset points", xytext=(4, 4), fontsize=7)
        axis.set_xlabel(f"decoding, relative to {quantisation(run['reference'])} dense")
        axis.set_ylabel("KL divergence, mean of the texts, nats")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "frontier.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "frontier.md")
    args = parser.parse_args(argv)
    try:
        runs = json.loads(args.json.read_text())["runs"]
        page = marked(args.page.read_text(), section(runs), MARKS)
        for run in runs:
            plot(run, args.page.parent / "results" / f"frontier-{slug(run)}.svg")
        args.page.write_text(page)
    except ImportError:
        print("frontier_page: matplotlib is not installed: pip install 'matplotlib>=3.8'", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError) as error:
        print(f"frontier_page: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
