"""What a policy costs in quality, beside dense: perplexity and KL divergence on text, accuracy on tasks.

Used by `pyskip eval` and calibration. The dense pass is shared: window by window (item by item) first the dense logits,
then those of each policy, so that no more than two windows of logits are ever held. Summaries: pyskip.summaries.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..binding.library import llama_cpp
from ..errors import DecodeError, PyskipError
from ..models.gguf_info import ffn_bytes
from ..models.profile import Profile
from ..policy import Off, Policy, Profiled, Random, parse_skip
from ..runtime.decoding import decoding_arms
from ..runtime.llama import Llama
from .journal import Journal, Record
from .tasks import TaskItem, encode, is_right

__all__ = [
    "Progress",
    "Scores",
    "TaskResult",
    "TextResult",
    "evaluate_task",
    "evaluate_text",
    "evaluate_windows",
    "ffn_bytes_saved",
    "journal_key",
    "paired_fields",
    "score",
    "skip_fields",
]

ROWS = 8  # of logits that are worked on at a time: a few MB, which stay in the cache

DENSE = "off"  # its arm in a journal

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int, float], None]
"""Called with windows (items) done, how many there are, and the last policy's figure so far: perplexity ratio, or
without the dense pass perplexity; accuracy."""


@dataclass(frozen=True)
class TextResult:
    """A policy on a text. SE: one standard error. Differences to dense are taken token by token; they are NaN where the
    dense pass was left out."""

    skip: str
    skip_rate: float  # skipped / all FFN blocks of scored tokens
    skip_rates: tuple[float, ...]  # the same by layer
    ffn_bytes_saved: float  # share of the FFN's weights that was not read
    ppl: float
    ppl_se: float
    ppl_ratio: float  # to dense
    ppl_ratio_se: float
    kld_mean: float  # KL(dense || policy), nats
    kld_p99: float
    same_top: float  # share of tokens with dense's likeliest next token
    n_tokens: int  # scored


@dataclass(frozen=True)
class TaskResult:
    """A policy on a task. SE: one standard error, NaN for a single item. The difference's is that of paired items."""

    skip: str
    skip_rate: float
    skip_rates: tuple[float, ...]
    ffn_bytes_saved: float
    accuracy: float
    accuracy_se: float
    accuracy_diff: float  # to dense
    accuracy_diff_se: float
    n: int  # items


def ffn_bytes_saved(llm: Llama, policy: Policy, rates: Sequence[float]) -> float:
    """The share of FFN weight bytes that was not read, of skip rates by layer; what gates and stand-ins read in their
    place is taken off."""
    whole = np.array(ffn_bytes(llm.model_path, len(rates)), np.float64)
    instead, gates = np.zeros_like(whole), np.zeros_like(whole)
    profile = _profile(llm, policy)
    if profile is not None:
        instead[:], gates[:] = profile.stand_in_bytes, profile.gate_bytes
    return float((np.array(rates) * (whole - instead) - gates).sum() / whole.sum()) if whole.any() else 0.0


def _profile(llm: Llama, policy: Policy) -> Profile | None:
    """The profile that the policy goes by, if any."""
    uses = isinstance(policy, Profiled) or (isinstance(policy, Random) and policy.stand_in)
    return llm.profile if uses else None


def journal_key(llm: Llama, policy: Policy) -> str:
    """The policy's arm in a journal. With another profile it is another arm."""
    profile = _profile(llm, policy)
    if profile is None:
        return str(policy)
    return f"{policy} by profile {hashlib.sha256(profile.path.read_bytes()).hexdigest()[:16]}"


