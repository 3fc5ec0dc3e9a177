"""Skip policies as typed values, and the strings that stand for them in the CLI and in Python.

    off
    cosine:threshold=0.98,run=1,cold_start=4,cold_end=4,warmup=16
    static:5,14,25
    0.25                            the model's profile, at the operating point that skips 25 % of FFN blocks
    profile:error=0.12,prefill=1    the same by predicted relative error; prompts too
    random:rate=0.25,seed=1         a coin for each token and layer, to compare with

``parse_skip(str(policy)) == policy`` for every policy but Custom, which is code: no specification stands for it,
so that no stranger can write one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from .custom import Custom
from .errors import PolicyError

__all__ = ["Cosine", "Custom", "Off", "Policy", "Profiled", "Random", "Static", "parse_skip"]

INT32_MAX = 2**31 - 1
MAX_ERROR = 1e30


@dataclass(frozen=True)
class Off:
    """Dense: the graph is upstream's own."""

    def __str__(self) -> str:
        return "off"


@dataclass(frozen=True)
class Cosine:
    """The paper's policy (FFN-SkipLLM, arXiv 2404.03865, section 3).

    threshold: after an executed FFN, cos(x, z) >= threshold skips the next blocks; x is the residual stream entering
        the block, z the one leaving it. 2 never skips.
    run: how many blocks (layers) one positive test skips; 0 means all up to the cold end.
    cold_start, cold_end: the first and last layers, which always run.
    warmup: the first generated tokens of a sequence, which run dense.

    Raises PolicyError for a threshold that is not finite and for counts that are not whole numbers from 0.
    """

    threshold: float = 0.98
    run: int = 1
    cold_start: int = 4
    cold_end: int = 4
    warmup: int = 16

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float)):
            raise PolicyError(f"cosine threshold is {self.threshold!r}, expected a number such as 0.98")
        if not math.isfinite(self.threshold):
            raise PolicyError(f"cosine threshold is {self.threshold}, expected a finite number such as 0.98")
        for name in ("run", "cold_start", "cold_end", "warmup"):
            _check_count(f"cosine {name}", getattr(self, name))

    def __str__(self) -> str:
        return "cosine:" + ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


@dataclass(frozen=True)
class Static:
    """These layers' FFNs are skipped for every token, the prompt's too (depth pruning).

    Raises PolicyError for an empty set and for layers that are not whole numbers from 0. Duplicates are one layer.
    """

    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise PolicyError("static names no layer, expected at least one, as in static:5,14,25")
        for il in self.layers:
            _check_count("static layer", il)
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))

    def __str__(self) -> str:
        return "static:" + ",".join(map(str, self.layers))


@dataclass(frozen=True)
class Profiled:
    """The model's profile (pyskip calibrate): a gate predicts what a block's stand-in would cost, token by token.

    rate: the share of FFN blocks to skip, by the curve that calibration measured; a given text may skip more or less.
    error: instead of a rate, skip where the predicted error |y - stand-in| / |x|, times the layer's sensitivity, is
        below it. Neither: the profile's recommended point.
    prefill: decide prompt tokens too, after the first `warmup` positions; otherwise prompts run dense.
    warmup: the first generated tokens of a sequence, which run dense. Not given: what the profile was fitted with.

    Raises PolicyError for values out of range and for both rate and error.
    """

    rate: float | None = None
    error: float | None = None
    prefill: bool = False
    warmup: int | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and self.error is not None:
            raise PolicyError("profile has both rate and error, expected one of them")
        if self.rate is not None:
            _check_number("profile rate", self.rate, 1.0)
        if self.error is not None:
            _check_number("profile error", self.error, MAX_ERROR)
        if self.warmup is not None:
            _check_count("profile warmup", self.warmup)

    def __str__(self) -> str:
        if self == Profiled(rate=self.rate) and self.rate is not None:
            return str(self.rate)
        prefill = 1 if self.prefill else None
        return _spec("profile", rate=self.rate, error=self.error, prefill=prefill, warmup=self.warmup)


