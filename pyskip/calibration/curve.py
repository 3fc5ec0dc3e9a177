"""Operating points: which threshold gives which rate, and what that costs in quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..evaluation.evaluate import evaluate_windows
from ..models.profile import Point
from ..policy import MAX_ERROR, Policy, Profiled
from ..runtime.batch import BatchContext
from ..runtime.llama import Llama

__all__ = ["RATES", "find_thresholds", "measure", "recommend"]

RATES = (0.05, 0.10, 0.18, 0.27, 0.36, 0.45)
MAX_THRESHOLD = math.log(MAX_ERROR) - 1e-6  # with all blocks that can be skipped below it
MAX_RATIO = 1.05  # perplexity against dense that the recommended point may have

Windows = Sequence[npt.NDArray[np.int32]]
Progress = Callable[[int, int], None]


def find_thresholds(llm: Llama, windows: Windows, rates: Sequence[float], progress: Progress) -> list[float]:
    """A threshold for each of the rising rates: the quantile of the scores that tokens got under the one before, whose
    stream was skipped nearly as much."""
    thresholds: list[float] = []
    n_window = max(map(len, windows))
    with BatchContext(llm, 1, n_window, n_window) as context:
        context.skip.set_trace(n_window)
        before = -math.inf
        for k, rate in enumerate(rates):
            scores = []
            context.skip.set_policy(threshold_policy(before), llm.profile)
            for done, window in enumerate(windows, 1):
                context.clear()
                wanted = np.zeros(len(window), bool)
                wanted[len(window) // 2 : -1] = True  # the last layer computes tokens with an output only
                context.decode(window.tolist(), range(len(window)), [0] * len(window), wanted)
                trace = context.skip.take_trace(n_window)
                scores.append(trace.similarity[trace.positions >= len(window) // 2])
                progress(k * len(windows) + done, len(rates) * len(windows))
            found = np.nan_to_num(np.concatenate(scores).ravel(), nan=np.inf)
            before = max(before, min(float(np.quantile(found, rate, method="lower")), MAX_THRESHOLD))
            thresholds.append(before)
    return thresholds


def threshold_policy(threshold: float) -> Policy:
    return Profiled(error=math.exp(threshold) if threshold > -700 else 0.0)


def measure(llm: Llama, windows: Windows, thresholds: Sequence[float], progress: Progress) -> list[Point]:
    """Points with rising rates, on windows that were not fitted."""
    size = llm.engine.info
    policies = [threshold_policy(t) for t in thresholds]
    n_ctx = min(map(len, windows))
    results = evaluate_windows(
        llm, [w.tolist() for w in windows], policies, n_ctx=n_ctx, progress=lambda done, total, _: progress(done, total)
    )
    found = {result.skip: result for result in results}  # equal thresholds share one
    points: list[Point] = []
    for threshold, policy in zip(thresholds, policies, strict=True):
        result = found[str(policy)]
        if result.skip_rate <= (points[-1].rate if points else 0.0) + 1e-4:
            continue
        points.append(
            Point(
                rate=result.skip_rate,
                threshold=threshold,
                ppl_ratio=result.ppl_ratio,
                ppl_ratio_se=result.ppl_ratio_se,
                kld_mean=result.kld_mean,
                ffn_bytes_saved=result.ffn_bytes_saved,
                ideal_speedup=size.ideal_speedup(result.ffn_bytes_saved),
            )
        )
    return points


def recommend(points: Sequence[Point]) -> int:
    """The fastest point whose perplexity stays within MAX_RATIO of dense; the first if none does."""
    return max((i for i, p in enumerate(points) if p.ppl_ratio <= MAX_RATIO), default=0)
