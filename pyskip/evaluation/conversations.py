"""Conversations: how far a policy is from dense along the dense model's own answers. Used by `pyskip eval`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import PyskipError
from ..policy import Policy
from ..runtime.decoding import Decoder, PolicyArm, decoding_arms
from ..runtime.generation import Generation, Message, chat_tokens
from ..runtime.llama import Llama
from .evaluate import Progress
from .journal import Journal, Record
from .results import DENSE, TextResult, exp, journal_key, text_result, values
from .score import Scores, score
from .tasks import Conversation

__all__ = ["evaluate_conversations"]

Turn = tuple[list[int], int]  # tokens of a prompt and the dense answer to it, and how many are the prompt's


def evaluate_conversations(
    llm: Llama,
    conversations: Sequence[Conversation],
    skips: Sequence[str | float | Policy] = (),
    *,
    n_predict: int = 96,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[TextResult]:
    """Perplexity and KL divergence of the dense model's greedy answers, turn by turn, as for evaluate_text().

    Each turn is answered by the dense model, up to n_predict tokens, with its earlier answers before it. What a policy
    makes of the same tokens is compared: from the one before the answer on they count as generated.

    llm: made with n_batch of its whole context. What it holds is forgotten, its policy kept.
    skips, journal, progress, result and errors as for pyskip.evaluation.evaluate_text().
    """
    if not conversations:
        raise PyskipError("the task has no conversations, expected at least one")
    journal = journal or Journal()
    with decoding_arms(llm, skips, llm.n_ctx()) as (decoder, every):
        keys = {arm: journal_key(llm, arm.policy) for arm in every}
        for i, conversation in enumerate(conversations):
            missing = [arm for arm in every if (keys[arm], i) not in journal]
            if missing:
                turns = _answered(llm, every[0].policy, conversation, n_predict)
                for arm, record in _scored(llm.n_vocab(), decoder, every[0], missing, turns).items():
                    journal.put(keys[arm], i, record)
            if progress is not None:
                p, q = (Scores(*values(journal, keys[arm], i + 1)) for arm in (every[0], every[-1]))
                progress(i + 1, len(conversations), exp(float((p.log_p - q.log_p).mean())))
        n = len(conversations)
        return [text_result(llm, arm.policy, journal, key, DENSE, n) for arm, key in keys.items()]


def _answered(llm: Llama, off: Policy, conversation: Conversation, n_predict: int) -> list[Turn]:
    """The turns that got an answer; some models end one at once."""
    messages: list[Message] = []
    turns: list[Turn] = []
    llm.skip = off
    llm.engine.clear()
    llm.reset()
    for text in conversation.turns:
        messages.append({"role": "user", "content": text})
        prompt = chat_tokens(llm, messages)
        if len(prompt) + n_predict > llm.n_ctx():
            raise PyskipError(
                f"{conversation.where}: a prompt of {len(prompt)} tokens and {n_predict} of an answer do not fit a "
                f"context of {llm.n_ctx()}: raise --ctx or lower -n"
            )
        generation = Generation(llm, prompt, max_tokens=n_predict, temp=0.0, seed=None)
        for _ in generation:
            pass
        answer = generation.answer()
        messages.append({"role": "assistant", "content": answer.text})
        if answer.tokens:
            turns.append(([*prompt, *answer.tokens], len(prompt)))
    if not turns:
        raise PyskipError(f"{conversation.where}: the dense model answers nothing, expected a model that chats")
    return turns


def _scored(
    n_vocab: int, decoder: Decoder, off: PolicyArm, missing: Sequence[PolicyArm], turns: Sequence[Turn]
) -> dict[PolicyArm, Record]:
    """The records of one conversation."""
    scores: dict[PolicyArm, list[Scores]] = {arm: [] for arm in (off, *missing)}
    for tokens, n_prompt in turns:
        first = n_prompt - 1  # whose logits the answer's first token is scored by
        log_p = np.empty((len(tokens) - n_prompt, n_vocab), np.float32)  # the dense ones
        for arm, logits in decoder.under_each(scores, tokens, first, first):
            scores[arm].append(score(logits, tokens[n_prompt:], log_p, is_dense=arm is off))
    records = {arm: Record(*arm.take(), np.concatenate(scores[arm], axis=1)) for arm in scores}
    return {arm: records[arm] for arm in missing}
