"""What a policy costs in quality, beside dense: perplexity and KL divergence on text, accuracy on tasks.

Used by `pyskip eval` and calibration. The dense pass is shared: window by window (item by item) first the dense logits,
then those of each policy, so that no more than two windows of logits are ever held. Summaries: pyskip.summaries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import PyskipError
from ..policy import Policy, parse_skip
from ..runtime.decoding import decoding_arms
from ..runtime.llama import Llama
from .journal import Journal, Record
from .results import (
    DENSE,
    TaskResult,
    TextResult,
    exp,
    ffn_bytes_saved,
    journal_key,
    paired_fields,
    skip_fields,
    text_result,
    values,
)
from .score import Scores, score
from .tasks import TaskItem, encode, is_right

__all__ = [
    "Progress",
    "Scores",
    "TaskResult",
    "TextResult",
    "arm_names",
    "evaluate_task",
    "evaluate_text",
    "evaluate_windows",
    "ffn_bytes_saved",
    "journal_key",
    "paired_fields",
    "score",
    "skip_fields",
    "windows_of",
]

Progress = Callable[[int, int, float], None]
"""Called with windows (items) done, how many there are, and the last policy's figure so far: perplexity ratio, or
without the dense pass perplexity; accuracy."""


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

    Returns one result for each policy. Raises PyskipError if the text is too short or the context too small,
    PolicyError for a policy that does not fit, DecodeError if llama.cpp fails.
    """
    windows = windows_of(llm, text, n_ctx)[:chunks]
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
        names = arm_names(llm, [arm.policy for arm in every], skips, dense=dense)
        every = every[-len(names) :]
        keys = dict(zip(every, names, strict=True))
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
                p, q = (Scores(*values(journal, keys[arm], i + 1)) for arm in (every[0], every[-1]))
                progress(i + 1, len(windows), exp(float(((p.log_p if dense else 0.0) - q.log_p).mean())))
        reference = DENSE if dense else None
        return [text_result(llm, arm.policy, journal, key, reference, len(windows)) for arm, key in keys.items()]


def evaluate_task(
    llm: Llama,
    items: Sequence[TaskItem],
    skips: Sequence[str | float | Policy] = (),
    *,
    n_ctx: int = 512,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[TaskResult]:
    """Accuracy on the items of a task file (tasks.py). Every token counts as generated.

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
                progress(i + 1, len(encoded), float(values(journal, keys[every[-1]], i + 1).mean()))
        n = len(encoded)
        return [
            TaskResult(*skip_fields(llm, arm.policy, journal.records(key, n)), *paired_fields(journal, key, n), n)
            for arm, key in keys.items()
        ]


def arm_names(
    llm: Llama, policies: Sequence[Policy], skips: Sequence[str | float | Policy], *, dense: bool = True
) -> list[str]:
    """The arms in a journal of an evaluation of these policies, the first of which is `off`. Without the dense pass
    others, which have no distances; then `off` is one only if `skips` ask for it."""
    if not dense and not any(parse_skip(skip).is_dense for skip in skips or ("off",)):
        policies = policies[1:]
    return [journal_key(llm, policy) + ("" if dense else ", alone") for policy in policies]


def windows_of(llm: Llama, text: str, n_ctx: int) -> list[list[int]]:
    """The whole text's tokens in windows of n_ctx, the first of each being BOS if the vocabulary wants one. Raises
    PyskipError for a text that is too short."""
    if n_ctx < 8:
        raise PyskipError(f"a window is {n_ctx} tokens, expected at least 8 (--ctx)")
    tokens = llm.tokenize(text.removesuffix("\n").encode(), add_bos=True, special=False)
    if len(tokens) < n_ctx:
        raise PyskipError(
            f"the text has {len(tokens)} tokens, expected at least one window of {n_ctx}: "
            "take a longer text or a smaller window (--ctx)"
        )
    windows = [tokens[i : i + n_ctx] for i in range(0, len(tokens) - n_ctx + 1, n_ctx)]
    if llm.engine.adds_bos:
        for window in windows:
            window[0] = llm.token_bos()
    return windows
