"""The paper's policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from ..errors import PolicyError
from .base import Fields, Operating, Policy, Settings, check_count, read_count, read_number

__all__ = ["Cosine"]


@dataclass(frozen=True)
class Cosine(Policy):
    """The paper's policy (FFN-SkipLLM, arXiv 2404.03865, section 3).

    threshold: after an executed FFN, cos(x, z) >= threshold skips the next blocks; x is the residual stream entering
        the block, z the one leaving it. 2 never skips.
    run: how many blocks (layers) one positive test skips; 0 means all up to the cold end.
    cold_start, cold_end: the first and last layers, which always run.
    warmup: the first generated tokens of a sequence, which run dense.

    Raises PolicyError for a threshold that is not finite and for counts that are not whole numbers from 0.
    """

    kind = "cosine"
    settings: ClassVar[Settings] = {
        "threshold": read_number,
        "run": read_count,
        "cold_start": read_count,
        "cold_end": read_count,
        "warmup": read_count,
    }

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
            check_count(f"cosine {name}", getattr(self, name))

    def __str__(self) -> str:
        return "cosine:" + ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))

    def fields(self, profile: Operating | None) -> Fields:
        return {
            "type": "PYSKIP_POLICY_COSINE",
            "threshold": max(-3.0e38, min(self.threshold, 3.0e38)),  # float32
            "run": self.run,
            "warmup": self.warmup,
            "cold_start": self.cold_start,
            "cold_end": self.cold_end,
        }
