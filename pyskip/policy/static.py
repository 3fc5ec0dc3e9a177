"""Depth pruning."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PolicyError
from .base import Fields, Operating, Policy, check_count, read_count

__all__ = ["Static"]


@dataclass(frozen=True)
class Static(Policy):
    """These layers' FFNs, and the attention of those in `attention`, are skipped for every token, the prompt's too
    (depth pruning). K and V of skipped attention are computed all the same.

    Raises PolicyError for empty sets and for layers that are not whole numbers from 0. Duplicates are one layer.
    """

    kind = "static"

    layers: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers and not self.attention:
            raise PolicyError("static names no layer, expected at least one, as in static:5,14,25 or static:attn=12+13")
        for name in ("layers", "attention"):
            for il in getattr(self, name):
                check_count("static layer", il)
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))

    def __str__(self) -> str:
        items = list(map(str, self.layers))
        if self.attention:
            items.append("attn=" + "+".join(map(str, self.attention)))
        return "static:" + ",".join(items)

    @classmethod
    def parse(cls, rest: str) -> Static:
        layers: list[int] = []
        attention: list[int] | None = None
        for item in rest.split(",") if rest.strip() else ():
            key, equals, text = item.strip().partition("=")
            if not equals:
                layers.append(read_count("static layer", key))
                continue
            if key != "attn" or attention is not None:
                raise PolicyError(f"static has {item.strip()[:40]!r}, expected layers, and attn=LAYER+... once")
            attention = [read_count("static attn", il.strip()) for il in text.split("+")]
        return cls(tuple(layers), tuple(attention or ()))

    @property
    def decides_prompt(self) -> bool:
        return True

    def fields(self, profile: Operating | None) -> Fields:
        return {"type": "PYSKIP_POLICY_STATIC", "layers": self.layers, "attention_layers": self.attention}
