"""Writes docs/results.md and its plots from the JSON files that steps.py measured. No model is needed.

The same files give the same page, byte for byte. What was not measured is left out, and the page says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyskip.errors import PyskipError

from . import plots, words
from .words import Row

__all__ = ["write"]

COLD = 4  # layers at each end that `cosine` always runs
POLICIES = ("random", "static", "cosine", "profile")
TITLES = {
    "text": "Wiki text",
    "lambada": "LAMBADA",
    "factoid": "Factoid",
    "arc_easy": "ARC easy",
    "cnn": "CNN/DailyMail",
    "mt_bench": "MT-bench",
}
MEASURES = {
    "text": "perplexity / dense",
    "lambada": "accuracy, %: the last word by greedy decoding",
    "factoid": "accuracy, %: the fact by greedy decoding (the paper's Factoid-QA asks such questions)",
    "arc_easy": "accuracy, %: the right one of about four choices the likeliest for its length",
    "cnn": "ROUGE-L F1, %, of summaries against the highlights (the paper has summaries judged by GPT-4)",
    "mt_bench": "how often the policy would have written the dense model's next token, and KL divergence, nats, along "
    "the dense answers to its questions, two turns each (the paper has answers judged by GPT-4)",
}
UNITS = {"text": "windows of 512 tokens, the second half of each", "mt_bench": "questions"}


def write(folder: Path) -> Path:
    """The page beside the folder of measurements, FOLDER.md, the plots inside. Raises PyskipError without any."""
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    quality = {name: documents[name] for name in TITLES if name in documents}
    if not quality or "arms" not in documents:
        raise PyskipError(
            f"{folder}: no measurements, expected arms.json and text.json at least: run those steps first"
        )
    parts = [_head(folder, documents, quality)]
    if "headline" in documents:
        parts.append(_headline(documents["headline"]))
    if "accuracy" in documents:
        parts.append(_accuracy(documents["accuracy"]))
    parts += [_glance(quality), _quality(folder, quality)]
    if "cos" in documents:
        parts.append(_cosines(folder, documents["cos"]))
    if "bench" in documents and "text" in quality:
        parts.append(_speed(folder, documents["bench"], quality["text"]))
    if "calibration" in documents:
        parts.append(_calibrations(documents["calibration"]))
    parts.append(_arms(documents["arms"], quality))
    page = folder.parent / f"{folder.name}.md"
    page.write_text("\n\n".join(words.filled(part) for part in parts if part) + "\n")
    return page


# Sections


def _head(folder: Path, documents: dict[str, Any], quality: dict[str, Any]) -> str:
    first = documents["arms"]
    model = first["model"]
    inputs = [
        [
            TITLES[name],
            f"`{d['inputs'][name]['name']}`",
            f"{words.counted(d)} {UNITS.get(name, 'items')}",
            f"`{d['inputs'][name]['sha256']}`",
        ]
        for name, d in quality.items()
    ]
    wanted = {
        "headline": "the headline",
        "accuracy": "accuracy on the tasks",
        **TITLES,
        "cos": "cosines by layer",
        "bench": "speed",
        "calibration": "other calibrations",
    }
    missing = [title for name, title in wanted.items() if name not in documents]
    threads = "1 thread" if first["n_threads"] == 1 else f"{first['n_threads']} threads"
    return f"""# Results{"" if folder.name == "results" else f", {model['name']}"}

What four policies cost in quality, and bring in speed, on {model["name"]} (`{model["file"]}`,
{model["n_layer"]} layers, fingerprint `{model["fingerprint"]}`). `make results DATA=FOLDER` wrote this page; FOLDER
holds the inputs under these names:

{words.table(["input", "file", "compared on", "sha256"], inputs)}
{first["cpu"]}, {threads}; {first["build"]}. ± is one standard error. A command below, run in the
repository root with the inputs there, measures one table again; `make results` draws the page.
{"" if not missing else f"{chr(10)}Not measured: {', '.join(missing)}.{chr(10)}"}
| policy | |
|---|---|
| `random` | a coin for each token and layer; nothing in a skipped block's place |
| `static` | the layers that cost least when each alone is skipped; the same for every token |
| `cosine` | the paper's, `run=1`: if a block turned the stream by little, the next one is skipped |
| `profile` | pyskip's: a gate predicts the harm token by token, a small stand-in serves in the block's place |

