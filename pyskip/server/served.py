"""A model as the server runs it: what a request decodes is watched, can be stopped, and hangs on the request only."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyskip.binding.library import llama_cpp
from pyskip.errors import DecodeError
from pyskip.policy import Off, Policy, Profiled
from pyskip.runtime.llama import Llama
from pyskip.stats import SkipStats

from .completion import create_completion
from .errors import bad_request

__all__ = ["Run", "ServedLlama"]

BLOCK = 64  # tokens: prompts are decoded in blocks, and what is kept of one for the next request are whole blocks
TRACE = 8192  # tokens between two looks: more than any context that a stop sequence could hold back


@dataclass
class Run:
    """What one request decodes. Written by the thread that decodes."""

    trace: bool = False
    is_cancelled: Callable[[], bool] = lambda: False
    n_prompt: int = 0
    n_cached: int = 0  # of the prompt, not decoded again
    n_generated: int = 0  # without the end of the text
    n_steps: int = 0  # generated tokens that were decoded: neither the last one, nor that which a prompt yields
    tokens: list[tuple[bytes, list[int]]] = field(default_factory=list)  # traced: bytes, layers that were skipped
    stats: SkipStats | None = None
    t_begin: float = 0.0
    t_first: float = 0.0
    t_last: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of decoding: without the prompt, and the first token, which the prompt's decode yields."""
        seconds = self.t_last - self.t_first
        return (self.n_generated - 1) / seconds if self.n_generated > 1 and seconds > 0 else 0.0

    @property
    def skip_rate(self) -> float:
        return self.stats.rate if self.stats is not None else 0.0


class ServedLlama(Llama):
    """pyskip.Llama for one request after another.

    Nothing of a request is left for the next but the KV cache of its prompt, of which whole blocks are used again:
    those that a server without a past would compute in the same batches, by the same rule. Generated tokens' are not:
    what is skipped there, and single steps, would show in later answers.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._run: Run | None = None
        self._kept, self._kept_rule = 0, ""  # tokens of the last prompt, and what decided in it
        super().__init__(*args, **kwargs)
        if kwargs.get("chat_format") is None and "tokenizer.chat_template" not in self.metadata:
            self.chat_format = "chatml"

    @contextmanager
    def running(self, run: Run, policy: Policy | None) -> Iterator[None]:
        """While it is open, what is generated is this run's, under the policy; None: the model's own."""
        own, pace = self._policy, self._pace
        if policy is not None:
            self.skip = policy
        self._run = run
        self.reset_skip_stats()
        if run.trace:
            self.start_trace(TRACE)
        try:
            yield
        finally:
            self._run = None
            run.stats = self.skip_stats()
            if run.trace:
                self.start_trace(0)
            if policy is not None:
                self._set_policy(own)
                self._pace = pace

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """pyskip.Llama.generate, for the run that is open."""
        run = self._run
        assert run is not None, "generate() outside running()"
        tokens = list(tokens)
        run.t_begin = run.t_begin or time.perf_counter()
        self._keep_prefix(tokens)
        run.n_prompt, run.n_cached = run.n_prompt + len(tokens), run.n_cached + self.n_tokens
        first = True
        with closing(super().generate(tokens, *args, **kwargs)) as inner:
            for token in inner:
                now = time.perf_counter()
                if first:
                    run.t_first = run.t_first or now
                    self._kept = 0 if self._has_encoder() else len(tokens) - len(tokens) % BLOCK
                    first = False
                else:
                    run.n_steps += 1
                if run.is_cancelled():
                    return
                if not llama_cpp.llama_vocab_is_eog(self._model.vocab, token):
                    run.n_generated += 1
                    run.t_last = now
                if run.trace:
                    self._trace(run, token, tokens)
                yield token

    def _create_completion(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for unused in ("suffix", "echo", "logprobs", "logit_bias"):  # what upstream's callers pass, at their defaults
            kwargs.pop(unused, None)
        return create_completion(self, *args, **kwargs)

    def _trace(self, run: Run, token: int, prompt: list[int]) -> None:
        rows = self.take_trace(1) if not isinstance(self._policy, Off) else ()
        skipped = np.flatnonzero(rows.skipped[-1]).tolist() if len(rows) else []  # type: ignore[union-attr]
        is_end = llama_cpp.llama_vocab_is_eog(self._model.vocab, token)
        run.tokens.append((b"" if is_end else self.detokenize([token], prev_tokens=prompt), skipped))

    def _keep_prefix(self, tokens: list[int]) -> None:
        """Have upstream, which uses the longest prefix again, find the blocks that are safe."""
        rule = _prompt_rule(self._policy)
        n = min(self._kept, len(tokens) - 1) if rule == self._kept_rule else 0
        n = self.longest_token_prefix(self.input_ids[:n].tolist(), tokens[:n])
        self.n_tokens = n - n % BLOCK
        self._kept, self._kept_rule = self.n_tokens, rule

    def eval(self, tokens: Sequence[int]) -> None:
        """pyskip.Llama.eval; a prompt in blocks, so that a block's values do not hang on where the batch began."""
        for start in range(0, len(tokens), BLOCK):
            super().eval(tokens[start : start + BLOCK])

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        self._kept = 0
        return super().embed(*args, **kwargs)

    def _check_grammar(self, grammar: Any) -> None:
        try:
            super()._check_grammar(grammar)
        except DecodeError as error:
            raise bad_request(str(error), "grammar") from None


def _prompt_rule(policy: Policy) -> str:
    """What decides in a prompt: policies of one rule compute the same for it."""
    if isinstance(policy, Profiled) and not policy.prefill:
        return "profile"
    return str(policy)
