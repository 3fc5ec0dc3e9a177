"""Tokens in, logits to be scored out, under one policy after another. Used by pyskip.evaluation and pyskip.lm_eval."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from ..errors import DecodeError, PyskipError
from ..policy import Policy
from .batch import Batch
from .engine import Floats
from .llama import Llama

__all__ = ["Decoder", "PolicyArm", "decoding_arms", "distinct"]


class PolicyArm:
    """A policy, and what it skipped for tokens that were scored: [2*n_layer] FFNs, then attention, by layer."""

    def __init__(self, policy: Policy, n_layer: int) -> None:
        self.policy = policy
        self.n_tokens = 0
        self.skipped = np.zeros(2 * n_layer, np.int64)

    def take(self) -> tuple[int, npt.NDArray[np.int64]]:
        """Tokens scored and sublayers skipped since the last call."""
        taken = self.n_tokens, self.skipped
        self.n_tokens, self.skipped = 0, np.zeros_like(self.skipped)
        return taken


@contextmanager
def distinct(llm: Llama, skips: Sequence[str | float | Policy]) -> Iterator[list[Policy]]:
    """Each policy once, dense first, all of them fit for the model. The Llama is empty afterwards, with the policy that
    it had."""
    before = llm.skip
    policies: dict[str, Policy] = {}
    try:
        for skip in ("off", *skips):
            llm.skip = skip
            policies.setdefault(str(llm.skip), llm.skip)
        yield list(policies.values())
    finally:
        llm.engine.clear()
        llm.reset()
        llm.skip = before


@contextmanager
def decoding_arms(
    llm: Llama, skips: Sequence[str | float | Policy], n_ctx: int
) -> Iterator[tuple[Decoder, list[PolicyArm]]]:
    """A decoder of up to n_ctx tokens at a time, and an arm for each policy as distinct() has them."""
    if llm.n_batch < n_ctx or llm.n_ctx() < n_ctx:
        raise PyskipError(
            f"the model was loaded with n_ctx={llm.n_ctx()} and n_batch={llm.n_batch}, expected at least {n_ctx} each"
        )
    llm.engine.check_decoder()
    batch = Batch(n_ctx)
    try:
        with distinct(llm, skips) as policies:
            llm.start_trace(n_ctx)
            yield Decoder(llm, batch, n_ctx), [PolicyArm(policy, llm.engine.skip.n_layer) for policy in policies]
    finally:
        batch.close()
        llm.start_trace(0)


class Decoder:
    """Decodes stretches of one sequence, and asks for the logits that are scored only."""

    def __init__(self, llm: Llama, batch: Batch, n_max: int) -> None:
        self._llm, self._batch, self._n_max = llm, batch, n_max
        self._engine = llm.engine
        self._arm: PolicyArm
        self._from = 0  # generated from this position on

    def begin(self, arm: PolicyArm) -> None:
        """An empty sequence under the arm's policy, generated from its first token on; if the policy follows from the
        prompt, from the first that is scored."""
        self._llm.skip = arm.policy
        self._arm = arm
        self._engine.clear()
        self._from = 0
        self._engine.skip.set_generated_from(0, 0)

    def rewind(self, pos: int) -> int:
        """Forget positions >= pos; all of them if the model's memory cannot. Returns how many are left."""
        if self._engine.cut(pos, seq_id=0):
            return pos
        self.begin(self._arm)
        return 0

    def decode(self, tokens: Sequence[int], pos: int, first: int) -> Floats:
        """Decode tokens[pos:] at their positions. Logits [len(tokens) - 1 - first, n_vocab] of positions first to the
        last but one (the last has nothing to be scored by), valid until the next call."""
        n, last = len(tokens) - pos, len(tokens) - 1
        if self._arm.policy.measures_prompt and pos <= self._from:
            self._from = first
            self._engine.skip.set_generated_from(0, first)
        positions = np.arange(pos, len(tokens))
        wanted = (positions >= first) & (positions < last)
        n_wanted = int(wanted.sum())
        wanted[-1] |= n_wanted == 0  # some models abort on a batch without outputs
        logits = self._batch.decode(self._engine, self._engine.ctx, tokens[pos:], positions, [0] * n, wanted)
        self._count(first, last, n_wanted)
        return logits[:n_wanted]

    def under_each(
        self, arms: Iterable[PolicyArm], tokens: Sequence[int], n_prompt: int, first: int, *, is_shared: bool = False
    ) -> Iterator[tuple[PolicyArm, Floats]]:
        """Decode tokens under one arm after another, and yield each arm with its logits, as decode() has them. Behind
        the first n_prompt tokens all count as generated.

        A dense prompt is decoded once for the arms that share it. is_shared: the first arm's prompt serves all others,
        whatever their policies make of prompts. Raises DecodeError if the model's memory cannot be cut behind it.
        """
        is_held = False  # the cache has a prompt that others may go on behind
        for arm in arms:
            shares = is_shared or arm.policy.shares_prompt
            pos = n_prompt if is_held and shares else 0
            if pos:
                self._go_on(arm, pos)
            else:
                self.begin(arm)
            is_held = shares
            self._from = n_prompt
            self._engine.skip.set_generated_from(0, n_prompt)
            yield arm, self.decode(tokens, pos, first)

    def _go_on(self, arm: PolicyArm, pos: int) -> None:
        """Behind the first pos tokens, as they are in the cache."""
        if not self._engine.cut(pos, seq_id=0):
            raise DecodeError("the model's memory cannot be cut (a recurrent state), expected a KV cache")
        self._llm.skip = arm.policy
        self._arm = arm

    def _count(self, first: int, last: int, n_expected: int) -> None:
        arm = self._arm
        arm.n_tokens += n_expected
        if arm.policy.is_dense:
            return
        trace = self._llm.take_trace(self._n_max)
        scored = (trace.positions >= first) & (trace.positions < last)
        if scored.sum() != n_expected:
            raise DecodeError(f"{scored.sum()} of {n_expected} scored tokens were traced under {arm.policy}")
        arm.skipped += np.concatenate([trace.skipped[scored].sum(axis=0), trace.attention[scored].sum(axis=0)])