The paper's models have 7 to 13 billion parameters, this one {model["n_params"] / 1e6:,.0f} million: a small model has
less to spare, so these are not the paper's figures. Its third table, on conversations (MT-bench), has another model
as a judge; here answers are compared with dense ones, token by token.
"""


def _headline(document: Row) -> str:
    rows = [
        [
            f"`{row['skip']}`", f"{row['skip_rate']:.3f}", f"{row['ppl']:.2f}",
            f"{words.ratio(row['ppl_ratio'])} ± {words.ratio(row['ppl_ratio_se'], row['ppl_ratio'])}",
            f"{row['kld_mean']:.4f}", f"{words.percent(row['same_top'], 1)}", f"{row['ffn_bytes_saved']:.3f}",
        ]
        for row in (document["dense"], *document["rows"])
    ]  # fmt: skip
    return f"""## The profile and the paper's policy on wiki text

{document["dense"]["n_tokens"]:,} scored tokens: {document["n"]} {UNITS["text"]}.

{words.table(["skip", "rate", "perplexity", "/ dense", "KL, nats", "same top token", "FFN bytes saved"], rows)}
{_unpatched(document)}{words.made(document)}
"""


def _unpatched(document: Row) -> str:
    if "unpatched" not in document:
        return ""
    found = document["unpatched"]
    return (
        f"Unpatched llama.cpp, by the arithmetic of llama-perplexity, has {found['ppl']:.4f} on the first {found['n']} "
        f"windows, `off` {found['ppl_off']:.4f}.\n\n"
    )


def _accuracy(document: Row) -> str:
    rows = [
        [
            TITLES[name], str(task["row"]["n"]), f"{words.points(task['dense'], 'accuracy')} %",
            f"{words.points(task['row'], 'accuracy')} %", f"{words.points(task['row'], 'accuracy_diff', '+')}",
            words.percent(task["row"]["skip_rate"], 1),
        ]
        for name, task in document["tasks"].items()
    ]  # fmt: skip
    skip = next(iter(document["tasks"].values()))["row"]["skip"]
    return f"""## Tasks under `{skip}`

Without the usual 16 dense tokens, which the shortest items never leave. The difference is that of paired items, in
points.

{words.table(["task", "items", "dense", "profile", "difference", "skipped"], rows)}
{words.made(document)}
"""


def _glance(quality: dict[str, Any]) -> str:
    """Every input at one rate, the highest up to a quarter that all of them have."""
    shared = set.intersection(*({row["nominal"] for row in d["rows"]} for d in quality.values()))
    rate = max((r for r in shared if r <= 0.25), default=min(shared, default=None))
    if rate is None:
        return ""
    rows = []
    for name, document in quality.items():
        found = {row["policy"]: row for row in document["rows"] if row["nominal"] == rate}
        rows.append(
            [
                f"{TITLES[name]}, {words.unit(name)}",
                words.dense(name, document),
                *(words.cell(name, found[p]) for p in POLICIES),
            ]
        )
    return f"""## At a rate of {words.percent(rate)}

{words.table(["", "dense", *POLICIES], rows)}
In brackets the share of FFN blocks that was skipped. A rate is what a policy was asked for; gates and cosines skip more
or less on text that they were not set on, so compare at like shares, in the plot.
"""


def _quality(folder: Path, quality: dict[str, Any]) -> str:
    plots.quality(quality, folder / "quality.svg")
    parts = [
        f"""## Quality against skip rate

![Quality of four policies against the share of FFN blocks skipped, a panel for each input]({folder.name}/quality.svg)

Bands and ± of a policy: one standard error of its difference to dense, from differences token by token or item by item.
What lies within two of them cannot be told from dense with so few items.
"""
    ]
    for name, document in quality.items():
        rates = sorted({row["nominal"] for row in document["rows"]})
        found = {(row["policy"], row["nominal"]): row for row in document["rows"]}
        rows = [
            [words.percent(rate), *(words.cell(name, found[policy, rate]) for policy in POLICIES)] for rate in rates
        ]
        parts.append(f"""### {TITLES[name]}

{MEASURES[name][0].upper() + MEASURES[name][1:]}. Dense: {words.dense(name, document)}; {words.warmup(name, document)}

{words.table(["rate", *POLICIES], rows)}
{words.made(document)}
""")
    return "\n".join(parts)


def _cosines(folder: Path, cos: Row) -> str:
    plots.cosines(cos, COLD, folder / "cos.svg")
    inner = range(COLD, len(cos["mean"]) - COLD)
    low, high = min(cos["mean"][il] for il in inner), max(cos["mean"][il] for il in inner)
    rows = [[str(il), *(f"{cos[key][il]:.3f}" for key in ("mean", "p10", "p90"))] for il in range(len(cos["mean"]))]
    return f"""## How far a block turns the stream: cos(x, z) by layer

