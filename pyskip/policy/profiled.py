"""The model's profile decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..errors import PolicyError, ProfileError
from .base import (
    MAX_ERROR,
    Fields,
    Operating,
    Policy,
    Settings,
    check_count,
    check_number,
    read_count,
    read_flag,
    read_number,
    spec,
)

__all__ = ["Profiled"]


@dataclass(frozen=True)
class Profiled(Policy):
    """The model's profile (pyskip calibrate): a gate predicts what a block's stand-in would cost, token by token.

    rate: the share of FFN blocks to skip, by the curve that calibration measured; a given text may skip more or less.
    error: instead of a rate, skip if the predicted error |y - stand-in| / |x|, times the layer's sensitivity, is
        below it. Neither: the profile's recommended point.
    prefill: decide prompt tokens too, after the first `warmup` positions; otherwise prompts run dense.
    warmup: the first generated tokens of a sequence, which run dense. Not given: what the profile was fitted with.

    Raises PolicyError for values out of range and for both rate and error.
    """

    kind = "profile"
    settings: ClassVar[Settings] = {
        "rate": read_number,
        "error": read_number,
        "prefill": read_flag,
        "warmup": read_count,
    }

    rate: float | None = None
    error: float | None = None
    prefill: bool = False
    warmup: int | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and self.error is not None:
            raise PolicyError("profile has both rate and error, expected one of them")
        if self.rate is not None:
            check_number("profile rate", self.rate, 1.0)
        if self.error is not None:
            check_number("profile error", self.error, MAX_ERROR)
        if self.warmup is not None:
            check_count("profile warmup", self.warmup)

    def __str__(self) -> str:
        if self == Profiled(rate=self.rate) and self.rate is not None:
            return str(self.rate)
        prefill = 1 if self.prefill else None
        return spec("profile", rate=self.rate, error=self.error, prefill=prefill, warmup=self.warmup)

    @property
    def needs_profile(self) -> bool:
        return True

    @property
    def decides_prompt(self) -> bool:
        return self.prefill

    @property
    def prompt_rule(self) -> str:
        return str(self) if self.prefill else self.kind

    def n_dense(self, profile: Operating | None) -> int:
        if profile is None:
            return 0
        return 1 + (profile.warmup if self.warmup is None else self.warmup)

    def paced_from(self) -> Profiled | None:
        return None if self.rate is None else self

    def at_rate(self, rate: float) -> Profiled:
        """The same at another operating point."""
        return replace(self, rate=rate)

    def fields(self, profile: Operating | None) -> Fields:
        if profile is None:
            raise ProfileError(f"skip {str(self)!r} needs the model's profile and none is given: run pyskip calibrate")
        return {
            "type": "PYSKIP_POLICY_PROFILE",
            "profile": profile.native,
            "warmup": profile.warmup if self.warmup is None else self.warmup,
            "threshold": profile.threshold(self),
            "prefill": self.prefill,
        }
