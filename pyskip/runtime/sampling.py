"""How a token is chosen: llama.cpp's samplers by the names of its flags, and what a model's file recommends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Sampling", "recommended"]

# The file's keys, after general.sampling., by ours
KEYS = {"temp": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repeat_penalty": "penalty_repeat"}


@dataclass(frozen=True)
class Sampling:
    """temp 0 takes the likeliest token, whatever top_k, top_p and min_p are. Penalties look at the last 64 tokens."""

    temp: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def arguments(self) -> dict[str, Any]:
        """For Llama.generate()."""
        return asdict(self)


def recommended(metadata: Mapping[str, str]) -> dict[str, float]:
    """What the file of a model says of how to sample from it (general.sampling.*), by the names of Sampling."""
    found: dict[str, float] = {}
    for name, key in KEYS.items():
        try:
            value = float(metadata.get(f"general.sampling.{key}", "nan"))
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0:
            found[name] = int(value) if name == "top_k" else value
    return found
