"""What a chat shows, as plain text."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from . import ui

if TYPE_CHECKING:
    from .heat import Line

__all__ = ["PlainView", "parted"]


def parted(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The pieces, and whether they are reasoning; a line's end between it and the answer."""
    from pyskip.chat.reasoning import ReasoningSplit

    split, thought = ReasoningSplit(), False
    for part in itertools.chain.from_iterable(map(split.push, pieces)):
        if thought and not part[1]:
            yield "\n\n", True
        thought = part[1]
        yield part
    yield from split.finish()


class PlainView:
    """Answers go to stdout as they come, reasoning and all else to stderr."""

    has_colours = False
    width = 78

    def note(self, line: str) -> None:
        ui.note(line)

    def error(self, line: str) -> None:
        ui.error(line)

    def show(self, lines: list[Line]) -> None:
        for line in lines:
            click.echo("".join(text for text, _ in line).rstrip(), err=True)

    def answer(self, pieces: Generator[str, None, None]) -> None:
        is_terminal = sys.stdout.isatty()
        try:
            # an interrupt may come out of echo too: the generation must have ended before what follows
            with closing(pieces):
                for piece, is_reasoning in parted(pieces):
                    shown = ui.printable(piece) if is_terminal else piece
                    click.echo(shown, nl=False, err=is_reasoning)
                    sys.stdout.flush()
        finally:
            click.echo()
