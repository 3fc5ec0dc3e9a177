"""Tokens' bytes to text as it comes, and how long it took."""

from __future__ import annotations

import codecs
import time
from collections.abc import Sequence

__all__ = ["Stopwatch", "TextStream"]


class TextStream:
    """Text in whole characters, up to a stop sequence.

    stops: the text ends before the first of these. What may be the beginning of one is held back.
    errors: for bytes that are no UTF-8, as for bytes.decode(): "replace" or "ignore".
    """

    def __init__(self, stops: Sequence[str] = (), errors: str = "replace") -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.is_stopped = False  # a stop sequence came

    def push(self, raw: bytes, *, final: bool = False) -> str:
        """The next token's bytes. Returns the text that is sure by now. final: nothing follows."""
        self._held += self._decoder.decode(raw, final=final)
        found = min((at for at in map(self._held.find, self._stops) if at >= 0), default=-1)
        if found >= 0:
            self.is_stopped, self._held = True, self._held[:found]
        n = len(self._held) - (0 if final or self.is_stopped else self._overlap())
        text, self._held = self._held[:n], self._held[n:]
        return text

    def finish(self) -> str:
        """The text that was held back, and half a character as `errors` says."""
        return "" if self.is_stopped else self.push(b"", final=True)

    def flush(self) -> str:
        """The text that was held back, without half a character."""
        text, self._held = self._held, ""
        return text

    def _overlap(self) -> int:
        """Characters at the end of the text that begin a stop sequence."""
        longest = max(map(len, self._stops), default=1) - 1
        for n in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-n:]) for stop in self._stops):
                return n
        return 0


class Stopwatch:
    """When decoding began, and its first and last token came. Seconds of time.perf_counter(); 0: not yet."""

    def __init__(self) -> None:
        self.t_begin = self.t_first = self.t_last = 0.0

    def begin(self) -> None:
        """Several prompts in a row are timed as one."""
        self.t_begin = self.t_begin or time.perf_counter()

    def token(self, *, counts: bool = True) -> None:
        """A token came; what ends a text may come and not count."""
        now = time.perf_counter()
        self.t_first = self.t_first or now
        if counts:
            self.t_last = now

    def prompt_ts(self, n_decoded: int) -> float:
        """Tokens/s of a prompt of which so many were decoded; 0 if nothing was measured."""
        seconds = self.t_first - self.t_begin
        return n_decoded / seconds if self.t_first and seconds > 0 else 0.0

    def gen_ts(self, n_gen: int) -> float:
        """Tokens/s of decoding: without the prompt, and the first token, which the prompt's decode yields."""
        seconds = self.t_last - self.t_first
        return (n_gen - 1) / seconds if n_gen > 1 and seconds > 0 else 0.0
