"""Operating points, of FFNs or of attention: which threshold gives which rate, and what that costs in quality."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import gguf
import numpy as np
import numpy.typing as npt

from ..evaluation.evaluate import evaluate_windows
from ..models.profile import Point, Profile
from ..policy import MAX_ERROR
from ..runtime.batch import BatchContext
from ..runtime.llama import Llama
from .sublayer import Sublayer

__all__ = ["RATES", "find_thresholds", "measure", "recommend"]

RATES = (0.05, 0.10, 0.18, 0.27, 0.36, 0.45, 0.55)  # the last ones for prompts
MAX_THRESHOLD = math.log(MAX_ERROR) - 1e-6  # with all blocks that can be skipped below it
MAX_RATIO = 1.05  # perplexity against dense that the recommended point may have

Windows = Sequence[npt.NDArray[np.int32]]
Progress = Callable[[int, int], None]


def find_thresholds(
    llm: Llama, profile: Profile, sublayer: Sublayer, windows: Windows, rates: Sequence[float], progress: Progress
) -> list[float]:
    """A threshold for each of the rising rates: the quantile of the scores that tokens got under the one before, whose
    stream was skipped nearly as much."""
    thresholds: list[float] = []
    n_window = max(map(len, windows))
    with BatchContext(llm, 1, n_window, n_window) as context:
        context.skip.set_trace(n_window)
        before = -math.inf
        for k, rate in enumerate(rates):
            scores = []
            context.skip.set_policy(sublayer.below(before, profile.warmup), profile)
            for done, window in enumerate(windows, 1):
                context.clear()
                wanted = np.zeros(len(window), bool)
                wanted[len(window) // 2 : -1] = True  # the last layer computes tokens with an output only
                context.decode(window.tolist(), range(len(window)), [0] * len(window), wanted)
                trace = context.skip.take_trace(n_window)
                scores.append(sublayer.decided(trace)[1][trace.positions >= len(window) // 2])
                progress(k * len(windows) + done, len(rates) * len(windows))
            found = np.nan_to_num(np.concatenate(scores).ravel(), nan=np.inf)
            before = max(before, min(float(np.quantile(found, rate, method="lower")), MAX_THRESHOLD))
            thresholds.append(before)
    return thresholds


def measure(
    llm: Llama, profile: Profile, sublayer: Sublayer, windows: Windows, thresholds: Sequence[float], progress: Progress
) -> list[Point]:
    """Points with rising rates, on windows that were not fitted. The Llama's own profile is this one."""
    policies = [sublayer.below(t, profile.warmup) for t in thresholds]
    n_ctx = min(map(len, windows))
    results = evaluate_windows(
        llm, [w.tolist() for w in windows], policies, n_ctx=n_ctx, progress=lambda done, total, _: progress(done, total)
    )
    info, is_ffn = llm.engine.info, sublayer is Sublayer.FFN
    spared = 0.0 if is_ffn else attention_bytes(llm.model_path, profile)
    found = {result.skip: result for result in results}  # equal thresholds share one
    points: list[Point] = []
    for threshold, policy in zip(thresholds, policies, strict=True):
        result = found[str(policy)]
        rate = result.skip_rate if is_ffn else result.attention_skip_rate
        if rate <= (points[-1].rate if points else 0.0) + 1e-4:
            continue
        left = info.read_bytes - (rate * profile.n_layer * spared - sum(profile.attention_gate_bytes))
        points.append(
            Point(
                rate=rate,
                threshold=threshold,
                ppl_ratio=result.ppl_ratio,
                ppl_ratio_se=result.ppl_ratio_se,
                kld_mean=result.kld_mean,
                ffn_bytes_saved=result.ffn_bytes_saved if is_ffn else 0.0,
                ideal_speedup=info.ideal_speedup(result.ffn_bytes_saved) if is_ffn else info.read_bytes / left,
            )
        )
    return points


def attention_bytes(model_path: str, profile: Profile) -> float:
    """Of the weights, that a token is spared where a layer's attention is skipped, its stand-in taken off: the mean of
    layers that have a gate."""
    governed = [il for il, n in enumerate(profile.attention_gate_bytes) if n]
    names = re.compile(rf"blk\.({'|'.join(map(str, governed))})\.attn_(q|q_a|q_b|output)\.weight")
    whole = sum(t.n_bytes for t in gguf.GGUFReader(model_path).tensors if names.fullmatch(t.name))
    return float(whole - sum(profile.attention_stand_in_bytes)) / len(governed)


def recommend(points: Sequence[Point]) -> int:
    """The fastest point whose perplexity stays within MAX_RATIO of dense; the first if none does."""
    return max((i for i, p in enumerate(points) if p.ppl_ratio <= MAX_RATIO), default=0)
