"""What a policy costs in quality, beside dense: perplexity and KL divergence on text, accuracy on tasks.

Used by `pyskip eval`. The dense pass is shared: window by window (item by item) first the dense logits, then those of
each policy, so that no more than two windows of logits are ever held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _log
from ._library import llama_cpp
from .errors import DecodeError, PyskipError
from .gguf_info import ffn_bytes
from .llama import Llama
from .policy import Off, Policy, Profiled, Random
from .tasks import TaskItem, encode, is_right

__all__ = [
    "Progress",
    "TaskResult",
    "TextResult",
    "evaluate_task",
    "evaluate_text",
    "evaluate_windows",
    "ffn_bytes_saved",
]

ROWS = 8  # of logits that are worked on at a time: a few MB, which stay in the cache

Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int, float], None]
"""Called with windows (items) done, how many there are, and the last policy's perplexity ratio (accuracy) so far."""


@dataclass(frozen=True)
class TextResult:
    """A policy on a text. SE: one standard error. Differences to dense are taken token by token."""

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
    if llm.profile is not None and (isinstance(policy, Profiled) or (isinstance(policy, Random) and policy.stand_in)):
        instead[:], gates[:] = llm.profile.stand_in_bytes, llm.profile.gate_bytes
    return float((np.array(rates) * (whole - instead) - gates).sum() / whole.sum()) if whole.any() else 0.0


def evaluate_text(
    llm: Llama,
    text: str,
    skips: Sequence[str | float | Policy] = (),
    *,
    n_ctx: int = 512,
    chunks: int | None = None,
    progress: Progress | None = None,
) -> list[TextResult]:
    """Perplexity as llama.cpp's perplexity tool takes it, and the distance from dense.

    The text is split into windows of n_ctx tokens; of each the second half is scored. Every token counts as generated.

    llm: made with n_ctx and n_batch of at least n_ctx. What it holds is forgotten, its policy kept.
    skips: policies; each is evaluated once, and `off` always and first.
    chunks: windows at most.

    Returns one result for each policy. Raises PyskipError where the text is too short or the context too small,
    PolicyError for a policy that does not fit, DecodeError where llama.cpp fails.
    """
    return evaluate_windows(llm, _windows(llm, text, n_ctx)[:chunks], skips, n_ctx=n_ctx, progress=progress)


def evaluate_windows(
    llm: Llama,
    windows: Sequence[Sequence[int]],
    skips: Sequence[str | float | Policy] = (),
    *,
    n_ctx: int = 512,
    progress: Progress | None = None,
) -> list[TextResult]:
    """evaluate_text() of windows of n_ctx tokens each."""
    first = n_ctx // 2
    with _arms(llm, skips, n_ctx) as (decoder, arms):
        dense = np.empty((n_ctx - 1 - first, llm.n_vocab()), np.float32)  # log-probabilities
        scores: list[list[_Scores]] = [[] for _ in arms]
        for done, window in enumerate(windows, 1):
            for arm, arm_scores in zip(arms, scores, strict=True):
                decoder.begin(arm)
                logits = decoder.decode(window, 0, first)
                arm_scores.append(_score(logits, window[first + 1 :], dense, is_dense=arm is arms[0]))
            if progress is not None:
                more = [np.mean(d.log_p - s.log_p) for d, s in zip(scores[0], scores[-1], strict=True)]
                progress(done, len(windows), _exp(float(np.mean(more))))
        return [_text_result(llm, arm, s, scores[0]) for arm, s in zip(arms, scores, strict=True)]


