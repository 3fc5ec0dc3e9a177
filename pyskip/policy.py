"""Skip policies as typed values, and the strings that stand for them in the CLI and in Python.

    off
    cosine:threshold=0.98,run=1,cold_start=4,cold_end=4,warmup=16
    static:5,14,25

``parse_skip(str(policy)) == policy`` for every policy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TypeAlias

from .errors import PolicyError, ProfileError

__all__ = ["Cosine", "Off", "Policy", "Static", "parse_skip"]

INT32_MAX = 2**31 - 1


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


Policy: TypeAlias = Off | Cosine | Static


def _check_count(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT32_MAX:
        raise PolicyError(f"{what} is {value!r}, expected a whole number from 0 to {INT32_MAX}")


def _count(what: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise PolicyError(f"{what} is {text!r}, expected a whole number from 0")
    return int(text)


def _parse_cosine(rest: str) -> Cosine:
    known = {field.name for field in fields(Cosine)}
    values: dict[str, float | int] = {}
    for item in rest.split(",") if rest else ():
        key, equals, text = item.partition("=")
        if not equals or key not in known:
            raise PolicyError(
                f"cosine has no setting {item!r}, expected key=value with a key of {', '.join(sorted(known))}"
            )
        if key in values:
            raise PolicyError(f"cosine sets {key} twice, expected it once")
        if key == "threshold":
            try:
                values[key] = float(text)
            except ValueError:
                raise PolicyError(f"cosine threshold is {text!r}, expected a number such as 0.98") from None
        else:
            values[key] = _count(f"cosine {key}", text)
    return Cosine(**values)  # type: ignore[arg-type]


def parse_skip(spec: str | float | Policy) -> Policy:
    """The policy that a skip specification stands for; a policy stands for itself.

    Raises PolicyError for a malformed specification, and ProfileError for one that needs a profile (a rate such as
    0.25, or profile:error=0.12), since profiles come with calibration, which this version does not have yet.
    """
    if isinstance(spec, (Off, Cosine, Static)):
        return spec
    if isinstance(spec, (int, float)) and not isinstance(spec, bool):
        spec = str(float(spec))
    if not isinstance(spec, str):
        raise PolicyError(f"skip is a {type(spec).__name__}, expected a specification such as 'off' or 'static:5,14'")
    name, colon, rest = spec.strip().partition(":")
    if name == "off" and not colon:
        return Off()
    if name == "cosine":
        return _parse_cosine(rest)
    if name == "static":
        return Static(tuple(_count("static layer", item.strip()) for item in rest.split(",")) if rest.strip() else ())
    if name == "profile" or _is_rate(spec):
        raise ProfileError(
            f"skip {spec!r} needs a calibrated profile, which this version cannot make yet: use cosine or static"
        )
    shown = spec if len(spec) <= 60 else spec[:57] + "..."
    raise PolicyError(f"skip is {shown!r}, expected off, cosine[:key=value,...] or static:LAYER,...")


def _is_rate(spec: str) -> bool:
    try:
        return 0.0 <= float(spec) <= 1.0
    except ValueError:
        return False
