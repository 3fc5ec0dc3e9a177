"""How page.py says a number, and how its Markdown is laid out."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def points(row: Row, key: str, sign: str = "") -> str:
    return f"{100 * row[key]:{sign}.1f} ± {error(row[key + '_se'])}"


def filled(section: str) -> str:
    """Paragraphs filled to the width of the other documents; tables, headings and the like as they are."""
    return "\n\n".join(
        block if block.startswith(("|", "#", "!", "<", "`")) else wrapped(block)
        for block in re.split(r"\n\n+", section.strip())
    )


def wrapped(block: str) -> str:
    return textwrap.fill(block, 120, break_long_words=False, break_on_hyphens=False)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def made(document: Row) -> str:
    return f"`{document['command']}`; {document['date']}."


def warmup(name: str, document: Row) -> str:
    if name == "text":
        return f"{document['dense']['n_tokens']:,} tokens scored."
    if name == "mt_bench":
        return (
            f"{document['dense']['n_tokens']:,} tokens of answers; questions run dense, and so do the first 16 tokens."
        )
    if name == "cnn":
        return "articles run dense (but for `static`), and so do the first 16 tokens of a summary."
    return "policies decide from the first token on, without their usual 16 dense ones: the items are short."


def counted(document: Row) -> int:
    return int(document["dense"].get("n", document["n"]))


def unit(name: str) -> str:
    units = {"text": "perplexity / dense", "cnn": "ROUGE-L, %", "mt_bench": "same token, %, and KL"}
    return units.get(name, "accuracy, %")


def key(name: str) -> str:
    return "rouge_l" if name == "cnn" else "accuracy"


def dense(name: str, document: Row) -> str:
    row = document["dense"]
    if name == "text":
        return f"1 (perplexity {row['ppl']:.2f} ± {row['ppl_se']:.2f})"
    if name == "mt_bench":
        return "100, 0"
    return points(row, key(name))


def cell(name: str, row: Row) -> str:
    if name == "text":
        value = f"{ratio(row['ppl_ratio'])} ± {ratio(row['ppl_ratio_se'], row['ppl_ratio'])}"
    elif name == "mt_bench":
        value = f"{100 * row['same_top']:.1f}, {row['kld_mean']:.3f}"
    else:
        value = f"{100 * row[key(name)]:.1f} ± {error(row[key(name) + '_diff_se'])}"
    return f"{value} ({percent(row['skip_rate'], 1)})"


def error(value: float | None) -> str:
    return "?" if value is None else f"{100 * value:.1f}"


def ratio(value: float | None, like: float | None = None) -> str:
    """About four digits, or those that another value has; an infinity is null in JSON."""
    if value is None:
        return "∞"
    size = value if like is None else like
    return f"{value:,.{3 if size < 10 else 1 if size < 1000 else 0}f}"


def percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"