def evaluate_task(
    llm: Llama,
    items: Sequence[TaskItem],
    skips: Sequence[str | float | Policy] = (),
    *,
    n_ctx: int = 512,
    progress: Progress | None = None,
) -> list[TaskResult]:
    """Accuracy on the items of a task file (pyskip.tasks). Every token counts as generated.

    A choice is scored by the log-likelihood of its tokens / bytes of its text; of equal ones the first counts.
    llm, skips, result and errors as for evaluate_text().
    """
    if not items:
        raise PyskipError("the task has no items, expected at least one")
    encoded = encode(llm, items, n_ctx)
    with _arms(llm, skips, n_ctx) as (decoder, arms):
        right = np.zeros((len(arms), len(encoded)))
        for i, item in enumerate(encoded):
            for a, arm in enumerate(arms):
                decoder.begin(arm)
                right[a, i] = is_right(decoder, item)
            if progress is not None:
                progress(i + 1, len(encoded), float(right[-1, : i + 1].mean()))
        return [_task_result(llm, arm, r, right[0]) for arm, r in zip(arms, right, strict=True)]


# Decoding


class _Arm:
    """A policy, and the blocks that it skipped, by layer, for tokens that were scored."""

    def __init__(self, policy: Policy, n_layer: int) -> None:
        self.policy = policy
        self.n_tokens = 0
        self.skipped = np.zeros(n_layer, np.int64)

    def rates(self) -> tuple[float, ...]:
        return tuple(float(n) / self.n_tokens if n else 0.0 for n in self.skipped)


@contextmanager
def _arms(llm: Llama, skips: Sequence[str | float | Policy], n_ctx: int) -> Iterator[tuple[Decoder, list[_Arm]]]:
    """Each policy once, dense first. The Llama is empty afterwards, with the policy that it had."""
    if llm.n_batch < n_ctx or llm.n_ctx() < n_ctx:
        raise PyskipError(
            f"the model was loaded with n_ctx={llm.n_ctx()} and n_batch={llm.n_batch}, expected at least {n_ctx} each"
        )
    before = llm.skip
    policies: dict[str, Policy] = {}
    batch = llama_cpp.llama_batch_init(n_ctx, 0, 1)
    try:
        for skip in ("off", *skips):
            llm.skip = skip  # all of them before the first is decoded: one may not fit the model
            policies.setdefault(str(llm.skip), llm.skip)
        llm.start_trace(n_ctx)
        n_layer = llm._skip_context.n_layer
        yield Decoder(llm, batch, n_ctx), [_Arm(policy, n_layer) for policy in policies.values()]
    finally:
        llama_cpp.llama_batch_free(batch)
        llm.start_trace(0)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llm.ctx), True)
        llm.reset()
        llm.skip = before


class Decoder:
    """Decodes stretches of one sequence, and asks for the logits that are scored only."""

    def __init__(self, llm: Llama, batch: Any, n_max: int) -> None:
        self._llm, self._batch, self._n_max = llm, batch, n_max
        self._memory = llama_cpp.llama_get_memory(llm.ctx)
        self._n_vocab = llm.n_vocab()
        self._arm: _Arm
        for i in range(n_max):
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0

    def begin(self, arm: _Arm) -> None:
        """An empty sequence under the arm's policy, generated from its first token on."""
        self._llm.skip = arm.policy
        self._arm = arm
        llama_cpp.llama_memory_clear(self._memory, True)
        self._llm._skip_context.set_generated_from(0, 0)

    def rewind(self, pos: int) -> int:
        """Forget positions >= pos; all of them where the model's memory cannot. Returns how many are left."""
        if llama_cpp.llama_memory_seq_rm(self._memory, 0, pos, -1):
            return pos
        self.begin(self._arm)
        return 0

    def decode(self, tokens: Sequence[int], pos: int, first: int) -> Floats:
        """Decode tokens[pos:] at their positions. Logits [len(tokens) - 1 - first, n_vocab] of positions first to the
        last but one (the last has nothing to be scored by), valid until the next call."""
        n, last = len(tokens) - pos, len(tokens) - 1
        positions = np.arange(pos, len(tokens))
        wanted = (positions >= first) & (positions < last)
        batch = self._batch
        batch.n_tokens = n
        np.ctypeslib.as_array(batch.token, (n,))[:] = tokens[pos:]
        np.ctypeslib.as_array(batch.pos, (n,))[:] = positions
        np.ctypeslib.as_array(batch.logits, (n,))[:] = wanted
        _log.forget()
        status = llama_cpp.llama_decode(self._llm.ctx, batch)
        if status != 0:
            raise DecodeError(f"llama.cpp cannot decode ({_log.last_complaint() or f'status {status}'})")
        n_wanted = int(wanted.sum())
        self._count(first, last, n_wanted)
        if n_wanted == 0:
            return np.empty((0, self._n_vocab), np.float32)
        logits = llama_cpp.llama_get_logits(self._llm.ctx)
        if not logits:
            raise DecodeError("the model gives no logits, expected one that generates text")
        return np.ctypeslib.as_array(logits, (n_wanted, self._n_vocab))

    def _count(self, first: int, last: int, n_expected: int) -> None:
        arm = self._arm
        arm.n_tokens += n_expected
        if isinstance(arm.policy, Off):
            return
        trace = self._llm.take_trace(self._n_max)
        scored = (trace.positions >= first) & (trace.positions < last)
        if scored.sum() != n_expected:
            raise DecodeError(f"{scored.sum()} of {n_expected} scored tokens were traced under {arm.policy}")
        arm.skipped += trace.skipped[scored].sum(axis=0)