def evaluate_text(
    llm: Llama,
    text: str,
    skips: Sequence[str | float | Policy] = (),
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    dense: bool = True,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[TextResult]:
    """Perplexity as llama.cpp's perplexity tool takes it, and the distance from dense.

    The text is split into windows of n_ctx tokens; of each the second half is scored. Every token counts as generated.

    llm: made with n_ctx and n_batch of at least n_ctx. What it holds is forgotten, its policy kept.
    skips: policies; each is evaluated once, and `off` always and first.
    chunks: windows at most.
    dense: False leaves out the dense pass, half of the time for one policy, and all that is measured by it.
    journal: of this text; what it holds is not computed again, and what is computed it keeps.

    Returns one result for each policy. Raises PyskipError where the text is too short or the context too small,
    PolicyError for a policy that does not fit, DecodeError where llama.cpp fails.
    """
    windows = _windows(llm, text, n_ctx)[:chunks]
    return evaluate_windows(llm, windows, skips, n_ctx=n_ctx, dense=dense, journal=journal, progress=progress)


def evaluate_windows(
    llm: Llama,
    windows: Sequence[Sequence[int]],
    skips: Sequence[str | float | Policy] = (),
    *,
    n_ctx: int = 512,
    dense: bool = True,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[TextResult]:
    """evaluate_text() of windows of n_ctx tokens each."""
    first, journal = n_ctx // 2, journal or Journal()
    with decoding_arms(llm, skips, n_ctx) as (decoder, every):
        if not dense and not any(isinstance(parse_skip(skip), Off) for skip in skips or ("off",)):
            every = every[1:]
        alone = "" if dense else ", alone"  # another arm in a journal: it has no distances
        keys = {arm: journal_key(llm, arm.policy) + alone for arm in every}
        log_p = np.empty((n_ctx - 1 - first, llm.n_vocab()), np.float32) if dense else None  # the dense ones
        for i, window in enumerate(windows):
            missing = [arm for arm in every if (keys[arm], i) not in journal]
            if dense and missing and missing[0] is not every[0]:
                missing.insert(0, every[0])  # what they are compared with
            for arm in missing:
                decoder.begin(arm)
                logits = decoder.decode(window, 0, first)
                scores = score(logits, window[first + 1 :], log_p, is_dense=arm is every[0])
                journal.put(keys[arm], i, Record(*arm.take(), np.array(scores)))
            if progress is not None:
                p, q = (Scores(*_values(journal, keys[arm], i + 1)) for arm in (every[0], every[-1]))
                progress(i + 1, len(windows), _exp(float(((p.log_p if dense else 0.0) - q.log_p).mean())))
        reference = DENSE if dense else None
        return [_text_result(llm, arm.policy, journal, key, reference, len(windows)) for arm, key in keys.items()]


def evaluate_task(
    llm: Llama,
    items: Sequence[TaskItem],
    skips: Sequence[str | float | Policy] = (),
    *,
    n_ctx: int = 512,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[TaskResult]:
    """Accuracy on the items of a task file (pyskip.tasks). Every token counts as generated.

    A choice is scored by the log-likelihood of its tokens / bytes of its text; of equal ones the first counts.
    The rest as for evaluate_text().
    """
    if not items:
        raise PyskipError("the task has no items, expected at least one")
    encoded, journal = encode(llm, items, n_ctx), journal or Journal()
    with decoding_arms(llm, skips, n_ctx) as (decoder, every):
        keys = {arm: journal_key(llm, arm.policy) for arm in every}
        for i, item in enumerate(encoded):
            for arm in every:
                if (keys[arm], i) not in journal:
                    decoder.begin(arm)
                    right = np.array([[is_right(decoder, item)]], np.float64)
                    journal.put(keys[arm], i, Record(*arm.take(), right))
            if progress is not None:
                progress(i + 1, len(encoded), float(_values(journal, keys[every[-1]], i + 1).mean()))
        n = len(encoded)
        return [
            TaskResult(*skip_fields(llm, arm.policy, journal.records(key, n)), *paired_fields(journal, key, n), n)
            for arm, key in keys.items()
        ]


# Results


def skip_fields(llm: Llama, policy: Policy, records: Sequence[Record]) -> tuple[str, float, tuple[float, ...], float]:
    """The fields that every result begins with."""
    n_tokens = sum(record.n_tokens for record in records)
    by_layer = np.sum([record.skipped for record in records], axis=0)
    rates = tuple(float(n) / n_tokens if n else 0.0 for n in by_layer)
    return str(policy), float(np.mean(rates)), rates, ffn_bytes_saved(llm, policy, rates)


def paired_fields(journal: Journal, key: str, n: int) -> tuple[float, float, float, float]:
    """Of one figure an item: mean, its standard error, mean difference to dense, its standard error."""
    values, dense = (_values(journal, k, n)[0] for k in (key, DENSE))
    return float(values.mean()), _se(values), float((values - dense).mean()), _se(values - dense)


def _values(journal: Journal, key: str, n: int) -> npt.NDArray[np.float64]:
    """[n_kinds, of all n windows or items]"""
    return np.concatenate([record.values for record in journal.records(key, n)], axis=1)


def _se(values: npt.NDArray[np.float64]) -> float:
    """Standard error of the mean, as llama.cpp's perplexity tool takes it."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


# Text


class Scores(NamedTuple):
    """Of scored tokens. Figures by kind, [3, n] as an array: a Record's values."""

    log_p: npt.NDArray[np.float64]
    kld: npt.NDArray[np.float64]
    top: npt.NDArray[Any]


def _windows(llm: Llama, text: str, n_ctx: int) -> list[list[int]]:
    """The whole text's tokens in windows of n_ctx, the first of each being BOS where the vocabulary wants one."""
    if n_ctx < 8:
        raise PyskipError(f"a window is {n_ctx} tokens, expected at least 8 (--ctx)")
    tokens = llm.tokenize(text.removesuffix("\n").encode(), add_bos=True, special=False)
    if len(tokens) < n_ctx:
        raise PyskipError(
            f"the text has {len(tokens)} tokens, expected at least one window of {n_ctx}: "
            "take a longer text or a smaller window (--ctx)"
        )
    windows = [tokens[i : i + n_ctx] for i in range(0, len(tokens) - n_ctx + 1, n_ctx)]
    if llama_cpp.llama_vocab_get_add_bos(llm._model.vocab):
        for window in windows:
            window[0] = llm.token_bos()
    return windows


def score(logits: Floats, targets: Sequence[int], dense: Floats | None, *, is_dense: bool) -> Scores:
    """Scores of logits [n, n_vocab]; `dense`, the log-probabilities to compare with, is filled where is_dense. None:
    there are none. Raises DecodeError where a logit is not finite."""
    n = len(logits)
    log_p, kld, top = np.empty(n), np.zeros(n), logits.argmax(axis=1)
    for begin in range(0, n, ROWS):
        rows = slice(begin, min(begin + ROWS, n))
        if not np.isfinite(logits[rows]).all():
            raise DecodeError("logits are not finite: weights of the model or of its profile are damaged or overflow")
        each = np.arange(rows.stop - begin)
        log_q = logits[rows] - logits[rows][each, top[rows], None]
        log_q -= np.log(np.exp(log_q).sum(axis=1, keepdims=True))
        log_p[rows] = log_q[each, targets[rows]]
        if dense is None:
            kld[rows] = math.nan
        elif is_dense:
            dense[rows] = log_q
        else:
            np.subtract(dense[rows], log_q, out=log_q)
            kld[rows] = np.einsum("ij,ij->i", np.exp(dense[rows]), log_q)
    return Scores(log_p, kld, top)


def _text_result(
    llm: Llama, policy: Policy, journal: Journal, key: str, dense_key: str | None, n_windows: int
) -> TextResult:
    mine = Scores(*_values(journal, key, n_windows))
    nothing = np.full_like(mine.log_p, math.nan)
    dense = Scores(*([nothing] * 3 if dense_key is None else _values(journal, dense_key, n_windows)))
    more = dense.log_p - mine.log_p
    ppl, ratio = _exp(-float(mine.log_p.mean())), _exp(float(more.mean()))
    return TextResult(
        *skip_fields(llm, policy, journal.records(key, n_windows)),
        ppl=ppl,
        ppl_se=ppl * _se(mine.log_p),
        ppl_ratio=ratio,
        ppl_ratio_se=ratio * _se(more),
        kld_mean=float(mine.kld.mean()),
        kld_p99=float(np.quantile(mine.kld, 0.99)),
        same_top=math.nan if dense_key is None else float(np.mean(mine.top == dense.top)),
        n_tokens=len(more),
    )