![Cosine between the stream entering and leaving an FFN block, by layer]({folder.name}/cos.svg)

x enters an FFN block, z = x + FFN(norm(x)) leaves it; {cos["n_tokens"]:,} tokens of the text, dense. The paper's
plateau is there: means of {low:.3f} to {high:.3f} from layer {inner[0]} to {inner[-1]}. What a rule on it costs,
`cosine` shows above.

<details><summary>Figures</summary>

{words.table(["layer", "mean", "10 %", "90 %"], rows)}
</details>

{words.made(cos)}
"""


def _speed(folder: Path, bench: Row, text: Row) -> str:
    plots.speed(bench, text, folder / "speed.svg")
    ratios = {(row["policy"], row["nominal"]): row for row in text["rows"]}
    rows = []
    for row in bench["rows"]:
        cost = ratios.get((row["policy"], row["nominal"]))
        rows.append([
            row["policy"] if row["nominal"] is None else f"{row['policy']}, {words.percent(row['nominal'])}",
            f"{row['avg_ts']:.1f} ± {row['spread_ts']:.1f}", f"{row['speedup']:.3f}",
            "" if row["ideal_speedup"] is None else f"{row['ideal_speedup']:.3f}", words.percent(row["skip_rate"]),
            "" if cost is None else words.ratio(cost["ppl_ratio"]),
        ])  # fmt: skip
    return f"""## Speed-up against quality

![Perplexity ratio against measured speed-up, three policies]({folder.name}/speed.svg)

64 tokens of the wiki text, one by one behind 256 others; {bench["rounds"]} rounds in turns. Speed-up: the median of the
rounds' ratios to pyskip's `off`; ± is half the distance between the quartiles here. "Bytes allow": what bytes that are
not read bring if all time is reading. Policies decide from the first generated token on. Perplexity is that of the
table above, on more text.

{words.table(["policy, rate", "tokens/s", "speed-up", "bytes allow", "skipped", "perplexity / dense"], rows)}
{words.made(bench)}
"""


def _calibrations(document: Row) -> str:
    rows = [
        [
            f"`pyskip calibrate {' '.join(['demo', *each['flags'].split()])}`", f"{each['n_tokens']:,}",
            *(
                f"{words.ratio(row['ppl_ratio'])} ± {words.ratio(row['ppl_ratio_se'], row['ppl_ratio'])} "
                f"({words.percent(row['skip_rate'], 1)})"
                for row in each["rows"]
            ),
            *[""] * (len(document["calibrations"][0]["rows"]) - len(each["rows"])),
        ]
        for each in document["calibrations"]
    ]  # fmt: skip
    rates = [f"`{row['skip']}`" for row in document["calibrations"][0]["rows"]]
    return f"""## Closed-form profiles

Perplexity / dense of profiles that `pyskip calibrate` makes without training, on {document["n"]} windows of the wiki
text, {document["dense"]["n_tokens"]:,} tokens scored. Without `--text` it calibrates on what the model writes itself;
FIT is `{document["inputs"]["fit"]["name"]}`. A profile's rates are those of its own held-out windows.

{words.table(["profile", "tokens", *rates], rows)}
{words.made(document)}
"""


def _arms(arms: Row, quality: dict[str, Any]) -> str:
    first = next(iter(quality.values()))
    specs = {(row["policy"], row["nominal"]): row["skip"] for row in first["rows"]}
    rates = sorted({row["nominal"] for row in first["rows"]})
    rows = [[words.percent(rate), *(f"`{specs[p, rate]}`" for p in ("static", "cosine"))] for rate in rates]
    single = [[str(il), words.ratio(arms["single"][il])] for il in arms["order"]]
    return f"""## How `static` and `cosine` were set

On the first {arms["n_windows"]} windows of the wiki text, which are scored too: a favour to these two that the profile
does without. `static`: the layers that cost least when each alone is skipped, as many as make the rate. `cosine`: the
threshold that met the rate best on the first two windows; with `run=1` and 4 cold layers at each end no more than every
second block between them can be skipped.

{words.table(["rate", "static", "cosine"], rows)}
<details><summary>Perplexity / dense with one layer skipped, cheapest first</summary>

{words.table(["layer", "perplexity / dense"], single)}
</details>

{words.made(arms)}
"""
