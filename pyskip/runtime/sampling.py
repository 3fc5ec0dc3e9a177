"""How a token is chosen: llama.cpp's samplers by the names of its flags, and what a model's file recommends."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..binding.library import llama_cpp
from ..binding.pieces import dry_sampler
from ..errors import DecodeError

__all__ = ["Dry", "Sampling", "for_chat", "recommended"]

CHAT = {"temp": 0.8}  # of llama.cpp's chats, as the other defaults below; at 0 small models repeat themselves

# The file's keys, after general.sampling., by ours
KEYS = {"temp": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repeat_penalty": "penalty_repeat"}


@dataclass(frozen=True)
class Sampling:
    """temp 0 takes the likeliest token, whatever top_k, top_p and min_p are. Penalties look at the last 64 tokens of
    the answer, DRY at those of the prompt, too."""

    temp: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64

    def arguments(self) -> dict[str, Any]:
        """For Llama.generate()."""
        return asdict(self)


# common_params_sampling's
DRY_BREAKERS = (b"\n", b":", b'"', b"*")


@dataclass(frozen=True)
class Dry:
    """A penalty on what would go on with a repetition of allowed_length tokens or more, among the last penalty_last_n:
    multiplier * base ** (its length - allowed_length) off that token's score. A multiplier of 0: none.

    Raises DecodeError for values out of range."""

    multiplier: float = 0.0
    base: float = 1.75
    allowed_length: int = 2
    penalty_last_n: int = 64

    def __post_init__(self) -> None:
        for name, value, least, kind in (
            ("multiplier", self.multiplier, 0, "number"),
            ("base", self.base, 1, "number"),
            ("allowed_length", self.allowed_length, 0, "whole number"),
            ("penalty_last_n", self.penalty_last_n, 0, "whole number"),
        ):
            is_kind = isinstance(value, (int, float) if kind == "number" else int) and not isinstance(value, bool)
            if not is_kind or not least <= value < 2**31:
                raise DecodeError(f"dry_{name} is {value!r}, expected a {kind} from {least} to {2**31 - 1}")

    def add_to(self, sampler: Any, vocab: Any, n_ctx: int, before: Sequence[int]) -> None:
        """Into a LlamaSampler's chain, behind the penalties, where llama.cpp has it. before: the prompt."""
        if not self.multiplier or not self.penalty_last_n:
            return
        n = min(self.penalty_last_n, n_ctx)
        address = dry_sampler(vocab, self.multiplier, self.base, self.allowed_length, n, DRY_BREAKERS)
        own = ctypes.cast(address, llama_cpp.llama_sampler_p_ctypes)
        for token in before[-n:]:
            llama_cpp.llama_sampler_accept(own, token)
        chain, place = sampler.sampler, len(sampler.custom_samplers) + 1
        n_behind = llama_cpp.llama_sampler_chain_n(chain) - place
        behind = [llama_cpp.llama_sampler_chain_remove(chain, place) for _ in range(n_behind)]
        for one in (own, *behind):
            llama_cpp.llama_sampler_chain_add(chain, one)


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


def for_chat(metadata: Mapping[str, str]) -> dict[str, float]:
    """How a chat samples if nobody says otherwise: as recommended(), else as llama.cpp's own chats."""
    return {**CHAT, **recommended(metadata)}
