"""Closed-form fits: least squares for stand-ins and gates, from sums alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .gather import LayerSums

__all__ = ["fit_gate", "fit_sensitivity", "fit_stand_in"]

STAND_IN_RIDGE = 1e-3  # of the mean diagonal of the gram matrix
GATE_RIDGE = 1e-4
SENSITIVITY_SD = 0.5  # of a layer's log sensitivity, before anything is known of it
N_PER_FEATURE = 2  # tokens a layer must have been seen with, for each of its features

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StandInFit:
    """bias [n_embd], and the matrices of write.LayerFit."""

    bias: F32
    matrices: dict[str, F32]


@dataclass(frozen=True)
class GateFit:
    """gate: [n_embd + 2]. r2: of the log error that it predicts, on the tokens that it was fitted on."""

    gate: F32
    r2: float


def _solve(gram: F64, cross: F64, ridge: float) -> F64:
    n = len(gram)
    penalty = ridge * np.trace(gram) / n
    gram = gram.copy()
    gram[np.arange(n), np.arange(n)] += penalty
    return np.asarray(np.linalg.solve(gram, cross), np.float64)


def fit_stand_in(sums: LayerSums, rank: int) -> tuple[StandInFit, float] | None:
    """The map of `rank` from the normed input (and 1) to the block's output with the least squared error, and the share
    of the output's energy that it explains. None where the tokens are too few to tell.

    Reduced-rank regression: the full solution, projected on the leading principal directions of its own outputs.
    """
    n_embd = len(sums.gram) - 2
    if sums.n_tokens < N_PER_FEATURE * n_embd:
        return None
    keep = np.r_[0:n_embd, n_embd + 1]  # without log(|x|)
    gram = sums.gram[np.ix_(keep, keep)].astype(np.float64)
    cross = sums.cross[keep].astype(np.float64)
    full = _solve(gram, cross, STAND_IN_RIDGE)  # [n_embd + 1, n_embd]
    if rank < n_embd:
        _, vectors = np.linalg.eigh(full.T @ gram @ full)
        basis = vectors[:, -rank:]  # [n_embd, rank]
        down = full[:n_embd] @ basis
        fitted = full @ basis @ basis.T
        matrices = {"skip_down": down.T.astype(np.float32), "skip_up": basis.astype(np.float32)}
    else:
        fitted = full
        matrices = {"skip_up": full[:n_embd].T.astype(np.float32)}
    missed = sums.energy - 2 * float((fitted * cross).sum()) + float((fitted * (gram @ fitted)).sum())
    explained = 1 - missed / sums.energy if sums.energy > 0 else 0.0
    return StandInFit(fitted[n_embd].astype(np.float32), matrices), explained


def fit_gate(sums: LayerSums) -> GateFit:
    """The linear prediction of log(|y - stand-in| / |x|) from the normed input, log(|x|) and 1."""
    gram, cross = sums.gram.astype(np.float64), sums.cross[:, 0].astype(np.float64)
    gate = _solve(gram, cross, GATE_RIDGE)
    missed = sums.energy - 2 * float(gate @ cross) + float(gate @ gram @ gate)
    mean = cross[-1] / sums.n_tokens
    variance = sums.energy / sums.n_tokens - mean**2
    return GateFit(gate.astype(np.float32), 1 - missed / sums.n_tokens / variance if variance > 0 else 0.0)


def fit_sensitivity(harm: F64, squared_errors: F64) -> F64:
    """The log of what an error of a layer costs, against an average layer's, from tokens whose skipped layers were
    drawn at random: harm[t] ~ background + scale * sum of exp(2 * u[il]) * squared_errors[t, il].

    harm: [n] KL divergence in nats. squared_errors: [n, n_layer] of predicted |y - stand-in|^2 / |x|^2, 0 where a
    layer was not skipped. Returns u, [n_layer]. The least squares have a normal prior of SENSITIVITY_SD on u, since a
    few thousand tokens tell little of a layer that is seldom skipped, and are solved by damped Newton steps in turn.
    """
    design = np.concatenate([squared_errors, np.full((len(harm), 1), np.median(squared_errors[squared_errors > 0]))], 1)
    gram, cross = design.T @ design, design.T @ harm
    scale = max(float(harm.mean() / design.sum(axis=1).mean()), 1e-12)
    noise = max(float(((harm - scale * design.sum(axis=1)) ** 2).mean()), 1e-12)
    u = np.zeros(design.shape[1])
    for _ in range(200):
        for il in range(len(u)):
            s = scale * np.exp(2 * u)
            slope = -2 * s[il] * (cross[il] - gram[il] @ s) / noise + u[il] / SENSITIVITY_SD**2
            curvature = (2 * s[il]) ** 2 * gram[il, il] / noise + 1 / SENSITIVITY_SD**2
            u[il] -= np.clip(slope / curvature, -0.3, 0.3)
    return np.asarray(u[:-1])
