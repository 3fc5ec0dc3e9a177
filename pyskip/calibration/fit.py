"""Closed-form fits: least squares for stand-ins and gates, from sums alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .gather import LayerSums

__all__ = [
    "GateFit",
    "StandInFit",
    "attention_rank",
    "fit_gate",
    "fit_gated_stand_in",
    "fit_linear_stand_in",
    "fit_token_harm",
]

LINEAR_RIDGE, GATE_RIDGE = 1e-3, 1e-2  # of the mean diagonal of the gram matrix
GATED_RIDGE, N_PRIOR = 0.3, 3000  # of each neuron's own square, and so many tokens' worth of belief in the block's own
HARM_RIDGES = 10.0 ** np.arange(-3.0, 2.5, 0.5)  # of the mean eigenvalue
HARM_SHARE = (
    0.3  # of what a token minds that its gates heed: with all of it they skip every layer of the same few tokens
)
HARM_CAUTION = 1.4  # how much more a fitted number counts than one, since neighbouring tokens are alike
N_PER_FEATURE = 2  # tokens that a linear stand-in must have been seen with, for each of its features

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StandInFit:
    """bias: [n_embd]. matrices: those of write.LayerFit that were fitted. explained: share of the output's energy.
    importance: [width], mean squares of what a gated one's skip_down reads."""

    bias: F32
    matrices: dict[str, F32]
    explained: float
    importance: F32 | None = None


@dataclass(frozen=True)
class GateFit:
    """gate: [n_embd + 2]. r2: of its prediction, on the tokens that it was fitted on. log_x: the mean of log(|x|)."""

    gate: F32
    r2: float
    log_x: float


