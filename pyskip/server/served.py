"""A model as the server runs it: what a request decodes is watched, can be stopped, and depends on the request only."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyskip.errors import DecodeError
from pyskip.policy import Policy
from pyskip.runtime.llama import Llama
from pyskip.runtime.text import Stopwatch
from pyskip.stats import SkipStats

from .completion import create_completion
from .errors import bad_request

__all__ = ["Served", "ServedLlama"]

BLOCK = 64  # tokens: prompts are decoded in blocks, and what is kept of one for the next request are whole blocks
TRACE = 8192  # tokens between two looks: more than any context that a stop sequence could hold back


@dataclass
class Served:
    """What one request decodes. Written by the thread that decodes."""

    trace: bool = False
    is_cancelled: Callable[[], bool] = lambda: False
    n_prompt: int = 0
    n_cached: int = 0  # of the prompt, not decoded again
    n_generated: int = 0  # without the end of the text
    n_steps: int = 0  # generated tokens that were decoded: neither the last one, nor that which a prompt yields
    tokens: list[tuple[bytes, list[int]]] = field(default_factory=list)  # traced: bytes, layers that were skipped
    stats: SkipStats | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def tokens_per_second(self) -> float:
        return self.watch.gen_ts(self.n_generated)

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
        self._run: Served | None = None
        self._kept, self._kept_rule = 0, ""  # tokens of the last prompt, and what decided in it
        super().__init__(*args, **kwargs)
        if kwargs.get("chat_format") is None and "tokenizer.chat_template" not in self.metadata:
            self.chat_format = "chatml"

    @contextmanager
    def running(self, run: Served, policy: Policy | None) -> Iterator[None]:
        """While it is open, what is generated is this run's, under the policy; None: the model's own."""
        with nullcontext() if policy is None else self.deciding_by(policy):
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

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Sequence[int] | None, None]:
        """pyskip.Llama.generate, for the run that is open."""
        run = self._run
        assert run is not None, "generate() outside running()"
        tokens = list(tokens)
        run.watch.begin()
        self._keep_prefix(tokens)
        run.n_prompt, run.n_cached = run.n_prompt + len(tokens), run.n_cached + self.n_tokens
        first = True
        with closing(super().generate(tokens, *args, **kwargs)) as inner:
            for token in inner:
                is_end = self.engine.is_eog(token)
                run.watch.token(counts=not is_end)
                if first:
                    self._kept = 0 if self.engine.has_encoder else len(tokens) - len(tokens) % BLOCK
                    first = False
                else:
                    run.n_steps += 1
                if run.is_cancelled():
                    return
                run.n_generated += not is_end
                if run.trace:
                    self._trace(run, token, tokens)
                yield token

    def _create_completion(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for unused in ("suffix", "echo", "logprobs", "logit_bias"):  # what upstream's callers pass, at their defaults
            kwargs.pop(unused, None)
        return create_completion(self, *args, **kwargs)

    def _trace(self, run: Served, token: int, prompt: list[int]) -> None:
        rows = self.take_trace(1) if not self.skip.is_dense else ()
        skipped = np.flatnonzero(rows.skipped[-1]).tolist() if len(rows) else []  # type: ignore[union-attr]
        is_end = self.engine.is_eog(token)
        run.tokens.append((b"" if is_end else self.detokenize([token], prev_tokens=prompt), skipped))

    def _keep_prefix(self, tokens: list[int]) -> None:
        """Have upstream, which uses the longest prefix again, find the blocks that are safe."""
        rule = self.skip.prompt_rule
        n = min(self._kept, len(tokens) - 1) if rule and rule == self._kept_rule else 0
        n = self.longest_token_prefix(self.input_ids[:n].tolist(), tokens[:n])
        self.n_tokens = n - n % BLOCK
        self._kept, self._kept_rule = self.n_tokens, rule

    def eval(self, tokens: Sequence[int]) -> None:
        """pyskip.Llama.eval; a prompt in blocks, so that a block's values do not depend on where the batch began."""
        for start in range(0, len(tokens), BLOCK):
            super().eval(tokens[start : start + BLOCK])

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        self._kept = 0
        return super().embed(*args, **kwargs)

    def check_grammar(self, grammar: Any) -> None:
        """As bad_request()."""
        try:
            super().check_grammar(grammar)
        except DecodeError as error:
            raise bad_request(str(error), "grammar") from None
