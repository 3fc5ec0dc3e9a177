"""A coin decides."""

from __future__ import annotations

from dataclasses import dataclass
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
    log_error,
    read_count,
    read_flag,
    read_number,
    spec,
)

__all__ = ["Random"]


@dataclass(frozen=True)
class Random(Policy):
    """A coin for each token and layer, the same however tokens are batched. The baseline that every gate must beat.

    attn: the same for attention, of which that of the last layer always runs.
    stand_in: skipped blocks use the stand-ins of the model's profile; otherwise nothing, as in the paper.
    error: with stand-ins, toss only if the predicted error is below it, as in Profiled.
    """

    kind = "random"
    settings: ClassVar[Settings] = {
        "rate": read_number,
        "seed": read_count,
        "warmup": read_count,
        "stand_in": read_flag,
        "error": read_number,
        "attn": read_number,
    }

    rate: float = 0.25
    seed: int = 0
    warmup: int = 16
    stand_in: bool = False
    error: float | None = None
    attn: float | None = None

    def __post_init__(self) -> None:
        if self.error is not None:
            if not self.stand_in:
                raise PolicyError("random has error, expected stand_in=1 with it: without stand-ins there is no error")
            check_number("random error", self.error, MAX_ERROR)
        check_number("random rate", self.rate, 1.0)
        if self.attn is not None:
            check_number("random attn", self.attn, 1.0)
        check_count("random seed", self.seed)
        check_count("random warmup", self.warmup)

    @property
    def log_error(self) -> float:
        """-inf for an error of 0, inf for any."""
        return log_error(self.error)

    def __str__(self) -> str:
        return spec(
            "random", rate=self.rate, seed=self.seed, warmup=self.warmup, stand_in=int(self.stand_in), error=self.error,
            attn=self.attn,
        )  # fmt: skip

    @property
    def needs_profile(self) -> bool:
        return self.stand_in

    def fields(self, profile: Operating | None) -> Fields:
        fields = {
            "type": "PYSKIP_POLICY_RANDOM",
            "rate": self.rate,
            "seed": self.seed,
            "warmup": self.warmup,
            "threshold": self.log_error,
            "attention_rate": self.attn or 0.0,
        }
        if not self.stand_in:
            return fields
        if profile is None:
            raise ProfileError("random with stand_in=1 needs the model's profile: run pyskip calibrate")
        return {**fields, "profile": profile.native}
