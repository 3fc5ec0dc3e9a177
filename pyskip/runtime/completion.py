"""Completions as OpenAI's clients read them, where llama-cpp-python's are not: seeds, log-probabilities, echoes, JSON
schemas."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextvars import ContextVar
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from ..binding.library import llama_cpp
from ..errors import DecodeError
from .ending import ended, stop_texts, text_before
from .engine import Engine
from .formatter import flattened
from .media import is_placeholder
from .sampling import Dry
from .schema import ASKING, asked_parameters, grammar_for_format, grammar_for_schema

__all__ = ["Completion"]

UNSEEDED = int(llama_cpp.LLAMA_DEFAULT_SEED)


# Of the tool that must be called, while a chat handler of upstream's makes a grammar of its own converter's.
_TOOL_GRAMMAR: ContextVar[Any] = ContextVar("_TOOL_GRAMMAR", default=None)


class _CallSeed(int):
    """A seed of one call, beside that of the Llama."""


class Completion(llama_cpp.Llama if not TYPE_CHECKING else object):  # type: ignore[misc]
    """The part of pyskip.Llama that makes answers of tokens. Llama.__init__ sets what it needs."""

    _own_seed: int | None  # None: every generation has its own
    _seed: int
    _taken: tuple[list[int], list[int]]  # the last generation's prompt, and what it has yielded
    _n_asked: int | None = None  # max_tokens of the completion whose generation begins next
    _is_over = False  # the last generation
    _is_cut = False  # by its length, and upstream would have gone on
    _kept_error: BaseException | None = None  # of a logits processor
    _dry: Dry | None = None  # of the next sampler
    if TYPE_CHECKING:
        scores: Any
        draft_model: Any
        n_drafted: int
        n_accepted: int
        tokenize: Any
        detokenize: Any
        token_bos: Any
        spm_infill: bool
        chat_format: Any
        _chat_handlers: Any
        n_vocab: Any
        _model: Any
        _n_ctx: int

        @property
        def engine(self) -> Engine: ...

    # Seeds

    def set_seed(self, seed: int) -> None:
        """Of the generations to come, which are then the same in every process; -1: each of another, as without one."""
        unseeded = seed in (-1, UNSEEDED)
        if not isinstance(seed, _CallSeed):
            self._own_seed = None if unseeded else seed
        self._seed = UNSEEDED if unseeded else seed

    def _next_seed(self, seed: int | None) -> _CallSeed:
        """What a call that was given this seed samples by."""
        if seed is not None and seed not in (-1, UNSEEDED):
            return _CallSeed(seed)
        if self._own_seed is None:
            return _CallSeed(secrets.randbelow(UNSEEDED))
        self._own_seed = Random(self._own_seed).randint(0, UNSEEDED - 1)
        return _CallSeed(self._own_seed)

    def _leave_seed(self) -> None:
        """A sampler was made: what follows has the Llama's own seed again."""
        self._seed = UNSEEDED if self._own_seed is None else self._own_seed

    def _room(self, n_prompt: int) -> int:
        """Tokens that the completion which begins may have, as upstream counts them; 0: it is none's."""
        n_asked, self._n_asked = self._n_asked, None
        if n_asked is None:
            return 0
        n_left = self._n_ctx - n_prompt
        return min(n_asked, n_left) if n_asked > 0 else n_left

    def _taking(
        self, prompt: list[int], n_most: int, inner: Generator[int, Sequence[int] | None, None]
    ) -> Generator[int, Sequence[int] | None, None]:
        """The same generator, of up to n_most tokens (0: of any number); what it yields is remembered."""
        taken: list[int] = []
        self._taken, self._is_cut, self._is_over = (prompt, taken), False, False
        sent: Sequence[int] | None = None
        try:
            while True:
                try:
                    token = inner.send(sent)
                except StopIteration:
                    return
                if sent is None and not taken:
                    self._leave_seed()
                taken.append(token)
                sent = yield token
                if len(taken) == n_most:
                    self._is_cut = True
                    return
        finally:
            self._is_over = True
            inner.close()

    # Logits processors

    def _init_sampler(self, *args: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
        """llama_cpp.Llama's; what a processor raises is kept for _raise_kept(). llama.cpp calls it through ctypes,
        which prints errors, and the token would be sampled as if there were no processor."""
        if logits_processor is not None:
            logits_processor = llama_cpp.LogitsProcessorList([self._keeping_errors(logits_processor)])
        sampler = super()._init_sampler(*args, logits_processor=logits_processor, **kwargs)
        dry, self._dry = self._dry, None
        if dry is not None:
            said = [token for token in self._taken[0] if not is_placeholder(token)]
            dry.add_to(sampler, self._model.vocab, self._n_ctx, said)
        return sampler

    def _keeping_errors(self, processors: Sequence[Any]) -> Any:
        def process(input_ids: Any, logits: Any) -> Any:
            try:
                for processor in processors:
                    logits[:] = processor(input_ids, logits)
            except BaseException as error:  # KeyboardInterrupt, too
                self._kept_error = error
            return logits

        return process

    def _raise_kept(self) -> None:
        """After each token."""
        error, self._kept_error = self._kept_error, None
        if error is not None:
            raise error

    # Completions

    def _create_completion(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        prompt = kwargs.get("prompt", args[0] if args else "")
        logprobs, echo, stream = (kwargs.get(name) for name in ("logprobs", "echo", "stream"))
        kwargs["seed"] = self._next_seed(kwargs.get("seed"))
        kwargs["echo"] = False
        if logprobs is not None and not stream:
            if not self._logits_all:
                raise DecodeError(
                    "logprobs found logits_all=False, expected the logits of every token: load with logits_all=True"
                )
            kwargs["logprobs"] = None
        if kwargs.get("logit_bias"):
            _check_bias(kwargs["logit_bias"], self.n_vocab())
        if kwargs.get("logit_bias") and kwargs.get("logits_processor"):  # upstream loses both
            bias = llama_cpp.LogitsProcessorList([_biased(kwargs["logit_bias"])])
            kwargs["logits_processor"] = llama_cpp.LogitsProcessorList([*kwargs["logits_processor"], *bias])
            kwargs["logit_bias"] = None
        if kwargs.get("suffix") is not None:
            kwargs["prompt"], kwargs["suffix"] = self._infill(prompt, kwargs["suffix"]), None
        self._n_asked = kwargs.get("max_tokens") or 0
        kwargs["stop"] = stops = stop_texts(kwargs.get("stop"))
        answers = self._checked(super()._create_completion(*args, **kwargs))

        def is_over() -> bool:
            return self._is_cut if not stream else self._is_over and logprobs is None

        before = self.n_drafted, self.n_accepted
        first = True
        for answer in ended(answers, bool(stream), is_over, lambda: self._end(prompt, stops)):
            if echo and first:
                head = prompt if isinstance(prompt, str) else self.detokenize(prompt).decode("utf-8", "ignore")
                choice = answer["choices"][0]
                if stream:
                    yield {**answer, "choices": [{**choice, "text": head, "logprobs": None, "finish_reason": None}]}
                else:
                    choice["text"] = head + choice["text"]
            if logprobs is not None and not stream:
                answer["choices"][0]["logprobs"] = self._logprobs(prompt, int(logprobs), bool(echo))
            if "usage" in answer and self.draft_model is not None:
                drafted = {"n_drafted": self.n_drafted - before[0], "n_accepted": self.n_accepted - before[1]}
                answer["usage"] |= drafted
            first = False
            yield answer

    def _end(self, prompt: str | list[int], stops: Sequence[str]) -> tuple[str, bool]:
        """The text of what was generated last, and whether a stop text ended it."""
        before, taken = self._taken
        tokens = list(itertools.takewhile(lambda token: not self.engine.is_eog(token), taken))
        start = [] if len(prompt) > 0 else [self.token_bos()]  # as upstream: no space begins the text
        return text_before(stops, self.detokenize([*start, *tokens], prev_tokens=before))

    def _infill(self, prompt: str | list[int], suffix: str) -> list[int]:
        """A prompt for what stands between the two, by the vocabulary's own tokens; upstream's are token 0."""
        vocab = self.engine.vocab
        pre, suf, mid = (getattr(llama_cpp, f"llama_vocab_fim_{part}")(vocab) for part in ("pre", "suf", "mid"))
        if min(pre, suf, mid) < 0:
            raise DecodeError(
                "suffix found a vocabulary without fill-in-the-middle tokens, expected a model that was trained for "
                "it: leave it out"
            )
        before = self.tokenize(prompt.encode(), add_bos=False, special=False) if isinstance(prompt, str) else prompt
        start, end = [pre, *before], [suf, *self.tokenize(suffix.encode(), add_bos=False, special=False)]
        bos = [self.token_bos()] if self.engine.adds_bos else []
        return [*bos, *end, *start, mid] if self.spm_infill else [*bos, *start, *end, mid]

    def _checked(self, answers: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from answers
        except ValueError as error:
            self._n_asked = None
            if isinstance(error, DecodeError) or "exceed context window" not in str(error):
                raise
            raise DecodeError(f"{error}: shorten the prompt or raise n_ctx (-c)") from error

    def _logprobs(self, prompt: str | list[int], n_top: int, echo: bool) -> dict[str, list[Any]]:
        """Of the last generation: of each token what the one before it said, so none of the first."""
        before, generated = self._taken
        generated = [token for token in generated if not self.engine.is_eog(token)]
        tokens = before + generated
        start = 0 if echo else len(before)
        if echo and before[:1] == [self.token_bos()]:
            start = 1  # not part of the text
        offset = (
            0 if echo else len(prompt if isinstance(prompt, str) else self.detokenize(prompt).decode("utf-8", "ignore"))
        )
        found: dict[str, list[Any]] = {"tokens": [], "text_offset": [], "token_logprobs": [], "top_logprobs": []}
        for i in range(start, len(tokens)):
            if is_placeholder(tokens[i]):
                continue
            text = str(self.detokenize([tokens[i]], tokens[:i]).decode("utf-8", "ignore"))
            if echo and i == start and isinstance(prompt, str) and not prompt.startswith(text):
                text = text.removeprefix(" ")  # which some vocabularies put before a text
            found["tokens"].append(text)
            found["text_offset"].append(offset)
            offset += len(text)
            if (echo and i == start) or is_placeholder(tokens[i - 1]):  # as OpenAI's, also behind a BOS
                found["token_logprobs"].append(None)
                found["top_logprobs"].append(None)
                continue
            row = llama_cpp.Llama.logits_to_logprobs(self.scores[i - 1])
            best = np.argsort(row)[::-1][:n_top]
            top = {
                self.detokenize([int(token)], tokens[:i]).decode("utf-8", "ignore"): float(row[token]) for token in best
            }
            found["token_logprobs"].append(float(row[tokens[i]]))
            found["top_logprobs"].append({**top, text: float(row[tokens[i]])})
        return found

    # Chat

    def create_chat_completion(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        """llama_cpp.Llama.create_chat_completion. With a projector (mmproj) messages may have parts of type image_url
        and input_audio. response_format takes a JSON schema, by llama.cpp's own converter:

        {"type": "json_object"}, with or without "schema", or {"type": "json_schema", "json_schema": {"schema": {...}}}.
        The arguments of a tool that tool_choice or function_call names hold to its parameters likewise. Raises
        DecodeError for a schema with a keyword that a grammar cannot hold, and names it."""
        messages = self._readable(messages)
        response_format = kwargs.get("response_format")
        if response_format is not None:
            grammar = grammar_for_format(response_format)
            if grammar is not None:
                if kwargs.get("grammar") is not None:
                    raise DecodeError("response_format and grammar were both given, expected one of them")
                kwargs["grammar"] = llama_cpp.LlamaGrammar.from_string(grammar, verbose=False)
            kwargs["response_format"] = None
        if kwargs.get("logprobs") and kwargs.get("top_logprobs") is None:
            kwargs["top_logprobs"] = 0  # upstream then forgets the token's own
        schema = asked_parameters({**dict(zip(ASKING, args, strict=False)), **kwargs})
        if schema is None:
            return super().create_chat_completion(messages, *args, **kwargs)
        grammar = llama_cpp.LlamaGrammar.from_string(grammar_for_schema(schema), verbose=False)
        before = _TOOL_GRAMMAR.set(grammar)
        try:
            return super().create_chat_completion(messages, *args, **kwargs)
        finally:
            _TOOL_GRAMMAR.reset(before)

    def _readable(self, messages: Any) -> Any:
        """Messages with text in the place of images and audio, if there is a projector."""
        media = self.engine.media
        if media is None:
            return messages
        marked = media.marked(messages)
        return marked if self.chat_format in self._chat_handlers else [flattened(message) for message in marked]

    def create_completion(self, *args: Any, **kwargs: Any) -> Any:
        """llama_cpp.Llama.create_completion."""
        if _TOOL_GRAMMAR.get() is not None and kwargs.get("grammar") is not None:
            kwargs["grammar"] = _TOOL_GRAMMAR.get()
        return super().create_completion(*args, **kwargs)


def _check_bias(logit_bias: Mapping[Any, float], n_vocab: int) -> None:
    """Raises DecodeError for what is no token; one below 0 would be counted from the vocabulary's end."""
    for token in logit_bias:
        if not str(token).isdecimal() or int(token) >= n_vocab:
            raise DecodeError(f"logit_bias has {str(token)[:40]!r}, expected tokens from 0 to {n_vocab - 1}")


def _biased(logit_bias: Mapping[Any, float]) -> Any:
    """A logits processor that adds what is given by token."""

    def process(_tokens: Any, scores: Any) -> Any:
        scores = np.copy(scores)
        for token, bias in logit_bias.items():
            scores[int(token)] += float(bias)
        return scores

    return process
