"""What a stand-in's error does to the model's next tokens: measured by skipping a few blocks at random, and explained.

The KL divergence to the dense model of a token t with the skipped blocks S is taken to be

    kld[t] ~ sum over il in S of exp(2 (e[t, il] + u[il])) + background

e is what the gates predict, the log of the stand-in's error against the stream's usual size; u how much a layer's
errors cost against another's. What that leaves unexplained is how much the token minds: where the model is sure of what
comes next, an error moves little. Of this v[t, il] is what a linear map of the block's input can tell (fit.py). A gate
then predicts e + u + v. Called by calibrate.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..evaluation.score import score
from ..models.profile import Profile
from ..policy import Off
from ..runtime.batch import BatchContext
from ..runtime.llama import Llama
from .fit import F64
from .sublayer import Sublayer

__all__ = ["Observed", "layer_harm", "observe", "token_harm"]

RATE = 0.3  # of the blocks that may be skipped
LIKED = 0.5  # share of blocks that may be skipped: those with the lowest predicted errors
N_MASK = 2  # skips are drawn so often for each window
N_STEP = 32
OUTLIER = 30.0  # times its expectation: what a single token may count at most
LAYER_PRIOR = 30.0  # tokens' worth of belief that layers cost alike
FLOOR = 0.02  # of the mean: what a token's divergence counts at least, so that its log is no noise

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Observed:
    """By window, mask (N_MASK) and token past the warm-up, n of them."""

    kld: Floats  # [n] nats
    scores: Floats  # [n, n_layer] what the gate of a skipped block says; inf if it ran


def observe(
    llm: Llama,
    profile: Profile,
    windows: Sequence[npt.NDArray[np.int32]],
    seed: int,
    progress: Callable[[int, int], None],
    sublayer: Sublayer = Sublayer.FFN,
) -> Observed:
    """Run the windows dense, and N_MASK times with blocks of a kind skipped at random."""
    n_window, first = max(map(len, windows)), profile.warmup
    kld, scores = [], []
    with BatchContext(llm, 1, n_window, n_window) as context:
        context.skip.set_trace(n_window)
        error = _liked(context, profile, windows[0], sublayer)
        for done, window in enumerate(windows):
            context.skip.set_policy(Off(), None)
            tokens = window[first:].tolist()  # whose own likelihood is not looked at
            dense = np.empty((len(tokens), llm.n_vocab()), np.float32)
            score(context.decode_window(window)[first:], tokens, dense, is_dense=True)
            for k in range(N_MASK):
                context.skip.set_policy(sublayer.coin(RATE, seed + N_MASK * done + k, first, error), profile)
                scored = score(context.decode_window(window)[first:], tokens, dense, is_dense=False)
                kld.append(scored.kld.clip(min=0).astype(np.float32))
                skipped, predicted = sublayer.decided(context.skip.take_trace(n_window))
                scores.append(np.where(skipped, predicted, np.inf)[first:])
            progress(done + 1, len(windows))
    return Observed(np.concatenate(kld), np.concatenate(scores))


def _liked(context: BatchContext, profile: Profile, window: npt.NDArray[np.int32], sublayer: Sublayer) -> float:
    """The predicted error that LIKED of the blocks are below."""
    context.skip.set_policy(sublayer.below(-math.inf, profile.warmup), profile)
    context.decode_window(window)
    _, predicted = sublayer.decided(context.skip.take_trace(len(window)))
    scores = predicted[profile.warmup :]
    return math.exp(float(np.nanquantile(scores, LIKED)))


def layer_harm(seen: Observed) -> tuple[F64, F64]:
    """u, [n_layer], its middle 0: the model above by maximum likelihood for exponentially distributed kld, by the
    multiplicative steps of Itakura-Saito factorisation, each towards the middle of the layers as if LAYER_PRIOR tokens
    had said so. And the kld that it expects, [n], 0 where nothing was skipped."""
    predicted = np.exp(2 * np.where(np.isfinite(seen.scores), seen.scores, -np.inf).astype(np.float64))
    use = predicted.any(axis=1)
    kld, design = seen.kld[use].astype(np.float64), predicted[use]
    expected = np.zeros(len(seen.kld))
    if not kld.any():  # no skip moved a logit
        return np.zeros(seen.scores.shape[1]), expected
    design = np.concatenate([design, np.full((len(design), 1), np.median(design.sum(axis=1)))], 1)
    cost = np.full(design.shape[1], kld.mean() / design.sum(axis=1).mean())
    cost[-1] *= 0.1
    for _ in range(N_STEP):
        mean = design @ cost
        up, down = design.T @ (np.minimum(kld / mean, OUTLIER) / mean), design.T @ (1 / mean)
        layers = cost[:-1]
        up[:-1] += LAYER_PRIOR * np.exp(np.median(np.log(layers))) / layers**2
        down[:-1] += LAYER_PRIOR / layers
        cost = np.maximum(cost * np.sqrt(up / down), 1e-12)
    u = 0.5 * np.log(cost[:-1])
    expected[use] = design @ cost
    return np.asarray(u - np.median(u)), expected


def token_harm(seen: Observed, expected: F64, n_windows: int) -> Floats:
    """[n_windows, tokens past the warm-up]: the log of what skips cost a token over what was expected; NaN of one that
    had none."""
    by_token = (n_windows, N_MASK, -1)
    cost, due = (np.reshape(a, by_token).astype(np.float64).sum(axis=1) for a in (seen.kld, expected))
    floor = FLOOR * cost.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(due > 0, np.log((cost + floor) / (due + floor)), np.nan).astype(np.float32)