def attention_rank(n_embd: int) -> int:
    """Of linear stand-ins of attention: a quarter of the bytes of Q's and the output's weights, whole blocks of 32."""
    return min(n_embd, max(32, n_embd // 4 // 32 * 32))


def _solve(gram: F64, cross: F64, penalty: F64 | float) -> F64:
    gram = gram.copy()
    gram[np.diag_indices_from(gram)] += penalty
    return np.asarray(np.linalg.solve(gram, cross), np.float64)


def _mean_diagonal(gram: F64) -> float:
    return float(np.trace(gram)) / len(gram)


def _scale(start: F64, gram: F64, cross: F64) -> float:
    """What the map from features to outputs is best multiplied with."""
    own = float((start * (gram @ start)).sum())
    return float((start * cross).sum()) / own if own > 0 else 1.0


def _explained(fitted: F64, product: F64, cross: F64, energy: float) -> float:
    """product: gram @ fitted."""
    missed = energy - 2 * float((fitted * cross).sum()) + float((fitted * product).sum())
    return 1 - missed / energy if energy > 0 else 0.0


def fit_linear_stand_in(sums: LayerSums, rank: int) -> StandInFit | None:
    """From Kind.OUTPUTS: the map of `rank` from the normed input (and 1) to the block's output with the least squared
    error; of rank 0 the mean output. None if the tokens are too few to tell.

    Reduced-rank regression: the full solution, projected on the leading principal directions of its own outputs.
    """
    n_embd = len(sums.gram) - 2
    if sums.n_tokens < N_PER_FEATURE * n_embd:
        return None
    keep = np.r_[0:n_embd, n_embd + 1]  # without log(|x|)
    gram = sums.gram[np.ix_(keep, keep)].astype(np.float64)
    cross = sums.cross[keep].astype(np.float64)
    if rank == 0:
        fitted = np.zeros_like(cross)
        fitted[n_embd] = cross[n_embd] / sums.n_tokens
        return StandInFit(fitted[n_embd].astype(np.float32), {}, _explained(fitted, gram @ fitted, cross, sums.energy))
    full = _solve(gram, cross, LINEAR_RIDGE * _mean_diagonal(gram))  # [n_embd + 1, n_embd]
    if rank < n_embd:
        _, vectors = np.linalg.eigh(full.T @ gram @ full)
        basis = vectors[:, -rank:]  # [n_embd, rank]
        down = full[:n_embd] @ basis
        fitted = full @ basis @ basis.T
        matrices = {"skip_down": down.T.astype(np.float32), "skip_up": basis.astype(np.float32)}
    else:
        fitted = full
        matrices = {"skip_up": full[:n_embd].T.astype(np.float32)}
    explained = _explained(fitted, gram @ fitted, cross, sums.energy)
    return StandInFit(fitted[n_embd].astype(np.float32), matrices, explained)


def fit_gated_stand_in(sums: LayerSums, down: F32, *, is_normed: bool = False) -> StandInFit:
    """From Kind.HIDDEN: skip_down [n_embd, width] and the bias with the least squared error, drawn back to `down`, the
    columns that the block itself has for these neurons; of normed hidden values, up to a scale."""
    gram, cross = sums.gram.astype(np.float64), sums.cross.astype(np.float64)
    start = np.concatenate([down.T.astype(np.float64), np.zeros((1, len(down)))])  # [width + 1, n_embd]
    if is_normed:
        start *= _scale(start, gram, cross)
    diagonal = gram.diagonal()
    penalty = (GATED_RIDGE + N_PRIOR / max(1, sums.n_tokens)) * diagonal + 1e-6 * diagonal.mean()
    penalty[-1] = 0  # the bias is free
    more = _solve(gram, cross - gram @ start, penalty)
    fitted, product = start + more, cross - penalty[:, None] * more  # of a wide gram the product takes a second
    explained = _explained(fitted, product, cross, sums.energy)
    importance = (diagonal[:-1] / max(1, sums.n_tokens)).astype(np.float32)
    matrices = {"skip_down": fitted[:-1].T.astype(np.float32)}
    return StandInFit(fitted[-1].astype(np.float32), matrices, explained, importance)


def fit_gate(sums: LayerSums) -> GateFit:
    """The linear prediction of the target of Kind.ERRORS."""
    gram, cross = sums.gram.astype(np.float64), sums.cross[:, 0].astype(np.float64)
    gate = _solve(gram, cross, GATE_RIDGE * _mean_diagonal(gram))
    missed = 1 - _explained(gate, gram @ gate, cross, sums.energy)
    variance = 1 - cross[-1] ** 2 / sums.n_tokens / sums.energy if sums.energy > 0 else 0.0
    r2 = 1 - missed / variance if variance > 0 else 0.0
    return GateFit(gate.astype(np.float32), r2, float(gram[-2, -1]) / sums.n_tokens)


def fit_token_harm(sums: LayerSums) -> F32:
    """From Kind.GIVEN with harm.token_harm(): what a gate is to add for the token, [n_embd + 2]; HARM_SHARE of half the
    log, since harm is the square of what gates predict, such that harm stays the same on average.

    Ridge regression on features of equal variance; how much of it by generalised cross-validation.
    """
    n = sums.n_tokens
    mean = sums.gram[-1, :-1].astype(np.float64) / n
    gram = sums.gram[:-1, :-1].astype(np.float64) - n * np.outer(mean, mean)
    cross = sums.cross[:-1, 0].astype(np.float64) - mean * float(sums.cross[-1, 0])
    energy = sums.energy - float(sums.cross[-1, 0]) ** 2 / n
    size = np.sqrt(np.maximum(gram.diagonal(), 1e-12 * max(1e-30, _mean_diagonal(gram))))
    values, vectors = np.linalg.eigh(gram / np.outer(size, size))
    values, along = np.maximum(values, 0), vectors.T @ (cross / size)

    def error(ridge: float) -> float:
        shrunk = along / (values + ridge)
        left = energy - 2 * float(shrunk @ along) + float(shrunk**2 @ values)
        used = HARM_CAUTION * float((values / (values + ridge)).sum()) / n
        return left / (1 - used) ** 2 if used < 1 else np.inf

    ridge = min((float(r * values.mean()) for r in HARM_RIDGES), key=error)
    if error(ridge) >= energy:  # what it finds is noise
        return np.zeros(len(sums.gram), np.float32)
    heeded = HARM_SHARE * (vectors @ (along / (values + ridge)) / size)
    variance = float(heeded @ gram @ heeded) / n
    return (0.5 * np.append(heeded, -(heeded @ mean) - variance / 2)).astype(np.float32)
