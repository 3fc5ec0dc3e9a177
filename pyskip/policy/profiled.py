"""The model's profile decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..errors import PolicyError
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

    rate: the share of FFN blocks to skip among generated tokens, within 2 points over 256 of them.
    attn: the share of attention sublayers to skip among generated tokens, held in the same way, if the profile has
        gates of attention (pyskip calibrate --attention). Beside an error, or without hold, at the fixed threshold at
        which calibration measured that rate. Not given: all attention runs. It always does in prompts and in the last
        layer.
    error: instead of a rate, skip if the predicted error |y - stand-in| / |x|, times the layer's sensitivity, is
        below it. Neither: the rate of the profile's recommended point.
    hold: the rate is held: the threshold follows from the sequence's own past. Otherwise it stays where calibration
        measured the rate, and a given text skips more or less. An error is a fixed threshold by nature.
    prompt: the share to skip in prompts, which otherwise run dense: none in the first `warmup` tokens and in the last
        32, more far from the end than near it.
    prefill: prompts skip like generated tokens: the same as prompt=RATE, or by the same fixed threshold.
    warmup: the first generated tokens of a sequence, which run dense. Not given: what the profile was fitted with.

    Raises PolicyError for values out of range, for both rate and error, and for both prompt and prefill.
    """

    kind = "profile"
    settings: ClassVar[Settings] = {
        "rate": read_number,
        "error": read_number,
        "attn": read_number,
        "hold": read_flag,
        "prompt": read_number,
        "prefill": read_flag,
        "warmup": read_count,
    }

    rate: float | None = None
    error: float | None = None
    prefill: bool = False
    warmup: int | None = None
    hold: bool = True
    prompt: float | None = None
    attn: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and self.error is not None:
            raise PolicyError("profile has both rate and error, expected one of them")
        if self.rate is not None:
            check_number("profile rate", self.rate, 1.0)
        if self.error is not None:
            check_number("profile error", self.error, MAX_ERROR)
            object.__setattr__(self, "hold", False)
        if self.attn is not None:
            check_number("profile attn", self.attn, 1.0)
        if self.prompt is not None:
            check_number("profile prompt", self.prompt, 1.0)
            if self.prefill:
                raise PolicyError("profile has both prompt and prefill, expected one of them")
        if self.warmup is not None:
            check_count("profile warmup", self.warmup)

    def __str__(self) -> str:
        if self == Profiled(rate=self.rate) and self.rate is not None:
            return str(self.rate)
        return spec(
            "profile",
            rate=self.rate,
            error=self.error,
            attn=self.attn,
            hold=0 if not self.hold and self.error is None else None,
            prompt=self.prompt,
            prefill=1 if self.prefill else None,
            warmup=self.warmup,
        )

    @property
    def needs_profile(self) -> bool:
        return True

    @property
    def decides_prompt(self) -> bool:
        return self.prefill or bool(self.prompt)

    @property
    def prompt_rule(self) -> str:
        if not self.decides_prompt:
            return self.kind
        return "" if self.hold or self.prompt else str(self)

    def n_dense(self, profile: Operating | None) -> int:
        if profile is None:
            return 0
        return 1 + (profile.warmup if self.warmup is None else self.warmup)

    def paced_from(self) -> Profiled | None:
        return None if self.rate is None else self

    def at_rate(self, rate: float) -> Profiled:
        """The same at another operating point, of which what moves it is told: nothing else holds it."""
        return replace(self, rate=rate, hold=False)

    def with_prompt(self, rate: float) -> Profiled:
        return replace(self, prompt=rate, prefill=False)

    def fields(self, profile: Operating | None) -> Fields:
        profile = self.needed(profile)
        rate = profile.recommended.rate if self.rate is None else self.rate
        prompt = rate if self.prefill and self.hold else self.prompt or 0.0
        if prompt:
            profile.threshold(Profiled(rate=prompt))  # raises beyond the curve
        return {
            "type": "PYSKIP_POLICY_PROFILE",
            "profile": profile.native,
            "warmup": profile.warmup if self.warmup is None else self.warmup,
            "threshold": profile.threshold(self),
            "hold": self.hold,
            "rate": min(max(rate, 0.0), 1.0),
            "prompt": prompt,
            "prefill": self.prefill,
            "attention_rate": self.attn or 0.0,
            "attention_threshold": profile.attention_threshold(self.attn) if self.attn else 0.0,
        }
