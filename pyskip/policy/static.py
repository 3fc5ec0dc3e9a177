"""Depth pruning."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PolicyError
from .base import Fields, Operating, Policy, check_count, read_count

__all__ = ["Static"]


@dataclass(frozen=True)
class Static(Policy):
    """These layers' FFNs are skipped for every token, the prompt's too (depth pruning).

    Raises PolicyError for an empty set and for layers that are not whole numbers from 0. Duplicates are one layer.
    """

    kind = "static"

    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise PolicyError("static names no layer, expected at least one, as in static:5,14,25")
        for il in self.layers:
            check_count("static layer", il)
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))

    def __str__(self) -> str:
        return "static:" + ",".join(map(str, self.layers))

    @classmethod
    def parse(cls, rest: str) -> Static:
        layers = rest.split(",") if rest.strip() else ()
        return cls(tuple(read_count("static layer", item.strip()) for item in layers))

    @property
    def decides_prompt(self) -> bool:
        return True

    def fields(self, profile: Operating | None) -> Fields:
        return {"type": "PYSKIP_POLICY_STATIC", "layers": self.layers}
