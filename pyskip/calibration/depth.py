"""Depth pruning: which sublayers are missed least if no token computes them. Called by `pyskip calibrate --static`.

Greedily: to the sublayers that were chosen so far comes the one without which the model's next tokens differ least
from the dense model's, by the KL divergence measured on text. What a sublayer added to the divergence when it was last
looked at tells in which order to look again, and sublayers mostly add more the more are gone: once one adds less than
all others did when they were last looked at, these need no look.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import PolicyError
from ..evaluation.results import exp
from ..evaluation.score import score
from ..policy import Off, Policy, Static
from ..runtime.batch import BatchContext
from ..runtime.llama import Llama
from .calibrate import Settings, open_model
from .sublayer import Sublayer
from .text import Progress, Tokens, read_text, sample_text

__all__ = ["StaticSet", "choose", "measuring", "static_sets"]

N_WINDOW = 3  # of text, if nobody says how many; of each the second half counts

Floats = npt.NDArray[np.float64]
Place = tuple[Sublayer, int]  # which of a layer, and the layer


@dataclass(frozen=True)
class StaticSet:
    """Sublayers that no token computes. skip: the specification. Figures are those of the text that chose them."""

    skip: str
    n: int
    kld_mean: float  # nats per token, dense || skipped
    ppl_ratio: float  # perplexity / dense perplexity


def static_sets(
    model: str | os.PathLike[str], settings: Settings, n: int, progress: Progress, n_threads: int | None = None
) -> Iterator[StaticSet]:
    """Sets of 1, 2, ... n sublayers, each with one more than the set before it, as soon as it is found.

    Of the settings text, n_fit (here N_WINDOW by default) and seed count. Raises PyskipError (text), PolicyError if the
    model has fewer sublayers that can be skipped.
    """
    with open_model(model, n_threads) as llm:
        places = [(Sublayer.FFN, il) for il in llm.skippable_layers]
        places += [(Sublayer.ATTENTION, il) for il in llm.skippable_attention]
        if n >= len(places):
            raise PolicyError(
                f"{n} sublayers were asked for, expected 1 to {len(places) - 1}: {os.fspath(model)} has {len(places)} "
                "that can be skipped"
            )
        n_text, n_ctx = settings.n_fit or N_WINDOW, llm.n_ctx()
        if settings.text:
            text = read_text(llm, settings.text, n_ctx, n_text, 1, settings.seed)
        else:
            text = sample_text(llm, n_ctx, n_text, 1, settings.seed, progress)
        with measuring(llm, text.fitted) as cost:
            yield from choose(places, n, cost, progress)


def choose(
    places: Sequence[Place], n: int, cost: Callable[[Policy], tuple[float, float]], progress: Progress
) -> Iterator[StaticSet]:
    """cost: the divergence, and the perplexity ratio, under a policy."""
    chosen: list[Place] = []
    before = 0.0  # the divergence of what is chosen
    waiting = [(-np.inf, i, 0) for i in range(len(places))]  # what it added when it was looked at, which, at what size
    for size in range(1, n + 1):
        n_looked, found = 0, dict[int, tuple[float, float]]()
        while waiting[0][2] < size:
            i = waiting[0][1]
            found[i] = cost(_static([*chosen, places[i]]))
            heapq.heapreplace(waiting, (found[i][0] - before, i, size))
            n_looked += 1
            progress(f"sublayer {size}", n_looked, len(waiting), "")
        i = heapq.heappop(waiting)[1]
        chosen.append(places[i])
        before = found[i][0]
        yield StaticSet(str(_static(chosen)), size, *found[i])


def _static(places: Sequence[Place]) -> Static:
    layers, attention = (tuple(il for kind, il in places if kind is wanted) for wanted in Sublayer)
    return Static(layers, attention)


@contextmanager
def measuring(llm: Llama, windows: Sequence[Tokens]) -> Iterator[Callable[[Policy], tuple[float, float]]]:
    """What a policy costs on windows of text: the mean KL divergence to dense, in nats, and perplexity / dense
    perplexity. Of each window the second half is scored, whose dense log-probabilities are kept: 4 * n_vocab bytes a
    token. Every token counts as generated."""
    n_window = max(map(len, windows))
    kept = [np.empty((len(w) - 1 - len(w) // 2, llm.n_vocab()), np.float32) for w in windows]
    with BatchContext(llm, 1, n_window, n_window) as context:

        def scores(policy: Policy) -> tuple[Floats, Floats]:
            context.skip.set_policy(policy)
            scored = []
            for window, dense in zip(windows, kept, strict=True):
                n, first = len(window), len(window) // 2
                context.clear()
                wanted = (np.arange(n) >= first) & (np.arange(n) < n - 1)
                logits = context.decode(window.tolist(), range(n), [0] * n, wanted)
                scored.append(score(logits, window[first + 1 :].tolist(), dense, is_dense=policy.is_dense))
            return np.concatenate([s.log_p for s in scored]), np.concatenate([s.kld for s in scored])

        dense_log_p, _ = scores(Off())

        def cost(policy: Policy) -> tuple[float, float]:
            log_p, kld = scores(policy)
            return float(kld.mean()), exp(float((dense_log_p - log_p).mean()))

        yield cost
