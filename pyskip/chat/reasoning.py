"""What a model thinks before it answers, told apart from the answer: <think>...</think>, as most of them write it."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["OPEN", "ReasoningSplit"]

OPEN, CLOSE = "<think>", "</think>"


class ReasoningSplit:
    """push() the pieces of an answer as they come, then finish(): parts of text, each with whether it is reasoning.

    Blanks around reasoning belong to nobody. What may become a tag is kept until it is known.
    """

    def __init__(self) -> None:
        self._kept = ""
        self._thinks = False
        self._strips = True  # at the beginning of a part
        self._has_thought = False

    def push(self, piece: str) -> Iterator[tuple[str, bool]]:
        self._kept += piece
        while True:
            tag = CLOSE if self._thinks else OPEN
            before, found, rest = self._kept.partition(tag)
            if not found:
                break
            yield from self._part(before.rstrip() if self._thinks else before)
            self._kept, self._thinks, self._strips = rest, not self._thinks, True
        n = next((n for n in range(len(tag) - 1, 0, -1) if self._kept.endswith(tag[:n])), 0)
        ready, self._kept = self._kept[: len(self._kept) - n], self._kept[len(self._kept) - n :]
        yield from self._part(ready)

    def finish(self) -> Iterator[tuple[str, bool]]:
        yield from self._part(self._kept)
        self._kept = ""

    def _part(self, text: str) -> Iterator[tuple[str, bool]]:
        self._has_thought |= self._thinks
        if self._strips and self._has_thought:
            text = text.lstrip()
        if text:
            self._strips = False
            yield text, self._thinks
