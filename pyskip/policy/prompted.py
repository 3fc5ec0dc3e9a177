"""The prompt chooses, by the model's profile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Fields, Operating, Policy, Settings, check_number, read_number

__all__ = ["Prompted"]


@dataclass(frozen=True)
class Prompted(Policy):
    """The prompt chooses the FFN blocks that are skipped until the next one, as in FiRST (Jain et al., EMNLP Findings
    2025), whose trained routers the gates of the model's profile stand for: the blocks with the lowest mean predicted
    error over the prompt's tokens, which run dense. The profile's stand-ins serve for them.

    rate: the share of all FFN blocks to skip; that of the last layer always runs.

    Raises PolicyError for a rate out of range.
    """

    kind = "prompt"
    settings: ClassVar[Settings] = {"rate": read_number}

    rate: float = 0.25

    def __post_init__(self) -> None:
        check_number("prompt rate", self.rate, 1.0)

    def __str__(self) -> str:
        return f"prompt:rate={self.rate}"

    @property
    def needs_profile(self) -> bool:
        return True

    @property
    def measures_prompt(self) -> bool:
        return True

    def fields(self, profile: Operating | None) -> Fields:
        return {"type": "PYSKIP_POLICY_PROMPT", "profile": self.needed(profile).native, "rate": self.rate}
