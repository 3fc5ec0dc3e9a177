"""AdaSkip: the sublayers that change the prompt least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import PolicyError
from .base import Fields, Operating, Policy, Settings, check_count, read_count

__all__ = ["AdaSkip"]


@dataclass(frozen=True)
class AdaSkip(Policy):
    """AdaSkip (He et al., AAAI 2025), from this prompt: it runs dense, and of all sublayers, attention and FFN, the n
    with the highest mean cosine between the stream before and after are skipped for every token generated after it;
    the mean of |after| / |before|, a factor, stands in. FFNs whose mean cosine over the first 20 generated tokens
    reaches the n-th of these are skipped from then on, too. K and V of skipped attention are computed all the same.

    n: sublayers that are skipped; those of the last layer always run.

    Raises PolicyError for an n that is not a whole number from 1.
    """

    kind = "adaskip"
    settings: ClassVar[Settings] = {"n": read_count}

    n: int = 8

    def __post_init__(self) -> None:
        check_count("adaskip n", self.n)
        if self.n < 1:
            raise PolicyError("adaskip n is 0, expected 1 or more: off skips none")

    def __str__(self) -> str:
        return f"adaskip:n={self.n}"

    @property
    def measures_prompt(self) -> bool:
        return True

    def fields(self, profile: Operating | None) -> Fields:
        return {"type": "PYSKIP_POLICY_ADASKIP", "n_sublayers": self.n}
