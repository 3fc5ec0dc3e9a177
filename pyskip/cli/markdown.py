"""Markdown on a terminal while it arrives. Used by chat_terminal.py.

Blocks that are finished are printed once; of the last one, which is open, only the lines that change are written again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import get_character_cell_size
from rich.console import Console
from rich.markdown import Markdown

from . import ui

__all__ = ["MarkdownStream"]

INTERVAL = 0.04  # seconds between two times that the open block is shown, at least
REST = 10  # times as long as it took: the model has better use for the processor
SGR = re.compile(r"\x1b\[[0-9;]*m")


class MarkdownStream:
    """Write pieces, then finish(); the cursor is at the start of a line before and after."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parser = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")
        self._source = ""  # from the open block on
        self._shown: list[str] = []  # its lines on the screen, with their styles
        self._is_first = True  # no block before it
        self._goes_on = False  # it is an item of a list that has items before it
        self._is_stale = False  # lines that left the screen are no longer what they were
        self._next = 0.0
        self._size = console.size

    def write(self, piece: str) -> None:
        self._source += ui.printable(piece)
        start = time.monotonic()
        if start >= self._next:
            self._update()
            end = time.monotonic()
            self._next = end + max(INTERVAL, REST * (end - start))

    def finish(self) -> None:
        """Show what has come, whole."""
        self._update(is_last=True)
        if self._is_first and not self._shown:
            self._console.file.write("\n")
        self._console.file.flush()

    def _update(self, is_last: bool = False) -> None:
        tokens = self._parser.parse(self._source)
        starts = list(_starts(tokens))
        lines = self._source.splitlines(keepends=True)
        done: list[str] = []
        while len(starts) > 1 or (is_last and starts):
            (first, _), (end, goes_on) = starts[0], starts[1] if len(starts) > 1 else (len(lines), False)
            done += self._block("".join(lines[first:end]))
            self._is_first, self._goes_on = False, goes_on
            del starts[0]
        if not starts:
            self._paint(done, is_last=True)
            self._shown, self._source = [], "" if done else self._source
            return
        self._source = "".join(lines[starts[0][0] :])
        if done:
            self._paint(done, is_last=True)
            self._shown = []
        block = self._block(self._source)
        # a table's columns move with every row: its head must not leave the screen before it is whole
        is_table = [token.type for token in tokens if token.level == 0 and token.nesting >= 0][-1] == "table_open"
        self._paint(block[-max(1, self._console.height - 2) :] if is_table else block)

    def _block(self, source: str) -> list[str]:
        """The lines of a block, with the blank line before it."""
        markdown = Markdown("", hyperlinks=False)  # addresses in full, and not hidden behind other words
        markdown.parsed = self._parser.parse(source)
        for token in markdown.parsed:
            for child in token.children or ():
                child.content = ui.printable(child.content)  # entities too
        # terminals do not agree with rich on emoji of several parts: no line may be too long for any of them
        most = width = max(1, self._console.width - 1)
        lines = self._rendered(markdown, width)
        while width > 1 and (excess := max(map(_cells, lines), default=0) - most) > 0:
            width = max(1, width - excess)
            lines = self._rendered(markdown, width)
        while lines and not SGR.sub("", lines[-1]).strip():
            lines.pop()
        while lines and not SGR.sub("", lines[0]).strip():
            del lines[0]
        return lines if self._is_first or self._goes_on or not lines else ["", *lines]

    def _rendered(self, markdown: Markdown, width: int) -> list[str]:
        with self._console.capture() as capture:
            self._console.print(markdown, width=width)
        return [line.rstrip() for line in capture.get().split("\n")]

    def _paint(self, lines: list[str], is_last: bool = False) -> None:
        """Make these the lines on the screen, from the first that differs on."""
        if self._size != self._console.size:  # who knows where the lines are now: begin anew below them
            self._size, self._shown = self._console.size, []
        shown = self._shown
        pairs = enumerate(zip(shown, lines, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(shown), len(lines)))
        gone = max(0, len(shown) - (self._console.height - 1))  # lines above the screen
        if same < gone:
            self._is_stale |= _plain(shown[:gone]) != _plain(lines[:gone])
            same = gone
        out = f"\x1b[{len(shown) - same}A" if len(shown) > same else ""
        if is_last and self._is_stale:  # nothing may be missing
            same, self._is_stale = 0, False
        out += "".join(f"{line}\x1b[K\n" for line in lines[same:])
        out += "\x1b[J" if len(shown) > len(lines) else ""
        if out:
            self._console.file.write(out)
            self._console.file.flush()
        self._shown = lines


def _cells(line: str) -> int:
    """Columns that the line takes if each of its code points stands for itself."""
    return sum((get_character_cell_size(c) if c != "\ufe0f" else 1) for c in SGR.sub("", line))


def _plain(lines: list[str]) -> list[str]:
    return [SGR.sub("", line).rstrip() for line in lines]


def _starts(tokens: Iterable[Token]) -> Iterable[tuple[int, bool]]:
    """The source lines at which blocks begin, and whether the block is a later item of the list before it."""
    is_list = is_later = False
    for token in tokens:
        if token.level == 0 and token.nesting >= 0 and token.map:
            is_list, is_later = token.type in ("bullet_list_open", "ordered_list_open"), False
            if not is_list:
                yield token.map[0], False
        elif is_list and token.level == 1 and token.type == "list_item_open" and token.map:
            yield token.map[0], is_later
            is_later = True
