"""Which layers were skipped for which piece of text."""

from __future__ import annotations

from typing import Any

from pyskip.runtime.text import TextStream

from .served import Served

__all__ = ["TracedText"]


class TracedText:
    """Gives each piece of an answer the tokens that it consists of."""

    def __init__(self, run: Served) -> None:
        self._run = run
        self._next = 0
        self._stream = TextStream(errors="ignore")

    def take(self, text: str) -> list[dict[str, Any]]:
        """One object a token, from the first that had no text yet: their texts joined are `text`, also where a stop
        sequence cut it off within a token, or the beginning of a text has a space less."""
        traced: list[dict[str, Any]] = []
        rest = text
        while rest and self._next < len(self._run.tokens):
            raw, skipped = self._run.tokens[self._next]
            piece = self._stream.push(raw)
            traced.append({"text": rest[: len(piece)], "skipped": skipped})
            rest = rest[len(piece) :]
            self._next += 1
        if rest and traced:
            traced[-1]["text"] += rest
        elif rest:
            traced.append({"text": rest, "skipped": []})
        return traced
