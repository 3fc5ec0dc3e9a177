"""What a chat shows, as plain text."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from . import ui

if TYPE_CHECKING:
    from .heat import Line

__all__ = ["PlainView"]


class PlainView:
    """Answers go to stdout as they come, all else to stderr."""

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
                for piece in pieces:
                    click.echo(ui.printable(piece) if is_terminal else piece, nl=False)
                    sys.stdout.flush()
        finally:
            click.echo()
