"""Where blocks were skipped, as lines for a terminal or a file: the tokens of an answer, and the layers of a model."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pyskip.runtime.generation import Answer
from pyskip.runtime.llama import Llama
from pyskip.runtime.text import TextStream
from pyskip.stats import SkipTrace

from . import ui

__all__ = ["Line", "Piece", "layer_bars", "pieces_of", "plain_heat", "shaded_heat"]

Line = list[tuple[str, str]]  # texts, each with its style in rich's words, "" for none

# viridis: darker is less, to eyes that see no colours too
SHADES = (
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"
)  # fmt: skip
BARS = " ▁▂▃▄▅▆▇█"
N_ROWS = 5  # of the layers' bars


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, and the share of FFN blocks that was skipped to come to it, 0 to 1."""

    text: str
    share: float


def pieces_of(llm: Llama, answer: Answer, trace: SkipTrace) -> list[Piece]:
    """The answer in tokens; those that are parts of one character are one piece, with their mean.

    A token comes from the decode of the one before it, so the first comes from the prompt, which is not traced: 0.
    """
    places = trace.positions - trace.positions[:1].sum() + 1
    shares = dict(zip(places.tolist(), trace.skipped.mean(axis=1).tolist(), strict=True))
    stream = TextStream()
    pieces: list[Piece] = []
    waiting: list[float] = []
    before: list[int] = []
    for i, token in enumerate(answer.tokens):
        waiting.append(shares.get(i, 0.0))
        text = stream.push(llm.detokenize([token], prev_tokens=before), final=i == len(answer.tokens) - 1)
        before = [token]
        if text:
            pieces.append(Piece(ui.printable(text), sum(waiting) / len(waiting)))
            waiting = []
    return pieces


def _top(shares: Iterable[float]) -> float:
    """The scale's end: the largest share, up to a whole tenth."""
    return max(0.1, math.ceil(10 * max(shares, default=0.0)) / 10)


def _style(share: float, top: float) -> str:
    if share <= 0:
        return ""
    i = min(len(SHADES) - 1, int(len(SHADES) * share / top))
    return f"{'#ffffff' if i < 6 else '#000000'} on {SHADES[i]}"


def shaded_heat(pieces: Sequence[Piece]) -> list[Line]:
    """The answer with each token shaded, and the legend."""
    top = _top(piece.share for piece in pieces)
    text: Line = []
    for piece in pieces:
        for i, part in enumerate(piece.text.split("\n")):
            word = part.lstrip()
            text += [("\n", "")] * bool(i) + [(part[: len(part) - len(word)], "")]
            text += [(word, _style(piece.share, top))] * bool(word)
    n = len(SHADES)
    scale = [("  ", _style((i + 0.5) / n * top, top)) for i in range(n)]
    legend: Line = [("blocks skipped for a token: 0% ", "dim"), *scale, (f" {top:.0%}; unshaded: none", "dim")]
    return [text, [], legend]


def plain_heat(pieces: Sequence[Piece], width: int = 78) -> list[Line]:
    """The same without colours: under each line of the answer the tenths skipped, where a token begins."""
    lines: list[Line] = []
    text, marks = "", ""

    def flush() -> None:
        nonlocal text, marks
        if text.strip():
            lines.extend([[(text.rstrip(), "")], [(marks.rstrip(), "")]])
        text = marks = ""

    for piece in pieces:
        for i, part in enumerate(piece.text.split("\n")):
            if i or (text and _cells(text + part) > width):
                flush()
                part = part.lstrip() if not i else part
            blank = len(part) - len(part.lstrip())
            mark = str(min(9, int(10 * piece.share))) if part.strip() else ""
            marks += (" " * blank + mark).ljust(_cells(part))
            text += part
    flush()
    return [*lines, [("under each token: tenths of the blocks skipped for it", "dim")]]


def _cells(text: str) -> int:
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def layer_bars(rates: Sequence[float], width: int = 78) -> list[Line]:
    """Upright bars, a layer each, and under them the layers' numbers; in several rows if the width asks for it."""
    top = _top(rates)
    step = 2 if 2 * len(rates) + 8 <= width else 1
    n = max(5, (width - 8) // step)
    return [line for first in range(0, len(rates), n) for line in _bars(rates[first : first + n], first, top, step)]


def _bars(rates: Sequence[float], first: int, top: float, step: int) -> list[Line]:
    lines: list[Line] = []
    for row in reversed(range(N_ROWS)):
        label = f"{top:.0%}" if row == N_ROWS - 1 else "0%" if row == 0 else ""
        bars = "".join(_bar(rate / top * N_ROWS - row).ljust(step) for rate in rates)
        lines.append([(label.rjust(5) + " ", "dim"), (bars, "cyan")])
    numbers = ""
    for il in range(first, first + len(rates)):
        at = (il - first) * step
        if il % 5 == 0 and len(numbers) <= at:
            numbers = numbers.ljust(at) + str(il)
    lines.append([("layer ", "dim"), (numbers, "dim")])
    return lines


def _bar(height: float) -> str:
    return BARS[max(0, min(8, math.ceil(8 * height)))]
