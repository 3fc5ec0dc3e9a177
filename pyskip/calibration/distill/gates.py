"""Gates that predict the harm: half the log of what a stand-in would add to the KL divergence.

To second order, a change of the stream by d = stand-in - y adds d' F d / 2 to the KL divergence of this and the later
tokens, F being the Fisher information: the mean over labels that the model itself draws of the squared slope of their
log-probability along d. One label a token gives a noisy, unbiased sample of it, for all layers in one backward pass.
After the first time it is taken while other blocks are skipped, as they will be.
"""

from __future__ import annotations

import torch

from .dense import Dense, Inner
from .loss import label_gradient
from .stand_ins import StandIns, features

__all__ = ["GATE_PRIOR", "Harm", "fit_gate", "fit_log_mean", "observe"]

GATE_PRIOR = 0.3  # strength of what a gate's weights, per standard deviation of their input, are drawn back with ...
N_PRIOR = 12_000  # ... by so many tokens; more say more than the start does
MIN_PRIOR = 0.03


class Harm:
    """features [n_layer, n, n_embd + 2] and the squared slope of each token's labels [n_layer, n]."""

    def __init__(self, n_layer: int) -> None:
        self.features: list[list[torch.Tensor]] = [[] for _ in range(n_layer)]
        self.squares: list[list[torch.Tensor]] = [[] for _ in range(n_layer)]

    @property
    def n(self) -> int:
        return sum(map(len, self.squares[0]))


def observe(
    dense: Dense, own: StandIns, window: torch.Tensor, thresholds: torch.Tensor | None, warmup: int,
    generator: torch.Generator, harm: Harm,
) -> None:  # fmt: skip
    """One pass over window [n, n_window]. thresholds: [n, n_window] that other blocks are skipped below."""
    slopes: list[torch.Tensor] = []
    seen = own.seen()

    def probe(il: int, x: torch.Tensor, xn: torch.Tensor, block: Inner) -> torch.Tensor:
        y = block(xn)
        with torch.no_grad():
            change = own.output(seen[il], xn) - y
            harm.features[il].append(features(x, xn)[:, warmup:].flatten(0, 1))
            skipped = None if thresholds is None else (own.score(il, x, xn) < thresholds)[..., None]
        slope = torch.zeros(xn.shape[:2], device=xn.device, requires_grad=True)
        slopes.append(slope)
        along = slope[..., None] if skipped is None else slope[..., None] + skipped
        return y + along * change

    with torch.enable_grad():
        stream = dense.stream(window, probe)
        scored = stream[:, warmup:].flatten(0, 1)
        gradient = label_gradient(dense, scored, generator)
        found = torch.autograd.grad(scored, slopes, gradient)
    for il, slope in enumerate(found):
        harm.squares[il].append(slope[:, warmup:].float().pow(2).flatten())


def fit_gate(own: StandIns, il: int, harm: Harm) -> torch.Tensor:
    """Sets the gate of a layer; returns its scores [n]."""
    f, h = torch.cat(harm.features[il]), torch.cat(harm.squares[il])
    prior = GATE_PRIOR * max(MIN_PRIOR, min(1.0, N_PRIOR / len(h)))
    own.gate[il] = fit_log_mean(f, h, 2 * own.gate[il], prior) / 2
    return f @ own.gate[il]


def fit_log_mean(f: torch.Tensor, h: torch.Tensor, start: torch.Tensor, prior: float = GATE_PRIOR) -> torch.Tensor:
    """w with mean(h) ~ exp(f @ w): the regression for exponentially distributed h >= 0 (their deviance is convex in w),
    drawn towards `start` up to a constant, which is what is returned if nothing better is found. f: [n, k], the last
    column 1. h: [n]."""
    f, h, start = f.double(), h.double(), start.double()
    scale = f.std(0)
    scale[-1] = 1.0
    scale = scale.clamp_min(1e-3 * float(scale.median()))
    z = f / scale
    w = start * scale
    w[-1] += ((h * torch.exp(-(z @ w))).clamp(max=30).mean() + 1e-30).log()
    anchor, strength = w.clone(), torch.full_like(w, prior)
    strength[-1] = 0.0
    w.requires_grad_(True)
    solver = torch.optim.LBFGS([w], max_iter=120, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        g = (z @ w).clamp(min=-60)  # a wild trial step of the line search must stay finite
        loss = (h * torch.exp(-g) + g).mean() + (strength * (w - anchor) ** 2).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    found = w.detach()
    return ((found if torch.isfinite(found).all() else anchor) / scale).float()
