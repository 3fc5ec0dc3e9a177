"""What a stand-in's error does to the model's next tokens: measured by skipping a few blocks at random, and explained.

The KL divergence to the dense model of a token t with the skipped blocks S is taken to be

    kld[t] ~ exp(2 tau(t)) * (sum over il in S of exp(2 (e[t, il] + u[il])) + background)

e is what the gates predict, the log of the stand-in's relative error; u how much a layer's errors cost against
another's; tau how much those of a token do, which is linear in what one block in the middle reads: some tokens the
model is sure about, or never looks back at. A gate then predicts e + u + tau. Called by calibrate.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._library import ffi, lib
from ..llama import Llama
from ..policy import Random
from ..profile import Profile
from .context import BatchContext, log_softmax
from .fit import F64, OUTLIER, exponential_regression
from .gather import Kind, gathering

__all__ = ["Explained", "Observed", "explain", "observe"]

RATE = 0.3  # of the blocks that may be skipped
LIKED = 0.5  # share of blocks that may be skipped: those with the lowest predicted errors
N_MASK = 3  # skips are drawn so often for each window
N_ROUND, N_STEP = 4, 8
LAYER_PRIOR = 30.0  # tokens' worth of belief that layers cost alike

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Observed:
    """By window and token. rows: what the block in the middle reads, its features as Kind.TARGETS has them."""

    rows: Floats  # [n, n_row]
    kld: Floats  # [n, N_MASK] nats
    scores: Floats  # [n, N_MASK, n_layer] what the gate of a skipped block says; inf where it ran
    counted: npt.NDArray[np.bool_]  # [n], whether a token is past the warm-up


@dataclass(frozen=True)
class Explained:
    """tau: [n] by token, u: [n_layer]; their middles are 0."""

    tau: F64
    u: F64


def observe(
    llm: Llama,
    profile: Profile,
    windows: Sequence[npt.NDArray[np.int32]],
    middle: int,
    seed: int,
    progress: Callable[[int, int], None],
) -> Observed:
    """Run the windows dense, and N_MASK times with blocks skipped at random."""
    n_window = max(map(len, windows))
    rows, kld, scores, counted = [], [], [], []
    with BatchContext(llm, 1, n_window, n_window) as one, BatchContext(llm, 1, n_window, n_window) as other:
        other.skip.set_trace(n_window)
        threshold = _threshold(other, profile, windows[0])
        with gathering(one.skip, Kind.TARGETS, None, profile.warmup) as native:
            lib.pyskip_gather_keep_rows(native, middle)
            for done, window in enumerate(windows, 1):
                dense = log_softmax(one.decode_window(window))
                kept = np.empty((len(window), llm.n_embd() + 2), np.float32)
                lib.pyskip_gather_get_rows(native, ffi.from_buffer("float[]", kept), kept.size)
                rows.append(kept)
                counted.append(np.arange(len(window)) >= profile.warmup)
                klds, skipped = [], []
                for k in range(N_MASK):
                    coin = Random(
                        rate=RATE, seed=seed + N_MASK * done + k, warmup=profile.warmup, stand_in=True, error=threshold
                    )
                    other.skip.set_policy(coin, profile)
                    logp = log_softmax(other.decode_window(window))
                    trace = other.skip.take_trace(n_window)
                    klds.append(_divergence(dense, logp))
                    skipped.append(np.where(trace.skipped, trace.similarity, np.inf))
                kld.append(np.stack(klds, 1))
                scores.append(np.stack(skipped, 1))
                progress(done, len(windows))
    return Observed(np.concatenate(rows), np.concatenate(kld), np.concatenate(scores), np.concatenate(counted))


def _threshold(context: BatchContext, profile: Profile, window: npt.NDArray[np.int32]) -> float:
    """The predicted error that LIKED of the blocks are below."""
    context.skip.set_policy(Random(rate=0.0, stand_in=True), profile)
    context.decode_window(window)
    scores = context.skip.take_trace(len(window)).similarity[profile.warmup :]
    return math.exp(float(np.nanquantile(scores, LIKED)))


def _divergence(dense: Floats, logp: Floats) -> Floats:
    parts = [
        (np.exp(dense[i : i + 32]) * (dense[i : i + 32] - logp[i : i + 32])).sum(axis=1)
        for i in range(0, len(dense), 32)
    ]
    return np.concatenate(parts).clip(min=0).astype(np.float32)


def explain(seen: Observed) -> Explained:
    """The model above by maximum likelihood for exponentially distributed kld, tau and u in turn."""
    n_mask = seen.kld.shape[1]
    rows = seen.rows.astype(np.float64)
    predicted = np.exp(2 * seen.scores.astype(np.float64))  # [n, n_mask, n_layer], 0 where a block ran
    predicted[~np.isfinite(seen.scores)] = 0.0
    use = seen.counted[:, None] & (predicted.sum(axis=2) > 0)
    kld = seen.kld[use].astype(np.float64)
    if not kld.any():  # no skip moved a logit
        return Explained(np.zeros(len(rows)), np.zeros(seen.scores.shape[2]))
    design = predicted[use]  # [m, n_layer]
    background = np.full((len(design), 1), np.median(design.sum(axis=1)))
    design = np.concatenate([design, background], 1)
    of_token = np.repeat(np.arange(len(rows)), n_mask).reshape(use.shape)[use]
    cost = np.full(design.shape[1], kld.mean() / design.sum(axis=1).mean())
    cost[-1] *= 0.1
    tau = np.zeros(len(rows))
    weight = np.zeros(rows.shape[1])
    for _ in range(N_ROUND):
        harm = kld / (design @ cost)
        weight = exponential_regression(rows[of_token], harm, weight)
        tau = rows @ weight / 2
        cost = _costs(design * np.exp(2 * tau[of_token])[:, None], kld, cost)
    u = 0.5 * np.log(cost[:-1])
    return Explained(tau - tau[seen.counted].mean(), np.asarray(u - np.median(u)))


def _costs(design: F64, kld: F64, cost: F64) -> F64:
    """cost >= 0 with kld ~ design @ cost, by the multiplicative steps of Itakura-Saito factorisation, each towards the
    middle of the layers as if LAYER_PRIOR tokens had said so."""
    for _ in range(N_STEP):
        mean = design @ cost
        up, down = design.T @ (np.minimum(kld / mean, OUTLIER) / mean), design.T @ (1 / mean)
        layers = cost[:-1]
        up[:-1] += LAYER_PRIOR * np.exp(np.median(np.log(layers))) / layers**2
        down[:-1] += LAYER_PRIOR / layers
        cost = np.maximum(cost * np.sqrt(up / down), 1e-12)
    return cost