@dataclass(frozen=True)
class Random:
    """A coin for each token and layer, the same however tokens are batched. The baseline that every gate must beat.

    stand_in: skipped blocks use the stand-ins of the model's profile; otherwise nothing, as in the paper.
    error: with stand-ins, toss only where the predicted error is below it, as in Profiled.
    """

    rate: float = 0.25
    seed: int = 0
    warmup: int = 16
    stand_in: bool = False
    error: float | None = None

    def __post_init__(self) -> None:
        if self.error is not None:
            if not self.stand_in:
                raise PolicyError("random has error, expected stand_in=1 with it: without stand-ins there is no error")
            _check_number("random error", self.error, MAX_ERROR)
        _check_number("random rate", self.rate, 1.0)
        _check_count("random seed", self.seed)
        _check_count("random warmup", self.warmup)

    @property
    def log_error(self) -> float:
        """-inf for an error of 0, inf for any."""
        return _log_error(self.error)

    def __str__(self) -> str:
        return _spec(
            "random", rate=self.rate, seed=self.seed, warmup=self.warmup, stand_in=int(self.stand_in), error=self.error
        )


Policy: TypeAlias = Off | Cosine | Static | Profiled | Random | Custom


def _log_error(error: float | None) -> float:
    return math.inf if error is None else math.log(error) if error > 0 else -math.inf


def _spec(name: str, **values: float | None) -> str:
    items = [f"{key}={value}" for key, value in values.items() if value is not None]
    return f"{name}:{','.join(items)}" if items else name


def _shown(value: object) -> str:
    text = f"{value:#x}" if isinstance(value, int) and abs(value) > 10**18 else repr(value)  # no digits without end
    return text if len(text) <= 60 else text[:57] + "..."


def _check_count(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT32_MAX:
        raise PolicyError(f"{what} is {_shown(value)}, expected a whole number from 0 to {INT32_MAX}")


def _check_number(what: str, value: object, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
        raise PolicyError(f"{what} is {_shown(value)}, expected a number from 0 to {high:g}")


def _count(what: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise PolicyError(f"{what} is {_shown(text)}, expected a whole number from 0")
    return int(text)


def _number(what: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise PolicyError(f"{what} is {_shown(text)}, expected a number") from None


def _flag(what: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise PolicyError(f"{what} is {_shown(text)}, expected 0 or 1")
    return text == "1"


_SETTINGS: dict[str, tuple[type[Cosine | Profiled | Random], dict[str, Callable[[str, str], float | bool]]]] = {
    "cosine": (
        Cosine,
        {"threshold": _number, "run": _count, "cold_start": _count, "cold_end": _count, "warmup": _count},
    ),
    "profile": (Profiled, {"rate": _number, "error": _number, "prefill": _flag, "warmup": _count}),
    "random": (Random, {"rate": _number, "seed": _count, "warmup": _count, "stand_in": _flag, "error": _number}),
}


def _parse_settings(name: str, rest: str) -> Policy:
    policy, known = _SETTINGS[name]
    values: dict[str, Any] = {}
    for item in rest.split(",") if rest else ():
        key, equals, text = item.partition("=")
        if not equals or key not in known:
            raise PolicyError(
                f"{name} has no setting {_shown(item)}, expected key=value with a key of {', '.join(sorted(known))}"
            )
        if key in values:
            raise PolicyError(f"{name} sets {key} twice, expected it once")
        values[key] = known[key](f"{name} {key}", text)
    return policy(**values)


def parse_skip(spec: str | float | Policy) -> Policy:
    """The policy that a skip specification stands for; a policy stands for itself. Raises PolicyError where it is
    malformed. Whether the model has the profile that a rate needs shows when the policy is set."""
    if isinstance(spec, (Off, Cosine, Static, Profiled, Random, Custom)):
        return spec
    if isinstance(spec, (int, float)) and not isinstance(spec, bool):
        spec = str(float(spec)) if abs(spec) < 1e300 else _shown(spec)
    if not isinstance(spec, str):
        raise PolicyError(f"skip is a {type(spec).__name__}, expected a specification such as 'off' or 'static:5,14'")
    name, colon, rest = spec.strip().partition(":")
    if name == "off" and not colon:
        return Off()
    if name in _SETTINGS:
        return _parse_settings(name, rest)
    if name == "static":
        return Static(tuple(_count("static layer", item.strip()) for item in rest.split(",")) if rest.strip() else ())
    if _is_rate(spec):
        return Profiled(rate=float(spec))
    raise PolicyError(
        f"skip is {_shown(spec)}, expected off, a rate such as 0.25, profile[:key=value,...], cosine[:key=value,...], "
        "static:LAYER,... or random[:key=value,...]"
    )


def _is_rate(spec: str) -> bool:
    try:
        return 0.0 <= float(spec) <= 1.0
    except ValueError:
        return False
