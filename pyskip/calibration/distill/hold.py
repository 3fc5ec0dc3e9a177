"""The thresholds that a held rate would give: native/src/hold.cpp over many sequences at once, from dense scores.

At run time a threshold follows from the scores and decisions of the sequence's tokens before it. Here both come from
the scores of the dense pass, which is known before the pass with stand-ins begins: close enough to train under the
same swings. What these scores are off by on average, train.py makes up for with a shift for each rate.
"""

from __future__ import annotations

import torch

__all__ = ["hold_thresholds"]

SPAN, WINDOW, GAIN, HORIZON = 4, 128, 0.9, 8.0
MAX_ERROR, MAX_MAKE_UP, N_PRIOR = 6.0, 3.2, 8.0


@torch.no_grad()  # type: ignore[untyped-decorator]
def hold_thresholds(scores: torch.Tensor, rates: torch.Tensor, start: torch.Tensor, warmup: int) -> torch.Tensor:
    """scores: [n, n_window, n_layer] of the dense pass; rates, start: [n], the share to skip and the threshold before
    anything is known. Returns [n, n_window]; -inf in the warm-up."""
    n, n_window = scores.shape[:2]
    found = torch.full((n, n_window), -torch.inf, device=scores.device)
    owed = rates * warmup
    error = -warmup * rates * (MAX_MAKE_UP / owed.clamp_min(1e-6)).clamp(max=0.5)
    for begin in range(warmup, n_window, SPAN):
        end = min(begin + SPAN, n_window)
        threshold = start
        past = scores[:, max(warmup, begin - WINDOW) : begin]
        if past.shape[1]:
            ordered = past.reshape(n, -1).sort(1).values
            n_scores = ordered.shape[1]
            wanted = (rates - GAIN * error / HORIZON) * n_scores
            place = wanted.long().clamp(0, n_scores - 1)
            own = ordered.gather(1, place[:, None])[:, 0]
            share = (N_PRIOR / (N_PRIOR + past.shape[1])) ** 2
            threshold = torch.where(wanted <= 0, -torch.inf, own + share * (start - own))
        found[:, begin:end] = threshold[:, None]
        skipped = (scores[:, begin:end] < threshold[:, None, None]).float().mean(2).sum(1)
        error = (error + skipped - rates * (end - begin)).clamp(-MAX_ERROR, MAX_ERROR)
    return found
