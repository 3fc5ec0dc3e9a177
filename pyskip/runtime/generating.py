"""What `pyskip.Llama` does between a prompt and its tokens: llama_cpp.Llama.generate(), with the caller's word of what
is prompt and what is generated."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from ..binding import log
from ..binding.library import llama_cpp
from ..errors import DecodeError
from .arguments import check_grammar
from .cached import Cached
from .completion import Completion
from .embedding import Embedding
from .guard import Guard, steps
from .media import is_placeholder
from .sampling import Dry
from .skipping import Skipping

__all__ = ["Generating"]


class Generating(Completion, Embedding, Cached, Skipping, llama_cpp.Llama):  # type: ignore[misc]
    """The part of pyskip.Llama that prompts go through, above those that it is made of. Llama.__init__ sets what it
    needs."""

    def generate(
        self,
        tokens: Sequence[int],
        *args: Any,
        dry_multiplier: float = 0.0,
        dry_base: float = 1.75,
        dry_allowed_length: int = 2,
        dry_penalty_last_n: int = 64,
        **kwargs: Any,
    ) -> Generator[int, Sequence[int] | None, None]:
        """llama_cpp.Llama.generate; tokens after the prompt, which an encoder-decoder encodes, count as generated.
        dry_*: of the DRY sampler, as llama.cpp's flags of these names."""
        tokens = list(tokens)
        dry = Dry(dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n)
        if kwargs.get("grammar") is not None:
            self.check_grammar(kwargs["grammar"])
        reset = kwargs["reset"] if "reset" in kwargs else args[6] if len(args) > 6 else True
        first = len(tokens) + (0 if reset else self.n_tokens)
        if first == 0:
            raise DecodeError("the prompt has no tokens, expected at least one")
        if first > self._n_ctx:
            raise DecodeError(
                f"the prompt has {first} tokens, the context {self._n_ctx}: shorten it or raise n_ctx (-c)"
            )
        if any(map(is_placeholder, tokens)):
            self._check_placeholders(tokens)
        return steps(self._guard or Guard(), self._generate(tokens, first, reset, dry, args, kwargs))

    def _check_placeholders(self, tokens: list[int]) -> None:
        """Raises DecodeError for a prompt with images or audio that cannot be gone on with."""
        media = self.engine.media
        n_rows = media.n_rows(tokens) if media is not None and media.knows(tokens) else 0
        if n_rows > self._n_ctx:
            raise DecodeError(
                f"the prompt has {n_rows} tokens with its images, the context {self._n_ctx}: smaller ones, or raise "
                "n_ctx (-c)"
            )
        if is_placeholder(tokens[-1]):
            raise DecodeError("the prompt ends in an image or audio, expected text behind it")

    def _generate(
        self, tokens: list[int], first: int, reset: bool, dry: Dry, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Generator[int, Sequence[int] | None, None]:
        n_most = self._room(len(tokens))
        if self.engine.has_encoder:
            tokens = self._encode(tokens)
            first = len(tokens)
        elif reset:
            self._drop_unusable(tokens)
        self.engine.n_cached = -1  # the first eval() tells
        self._dry = dry  # of the sampler that upstream makes first
        inner = self._taking(tokens, n_most, super().generate(tokens, *args, **kwargs))
        if self.draft_model is not None:
            inner = self._drafting(first, inner)
        sent: Sequence[int] | None = None
        n_left = self._n_dense()  # decodes to come that no operating point has a say in
        if self._pace is not None:
            self._pace.restart()
        try:
            while True:
                self.engine.generating(first)
                pace = self._pace if n_left == 0 else None
                n_left = max(0, n_left - 1)
                if pace is not None:
                    pace.begin()
                try:
                    token = inner.send(sent)
                except StopIteration:
                    return
                finally:
                    if self._engine is not None:
                        self._engine.generating(-1)  # while the caller has the token, eval() is the caller's own
                if pace is not None and pace.end():
                    self._set_policy(self._pace_from.at_rate(pace.rate))
                sent = yield token
        finally:
            inner.close()

    def sample(self, *args: Any, idx: int | None = None, **kwargs: Any) -> int:
        """llama_cpp.Llama.sample. Raises DecodeError if there are no logits: nothing was decoded since the cache was
        emptied or restored, or since a decode failed. (llama.cpp would end the process.)"""
        row = -1 if idx is None else idx - self.n_tokens
        if self.n_tokens == 0 or not llama_cpp.llama_get_logits_ith(self.ctx, row):
            raise DecodeError("there are no logits to sample from, expected a decode before: call eval() or generate()")
        token = int(super().sample(*args, idx=idx, **kwargs))
        self._raise_kept()
        return token

    def check_grammar(self, grammar: Any) -> None:
        """Raises DecodeError for one that llama.cpp cannot read: it then has no sampler, and upstream uses it."""
        check_grammar(self._model.vocab, grammar)

    def _check_weights(self) -> None:
        if self.model_params.vocab_only:
            raise DecodeError("the model was loaded with vocab_only, expected its weights: load it without")

    def _encode(self, tokens: list[int]) -> list[int]:
        """Let the encoder read the prompt. Returns what the decoder starts with."""
        self._check_weights()
        engine = self.engine
        engine.check_generates()
        n_max = min(self.n_batch, self.context_params.n_ubatch)
        if len(tokens) > n_max:
            raise DecodeError(
                f"the prompt has {len(tokens)} tokens, the encoder takes {n_max} at once: shorten it or raise n_ubatch"
            )
        self.reset()
        engine.clear()
        self._batch.set_batch(batch=tokens, n_past=0, logits_all=False)
        log.forget()
        try:
            self._ctx.encode(self._batch)
        except RuntimeError as error:
            raise DecodeError(f"llama.cpp cannot encode ({log.last_complaint() or error})") from error
        engine.has_encoded = True
        start = llama_cpp.llama_model_decoder_start_token(self._model.model)
        return [start if start >= 0 else max(self.token_bos(), 0)]
