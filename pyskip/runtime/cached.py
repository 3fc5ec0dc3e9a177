"""Tokens in the cache of `pyskip.Llama`: decoded, used again, saved and restored, and what a failure leaves of them."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..binding import log
from ..binding.adapters import adapters_changed
from ..binding.library import llama_cpp
from ..errors import DecodeError
from ..policy import Policy
from .engine import Engine
from .interrupt import interruptible
from .media import Placed, foreign, gone, is_placeholder
from .reuse import CacheLog, Origin

__all__ = ["Cached"]

_ONCE = itertools.count()


class Cached(llama_cpp.Llama if not TYPE_CHECKING else object):  # type: ignore[misc]
    """The part of pyskip.Llama that knows what is in sequence 0. Llama.__init__ sets what it needs."""

    _cache_log: CacheLog
    _lost: bool  # the cache is empty, though n_tokens are in it: computed anew by the next eval()
    _policy: Policy
    _engine: Engine | None
    n_drafted: int  # tokens that a draft model proposed since reset_skip_stats(), and of them those that came out
    n_accepted: int
    if TYPE_CHECKING:
        draft_model: Any
        model_path: str
        n_batch: int
        n_ctx: Any
        context_params: Any
        input_ids: Any
        longest_token_prefix: Any
        set_seed: Any
        ctx: Any
        _input_ids: Any
        _batch: Any
        _ctx: Any
        _logits_all: bool
        _n_ctx: int
        _seed: int
        _requires_eval: bool
        _check_weights: Any

        @property
        def engine(self) -> Engine: ...

    _n_tokens = 0
    _is_own = False  # what is decoded now, and written to input_ids

    @property
    def n_tokens(self) -> int:
        """Positions in the cache; llama_cpp.Llama's own, and chat handlers, set it. What somebody else decoded, as its
        handlers of images do, is no prompt's: nobody may take it for tokens that were there before."""
        return self._n_tokens

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        if n > self._n_tokens and not self._is_own:
            self.input_ids[self._n_tokens : n] = foreign(n - self._n_tokens)
        self._n_tokens = n

    @contextmanager
    def _own(self) -> Iterator[None]:
        before, self._is_own = self._is_own, True
        try:
            yield
        finally:
            self._is_own = before

    def eval(self, tokens: Sequence[int]) -> None:
        """Decode tokens at the next positions, and what placeholders among them stand for. Raises DecodeError if they
        do not fit, if llama.cpp fails, and for a model that does not generate."""
        self._check_weights()
        engine = self.engine
        engine.check_decoder()
        if self.n_tokens + len(tokens) > self._n_ctx:
            raise DecodeError(
                f"{self.n_tokens} + {len(tokens)} tokens do not fit a context of {self._n_ctx}: "
                "shorten the prompt or raise n_ctx (-c)"
            )
        engine.apply_mark()
        log.forget()
        engine.check_process()
        if self._lost:
            tokens = [*self._input_ids.tolist(), *tokens]
            self.n_tokens = 0
        engine.n_cached = self.n_tokens if engine.n_cached < 0 else engine.n_cached
        self._note_origins(len(tokens))
        done = False
        try:
            with interruptible(engine.skip.native), self._own():
                for piece in self._pieces(tokens):
                    if isinstance(piece, Placed):
                        self._eval_chunk(piece)
                    elif self._has_draft(piece):
                        self._eval_draft(piece)
                    else:
                        super().eval(piece)
            done = True
        except RuntimeError as error:
            raise DecodeError(f"llama.cpp cannot decode ({log.last_complaint() or error})") from error
        finally:
            if not done:
                self._forget_failed()
        self._lost = False
        engine.check_file()

    def _pieces(self, tokens: Sequence[int]) -> Iterator[Sequence[int] | Placed]:
        """Tokens, and chunks in the place of their placeholders."""
        media = self.engine.media
        if not any(map(is_placeholder, tokens)):
            yield tokens
            return
        if self._generates(self.n_tokens):  # a draft of a prompt's: none is generated
            yield list(itertools.takewhile(lambda token: not is_placeholder(token), tokens))
            return
        if media is None:
            raise gone("prompt")
        start = 0
        for at, placed in list(media.chunks(tokens)):
            if at > start:
                yield tokens[start:at]
            yield placed
            start = at + len(placed.tokens)
        if start < len(tokens):
            yield tokens[start:]

    def _generates(self, pos: int) -> bool:
        first = self.engine.generated_from
        return 0 <= first <= pos

    def _eval_chunk(self, placed: Placed) -> None:
        """As llama_cpp.Llama.eval() for tokens."""
        media, start = self.engine.media, self.n_tokens
        assert media is not None
        self.engine.cut(start)
        media.decode(self.ctx, placed.chunk, start, self.n_batch, self.context_params.n_ubatch)
        end = start + len(placed.tokens)
        self.input_ids[start:end] = placed.tokens
        if self._logits_all:
            self.scores[start:end] = 0
        self.n_tokens = end
        self._requires_eval = True  # there are no logits

    # What a draft model proposes

    def _has_draft(self, tokens: Sequence[int]) -> bool:
        """Whether the logits of each token are needed, and upstream would not have them."""
        return (
            len(tokens) > 1
            and self.draft_model is not None
            and not self._logits_all
            and 0 <= self.engine.generated_from <= self.n_tokens
        )

    def _eval_draft(self, tokens: Sequence[int]) -> None:
        """llama_cpp.Llama.eval of one batch with the logits of every token. (Its logits_all would keep those of the
        whole context, and compute them for prompts.) What does not fit into the batch was only a draft."""
        n, tokens = self.n_tokens, tokens[: self.n_batch]
        self.engine.cut(n)
        self._batch.set_batch(batch=tokens, n_past=n, logits_all=True)
        self._ctx.decode(self._batch)
        self.input_ids[n : n + len(tokens)] = tokens
        self.n_tokens += len(tokens)
        self._requires_eval = False

    def _drafting(
        self, first: int, inner: Generator[int, Sequence[int] | None, None]
    ) -> Generator[int, Sequence[int] | None, None]:
        """The same generator, whose first token is that of position `first`. What a draft proposed and is not said, or
        by another policy than it was decoded by, goes again."""
        n = first - 1  # position of the token that came last
        sent: Sequence[int] | None = None
        try:
            while True:
                origin, n_before = self._origin(is_prompt=False), self.n_tokens
                try:
                    token = inner.send(sent)
                except StopIteration:
                    return
                n += 1
                if self.n_tokens > n_before and n > first:
                    self.n_drafted += self.n_tokens - n_before - 1
                if self.n_tokens > n and self.input_ids[n] == token:
                    self.n_accepted += 1
                else:
                    self._reject(n)
                sent = yield token
                if self._origin(is_prompt=False) != origin:
                    self._reject(n)
        finally:
            inner.close()
            if self._engine is not None and n >= first:
                self._reject(n)

    def _reject(self, n: int) -> None:
        """What a draft put into the cache behind n tokens is neither there nor counted any more."""
        if self.n_tokens > n:
            self.n_tokens = n
            self.engine.cut(n)
            self.engine.skip.take_back(n)
            self._requires_eval = True

    def _forget_failed(self) -> None:
        """Upstream counts a batch only when it was decoded; what a failed one left in the cache must not stay. What
        cannot be cut (a recurrent state) is computed anew by the next eval()."""
        self._lost = not self.engine.cut(self.n_tokens) and bool(self.engine.memory)
        if self._lost:
            self.engine.clear()

    def _note_origins(self, n: int) -> None:
        """Of the next n tokens."""
        first, end = self.engine.generated_from, self.n_tokens + n
        n_prompt = end if first < 0 else max(self.n_tokens, min(first, end))
        if n_prompt > self.n_tokens:
            self._cache_log.note(self.n_tokens, self._origin(is_prompt=True))
        if end > n_prompt:
            self._cache_log.note(n_prompt, self._origin(is_prompt=False))

    def _origin(self, is_prompt: bool) -> Origin:
        policy = self._policy
        is_dense = policy.is_dense or (is_prompt and policy.shares_prompt)
        if is_dense:
            rule = ""
        elif is_prompt:  # one that no other prompt has, if what is decided depends on where the prompt ends
            rule = policy.prompt_rule or f"{policy} {next(_ONCE)}"
        else:
            rule = str(policy)
        return Origin(adapters_changed(self.ctx), is_prompt, rule)

    def _drop_unusable(self, tokens: list[int]) -> None:
        """Before upstream looks for a prefix in the cache: only what this prompt would compute to the same is one."""
        n = self.longest_token_prefix(self._input_ids.tolist(), tokens)
        prompt = self._origin(is_prompt=True)
        usable = 0 if self._lost else self._cache_log.usable(n, prompt)
        if any(map(is_placeholder, tokens[:n])):
            media = self.engine.media
            if media is None or not media.knows(tokens):
                return  # a chat handler's own images, which cannot be decoded again
            usable = media.boundary(tokens, usable)
        if usable < n:
            self.n_tokens = usable
            self._requires_eval = True
        elif n == len(tokens) and not self._cache_log.has_logits(n, prompt):
            self._requires_eval = True

    def reset(self) -> None:
        """Forget the tokens and mark_generated()."""
        if self._engine is not None:
            self._engine.clear_mark()
        self._lost = False
        super().reset()

    def load_state(self, state: Any) -> None:
        """llama_cpp.Llama.load_state. Raises DecodeError, and leaves the cache empty, for a state that does not fit: of
        another model, of a larger context, or damaged."""
        if not isinstance(state, llama_cpp.LlamaState):
            raise DecodeError(f"the state is a {type(state).__name__}, expected what save_state() returned")
        if state.n_tokens > self._n_ctx:
            raise DecodeError(
                f"the state has {state.n_tokens} tokens, the context holds {self._n_ctx}: raise n_ctx, as it was saved"
            )
        input_ids, seed = self.input_ids, self._seed
        log.forget()
        self.engine.clear()  # llama.cpp fills the cache and leaves alone what is known of the prompt that was in it
        try:
            with self._own():
                super().load_state(state)
        except (RuntimeError, ValueError, TypeError) as error:
            self.input_ids, self._seed = input_ids, seed
            self.reset()
            self.engine.clear()
            reason = log.last_complaint() or " ".join(str(error).split())
            raise DecodeError(
                f"llama.cpp refuses the state ({reason}), expected one that save_state() returned of this model"
            ) from error
        finally:
            self._cache_log.clear()
            self._lost = False
            self.set_seed(self._seed)
        input_ids[: state.n_tokens] = state.input_ids[: state.n_tokens]
        self.input_ids = input_ids  # which is as long as this context, and not the other one

    # A conversation that is left and gone on with (pyskip.chat.session)

    def save_sequence(self) -> bytes:
        """The KV cache of the tokens in it (eval_tokens), empty if there is none that could be restored."""
        return self.engine.save_state(self.n_tokens)

    def restore_sequence(self, tokens: Sequence[int], state: bytes | None) -> str | None:
        """Go on after these tokens, with what save_sequence() returned; None: with an empty cache.

        Returns why llama.cpp did not take the state, in which case the cache is empty; None if it did."""
        self.reset()
        self.engine.clear()
        self._cache_log.clear()
        if state is None:
            return None
        if not self.engine.restore_state(len(tokens), state):
            self.engine.clear()
            return log.last_complaint() or "llama.cpp refuses it"
        self.input_ids[: len(tokens)] = np.array(tokens, np.intc)
        with self._own():
            self.n_tokens = len(tokens)
        self._requires_eval = True
        return None
