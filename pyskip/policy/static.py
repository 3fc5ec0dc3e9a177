"""Depth pruning."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import PolicyError
from .base import Fields, Operating, Policy, check_count, read_count, read_flag

__all__ = ["BY", "Static"]

BY = ("loss", "cosine", "norm")  # what may have chosen sublayers: enum pyskip_static_by


@dataclass(frozen=True)
class Static(Policy):
    """These layers' FFNs, and the attention of those in `attention`, are skipped for every token, the prompt's too
    (depth pruning). K and V of skipped attention are computed all the same.

    n: in place of layers, so many sublayers that the model's profile names (`pyskip calibrate --static`), which were
        chosen `by` loss (the default), cosine or norm.
    stand_in: whether the stand-ins of the model's profile serve for those that it has them for (the emulated update);
        None: for n, with which they were measured.

    Raises PolicyError for empty sets, for layers that are not whole numbers from 0, and for layers beside n. Duplicates
    are one layer.
    """

    kind = "static"

    layers: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()
    n: int | None = None
    by: str | None = None
    stand_in: bool | None = None

    def __post_init__(self) -> None:
        if self.n is None:
            if not self.layers and not self.attention:
                raise PolicyError(
                    "static names no layer, expected at least one, as in static:5,14,25 or static:attn=12+13, or "
                    "static:n=4"
                )
            if self.by is not None:
                raise PolicyError(f"static has by={self.by[:40]}, expected n=N with it: layers are named, or chosen")
        elif self.layers or self.attention:
            raise PolicyError("static has n beside layers, expected one of them: layers are named, or chosen")
        else:
            check_count("static n", self.n)
            if self.n == 0:
                raise PolicyError("static n is 0, expected a whole number from 1: off skips nothing")
        if self.by is not None and self.by not in BY:
            raise PolicyError(f"static by is {self.by[:40]!r}, expected {', '.join(BY[:-1])} or {BY[-1]}")
        for name in ("layers", "attention"):
            for il in getattr(self, name):
                check_count("static layer", il)
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))

    def __str__(self) -> str:
        items = list(map(str, self.layers)) if self.n is None else [f"n={self.n}"]
        if self.attention:
            items.append("attn=" + "+".join(map(str, self.attention)))
        if self.by is not None:
            items.append(f"by={self.by}")
        if self.stand_in is not None:
            items.append(f"stand_in={int(self.stand_in)}")
        return "static:" + ",".join(items)

    @classmethod
    def parse(cls, rest: str) -> Static:
        layers: list[int] = []
        values: dict[str, str] = {}
        for item in rest.split(",") if rest.strip() else ():
            key, equals, text = item.strip().partition("=")
            if not equals:
                layers.append(read_count("static layer", key))
            elif key in ("attn", "n", "by", "stand_in") and key not in values:
                values[key] = text.strip()
            else:
                raise PolicyError(
                    f"static has {item.strip()[:40]!r}, expected layers, and attn=LAYER+..., n=N, by=NAME and "
                    "stand_in=0 or 1, each once"
                )
        named = values["attn"].split("+") if "attn" in values else ()
        return cls(
            tuple(layers),
            tuple(read_count("static attn", il.strip()) for il in named),
            read_count("static n", values["n"]) if "n" in values else None,
            values.get("by"),
            read_flag("static stand_in", values["stand_in"]) if "stand_in" in values else None,
        )

    @property
    def has_stand_ins(self) -> bool:
        return self.n is not None if self.stand_in is None else self.stand_in

    @property
    def needs_profile(self) -> bool:
        return self.n is not None or self.has_stand_ins

    @property
    def asks_gates(self) -> bool:
        return False

    @property
    def decides_prompt(self) -> bool:
        return True

    def fields(self, profile: Operating | None) -> Fields:
        fields = {
            "type": "PYSKIP_POLICY_STATIC",
            "layers": self.layers,
            "attention_layers": self.attention,
            "n_sublayers": self.n or 0,
            "static_by": BY.index(self.by or BY[0]),
            "bare": not self.has_stand_ins,
        }
        return {**fields, "profile": self.needed(profile).native} if self.needs_profile else fields
