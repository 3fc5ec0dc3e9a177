"""Depth pruning: which sublayers are missed least if no token computes them. Called by `pyskip calibrate --static`.

By the cosine between the stream before and behind a sublayer, by how much it adds to the stream, both on a dense run;
and by loss, greedily: to the sublayers that were chosen so far comes the one without which the model's next tokens
differ least from the dense model's. What a sublayer added to the divergence when it was last looked at tells in which
order to look again, and sublayers mostly add more the more are gone: once one adds less than all others did when they
were last looked at, these need no look. The profile's stand-ins serve in all of it.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ..errors import PolicyError
from ..evaluation.results import exp
from ..evaluation.score import score
from ..models.profile import StaticStep
from ..policy import Off, Policy, Static
from ..runtime.batch import BatchContext
from ..runtime.llama import Llama
from .calibrate import WARMUP, Settings, open_model
from .gather import Kind, LayerSums, gather
from .sublayer import Sublayer
from .text import Progress, Tokens, read_text, sample_text

__all__ = ["StaticSet", "choose", "measuring", "static_sets", "steps_of"]

N_WINDOW = 3  # of text, if nobody says how many; of each the second half counts

Floats = npt.NDArray[np.float64]
Place = tuple[Sublayer, int]  # which of a layer, and the layer


@dataclass(frozen=True)
class StaticSet:
    """Sublayers that no token computes, and what that costs on text that did not choose them.

    by: what chose them, of the policy's words. last: the one that the set before it has not. skip: the specification.
    """

    by: str
    n: int
    last: Place
    kld_mean: float  # nats per token, dense || skipped
    ppl_ratio: float  # perplexity / dense perplexity
    skip: str


def static_sets(
    model: str | os.PathLike[str],
    profile: str | os.PathLike[str],
    settings: Settings,
    n: int,
    progress: Progress,
    n_threads: int | None = None,
) -> Iterator[StaticSet]:
    """Sets of 1, 2, ... n sublayers by cosine, by norm and by loss, each with one more than the set before it, as soon
    as it is found, with the stand-ins of the model's profile.

    Of the settings text, n_fit (here N_WINDOW by default), n_measured and seed count. Raises PyskipError (text),
    PolicyError if the model has fewer sublayers that can be skipped, ProfileError (profile).
    """
    with open_model(model, n_threads) as llm:
        llm.profile = profile
        places = [(Sublayer.FFN, il) for il in llm.skippable_layers]
        places += [(Sublayer.ATTENTION, il) for il in llm.skippable_attention]
        if n >= len(places):
            raise PolicyError(
                f"{n} sublayers were asked for, expected 1 to {len(places) - 1}: {os.fspath(model)} has {len(places)} "
                "that can be skipped"
            )
        n_text, n_ctx = settings.n_fit or N_WINDOW, llm.n_ctx()
        if settings.text:
            text = read_text(llm, settings.text, n_ctx, n_text, settings.n_measured, settings.seed)
        else:
            text = sample_text(llm, n_ctx, n_text, settings.n_measured, settings.seed, progress)
        cosines, norms = _turns(llm, text.fitted, progress)
        with measuring(llm, text.fitted) as cost, measuring(llm, text.held_out) as cost_held:
            for by, order in (
                ("cosine", sorted(cosines, key=cosines.__getitem__, reverse=True)[:n]),
                ("norm", sorted(norms, key=norms.__getitem__)[:n]),
                ("loss", choose(places, n, cost, progress)),
            ):
                chosen: list[Place] = []
                for place in order:
                    chosen.append(place)
                    policy = _static(chosen)
                    yield StaticSet(by, len(chosen), place, *cost_held(policy), str(policy))


def steps_of(sets: Sequence[StaticSet]) -> list[StaticStep]:
    """As a profile has them."""
    return [StaticStep(one.last[1], one.last[0] is Sublayer.ATTENTION, one.kld_mean, one.ppl_ratio) for one in sets]


def _turns(llm: Llama, windows: Sequence[Tokens], progress: Progress) -> tuple[dict[Place, float], dict[Place, float]]:
    """Of each sublayer but those of the last layer, dense: the means of cos(x, x + y) and of |y| / |x|."""
    cosines, norms = dict[Place, float](), dict[Place, float]()

    def visit(sublayer: Sublayer, il: int, sums: LayerSums) -> None:
        cosine, norm = sums.cross[0] / np.float32(sums.n_tokens)
        cosines[sublayer, il], norms[sublayer, il] = float(cosine), float(norm)

    def show(sublayer: Sublayer, done: int, total: int) -> None:
        progress(sublayer.named("cosines"), done, total, "")

    for sublayer in Sublayer:
        if sublayer is Sublayer.FFN or llm.skippable_attention:
            gather(
                llm, windows, Kind.STEPS, partial(visit, sublayer), warmup=WARMUP, sublayer=sublayer,
                progress=partial(show, sublayer),
            )  # fmt: skip
    return cosines, norms


def choose(
    places: Sequence[Place], n: int, cost: Callable[[Policy], tuple[float, float]], progress: Progress
) -> Iterator[Place]:
    """The next to leave out, n times. cost: the divergence, and the perplexity ratio, under a policy."""
    chosen: list[Place] = []
    before = 0.0  # the divergence of what is chosen
    waiting = [(-np.inf, i, 0) for i in range(len(places))]  # what it added when it was looked at, which, at what size
    for size in range(1, n + 1):
        n_looked, found = 0, dict[int, float]()
        while waiting[0][2] < size:
            i = waiting[0][1]
            found[i] = cost(_static([*chosen, places[i]]))[0]
            heapq.heapreplace(waiting, (found[i] - before, i, size))
            n_looked += 1
            progress(f"sublayer {size}", n_looked, len(waiting), "")
        i = heapq.heappop(waiting)[1]
        chosen.append(places[i])
        before = found[i]
        yield places[i]


def _static(places: Sequence[Place]) -> Static:
    layers, attention = (tuple(il for kind, il in places if kind is wanted) for wanted in Sublayer)
    return Static(layers, attention, stand_in=True)


@contextmanager
def measuring(llm: Llama, windows: Sequence[Tokens]) -> Iterator[Callable[[Policy], tuple[float, float]]]:
    """What a policy costs on windows of text: the mean KL divergence to dense, in nats, and perplexity / dense
    perplexity. Of each window the second half is scored, whose dense log-probabilities are kept: 4 * n_vocab bytes a
    token. Every token counts as generated."""
    n_window = max(map(len, windows))
    kept = [np.empty((len(w) - 1 - len(w) // 2, llm.n_vocab()), np.float32) for w in windows]
    with BatchContext(llm, 1, n_window, n_window) as context:

        def scores(policy: Policy) -> tuple[Floats, Floats]:
            context.skip.set_policy(policy, llm.profile if policy.needs_profile else None)
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
