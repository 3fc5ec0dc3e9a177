"""Logits to what is told of them: log-likelihoods, divergence from dense, likeliest tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import DecodeError
from ..runtime.engine import Floats

__all__ = ["Scores", "score"]

ROWS = 8  # of logits that are worked on at a time: a few MB, which stay in the cache


class Scores(NamedTuple):
    """Of scored tokens. Figures by kind, [3, n] as an array: a Record's values."""

    log_p: npt.NDArray[np.float64]
    kld: npt.NDArray[np.float64]
    top: npt.NDArray[Any]


def score(logits: Floats, targets: Sequence[int], dense: Floats | None, *, is_dense: bool) -> Scores:
    """Scores of logits [n, n_vocab]; `dense`, the log-probabilities to compare with, is filled if is_dense. None:
    there are none. Raises DecodeError if a logit is not finite."""
    n = len(logits)
    log_p, kld, top = np.empty(n), np.zeros(n), logits.argmax(axis=1)
    for begin in range(0, n, ROWS):
        rows = slice(begin, min(begin + ROWS, n))
        if not np.isfinite(logits[rows]).all():
            raise DecodeError("logits are not finite: weights of the model or of its profile are damaged or overflow")
        each = np.arange(rows.stop - begin)
        log_q = logits[rows] - logits[rows][each, top[rows], None]
        log_q -= np.log(np.exp(log_q).sum(axis=1, keepdims=True))
        log_p[rows] = log_q[each, targets[rows]]
        if dense is None:
            kld[rows] = math.nan
        elif is_dense:
            dense[rows] = log_q
        else:
            np.subtract(dense[rows], log_q, out=log_q)
            kld[rows] = np.einsum("ij,ij->i", np.exp(dense[rows]), log_q)
    return Scores(log_p, kld, top)
