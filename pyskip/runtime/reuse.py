"""What the tokens in the cache were computed by: a prompt must not use again what another rule decided.

llama-cpp-python uses the longest prefix that a new prompt has in common with the cache, and the logits too if they are
equal, whatever the policy, the LoRA or the control vector was then.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

__all__ = ["CacheLog", "Origin"]


@dataclass(frozen=True)
class Origin:
    """What decided how a token was computed.

    adapters: LoRAs and control vector, as a number that differs if they do.
    is_prompt: generated tokens stay what they were as long as the conversation goes on, under whatever policy.
    rule: "" for dense.
    """

    adapters: int
    is_prompt: bool
    rule: str


class CacheLog:
    """Of sequence 0, by position."""

    def __init__(self) -> None:
        self._starts: list[int] = []  # of stretches, rising; each goes to the next, the last to the end of the cache
        self._origins: list[Origin] = []

    def note(self, pos: int, origin: Origin) -> None:
        """Positions from `pos` on are computed this way; what was there is gone."""
        while self._starts and self._starts[-1] >= pos:
            self._starts.pop()
            self._origins.pop()
        if not self._origins or self._origins[-1] != origin:
            self._starts.append(pos)
            self._origins.append(origin)

    def usable(self, n: int, prompt: Origin) -> int:
        """How many of the first n tokens may be used again by a prompt that would be computed this way."""
        for start, origin in zip(self._starts, self._origins, strict=True):
            if origin.adapters != prompt.adapters or (origin.is_prompt and origin.rule != prompt.rule):
                return min(n, start)
        return n

    def has_logits(self, n: int, prompt: Origin) -> bool:
        """Whether the last of n tokens was computed as a prompt's last would be: its logits are as good."""
        k = bisect_right(self._starts, n - 1) - 1
        return k < 0 or (self._origins[k].adapters, self._origins[k].rule) == (prompt.adapters, prompt.rule)

    def clear(self) -> None:
        """Nothing is known of what is there: it was restored from a file, or there is nothing."""
        self._starts, self._origins = [], []
