"""The two parts of a layer that get gates, and what differs between them while these are made."""

from __future__ import annotations

import enum
import math

import numpy as np
import numpy.typing as npt

from ..binding.library import lib
from ..policy import Policy, Profiled, Random
from ..stats import SkipTrace

__all__ = ["Sublayer"]


class Sublayer(enum.IntEnum):
    """enum pyskip_sublayer (native/include/pyskip.h)."""

    FFN = lib.PYSKIP_SUBLAYER_FFN
    ATTENTION = lib.PYSKIP_SUBLAYER_ATTENTION

    def named(self, what: str) -> str:
        """For people."""
        return what if self is Sublayer.FFN else f"{what} of attention"

    def decided(self, trace: SkipTrace) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
        """What was skipped, and the gates' scores, each [n, n_layer]."""
        if self is Sublayer.FFN:
            return trace.skipped, trace.similarity
        return trace.attention, trace.attention_similarity

    def below(self, threshold: float, warmup: int) -> Policy:
        """Skips these sublayers where their gates' scores are below the threshold, and no others."""
        error = math.exp(threshold) if threshold > -700 else 0.0
        if self is Sublayer.FFN:
            return Profiled(error=error, warmup=warmup)
        return self.coin(1.0, 0, warmup, error)

    def coin(self, rate: float, seed: int, warmup: int, error: float) -> Policy:
        """Skips that share of them at random, of those that are predicted less than this error, and no others."""
        ffn, attention = (rate, None) if self is Sublayer.FFN else (0.0, rate)
        return Random(rate=ffn, attn=attention, seed=seed, warmup=warmup, stand_in=True, error=error)