def _skipped(llm: Llama, arm: _Arm) -> tuple[str, float, tuple[float, ...], float]:
    """The fields that every result begins with."""
    rates = arm.rates()
    return str(arm.policy), float(np.mean(rates)), rates, ffn_bytes_saved(llm, arm.policy, rates)


# Text


@dataclass(frozen=True)
class _Scores:
    """Of the scored tokens of a window."""

    log_p: npt.NDArray[np.float64]
    kld: npt.NDArray[np.float64]
    top: npt.NDArray[np.intp]


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


def _score(logits: Floats, targets: Sequence[int], dense: Floats, *, is_dense: bool) -> _Scores:
    """Scores of logits [n, n_vocab]; `dense`, the log-probabilities to compare with, is filled where is_dense."""
    n = len(logits)
    log_p, kld, top = np.empty(n), np.zeros(n), logits.argmax(axis=1)
    for begin in range(0, n, ROWS):
        rows = slice(begin, min(begin + ROWS, n))
        each = np.arange(rows.stop - begin)
        log_q = logits[rows] - logits[rows][each, top[rows], None]
        log_q -= np.log(np.exp(log_q).sum(axis=1, keepdims=True))
        log_p[rows] = log_q[each, targets[rows]]
        if is_dense:
            dense[rows] = log_q
        else:
            np.subtract(dense[rows], log_q, out=log_q)
            kld[rows] = np.einsum("ij,ij->i", np.exp(dense[rows]), log_q)
    return _Scores(log_p, kld, top)


def _text_result(llm: Llama, arm: _Arm, scores: list[_Scores], dense: list[_Scores]) -> TextResult:
    log_p, kld, top = (np.concatenate([getattr(s, name) for s in scores]) for name in ("log_p", "kld", "top"))
    more = np.concatenate([s.log_p for s in dense]) - log_p
    ppl, ratio = _exp(-float(log_p.mean())), _exp(float(more.mean()))
    return TextResult(
        *_skipped(llm, arm),
        ppl=ppl,
        ppl_se=ppl * _se(log_p),
        ppl_ratio=ratio,
        ppl_ratio_se=ratio * _se(more),
        kld_mean=float(kld.mean()),
        kld_p99=float(np.quantile(kld, 0.99)),
        same_top=float(np.mean(top == np.concatenate([s.top for s in dense]))),
        n_tokens=len(log_p),
    )


def _se(values: npt.NDArray[np.float64]) -> float:
    """Standard error of the mean, as llama.cpp's perplexity tool takes it."""
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


# Tasks


def _task_result(llm: Llama, arm: _Arm, right: npt.NDArray[np.float64], dense: npt.NDArray[np.float64]) -> TaskResult:
    return TaskResult(
        *_skipped(llm, arm),
        accuracy=float(right.mean()),
        accuracy_se=_se(right),
        accuracy_diff=float((right - dense).mean()),
        accuracy_diff_se=_se(right - dense),
        n=len(right),
    )
