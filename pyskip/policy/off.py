"""Dense."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Fields, Operating, Policy
from .profiled import Profiled

__all__ = ["Off"]


@dataclass(frozen=True)
class Off(Policy):
    """Dense: the graph is upstream's own."""

    kind = "off"

    @property
    def is_dense(self) -> bool:
        return True

    def paced_from(self) -> Profiled:
        return Profiled(rate=0.0)

    def with_prompt(self, rate: float) -> Profiled:
        return Profiled(rate=0.0, prompt=rate)

    def fields(self, profile: Operating | None) -> Fields:
        return {"type": "PYSKIP_POLICY_OFF"}

    def __str__(self) -> str:
        return "off"
