"""A conversation: its turns, and the answers that the model gives to them. Used by `pyskip chat`.

Knows no terminal: answers come piece by piece, and what there is to tell goes to a function that is given.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from ..errors import DecodeError
from ..runtime.generation import Answer, Generation, Message, chat_tokens
from ..runtime.llama import Llama
from ..runtime.sampling import Sampling
from ..stats import SkipTrace
from .reasoning import OPEN

__all__ = ["Conversation", "Stream"]

Stream = Callable[[Iterable[str]], Generator[str, None, None]]


class Conversation:
    """The turns so far, and what they took.

    n_predict: tokens of an answer, at most. seed: of the sampling, for the whole conversation.
    thinks: whether the model reasons before it answers, where its template lets that be chosen; None: as it has it.
    stream: what runs the iterator of an answer's pieces, for instance in another thread.
    tell: gets a line when the oldest turns are dropped, because the context is full.
    """

    def __init__(
        self,
        llm: Llama,
        system: str | None = None,
        *,
        n_predict: int = 512,
        sampling: Sampling | None = None,
        seed: int | None = None,
        thinks: bool | None = None,
        stream: Stream | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.llm, self.n_predict, self.sampling, self.seed = llm, n_predict, sampling, seed
        self.system, self.thinks = system or None, thinks
        self.turns: list[Message] = []  # user, assistant, user, ...
        self.answers: list[Answer] = []  # all that were given, those to turns that are gone too
        self.attached: list[dict[str, Any]] = []  # images and audio, as parts of the next turn
        self.trace: SkipTrace | None = None  # of the last of them
        self._stream, self._tell = stream, tell
        if seed is not None:
            llm.set_seed(seed)
        self._n_trace = min(n_predict, llm.n_ctx())
        llm.start_trace(self._n_trace)

    @property
    def messages(self) -> list[Message]:
        """What the next prompt is made of."""
        return [{"role": "system", "content": self.system}, *self.turns] if self.system else list(self.turns)

    def say(self, text: str) -> Generator[str, None, None]:
        """The pieces of the answer. Raises KeyboardInterrupt if it was stopped, and DecodeError; what had come is
        kept as a turn, and a turn that got no answer because of an error is not."""
        attached, self.attached = self.attached, []
        content = [*attached, {"type": "text", "text": text}] if attached else text
        self.turns.append({"role": "user", "content": content})
        try:
            yield from self._answer(self._fit())
        except DecodeError:
            if self.turns and self.turns[-1]["role"] == "user":
                self.turns.pop()
            raise
        finally:
            if self.turns and self.turns[-1]["role"] == "user":
                self.turns.append({"role": "assistant", "content": ""})

    def retry(self) -> Generator[str, None, None]:
        """Another answer to the last turn, under the policy that is now in force; with a seed, from the next seed. As
        say(); if nothing came, the old answer stays. Raises DecodeError if there is no turn yet."""
        if not self.turns:
            raise DecodeError("nothing was said yet, expected a turn to answer again")
        if self.seed is not None:
            self.seed = (self.seed + 1) % 2**32
            self.llm.set_seed(self.seed)
        old = self.turns.pop()
        try:
            yield from self._answer(self._fit())
        finally:
            if self.turns[-1]["role"] == "user":
                self.turns.append(old)

    def clear(self) -> None:
        """Forget the turns, and what was attached; the system message and what was measured stay."""
        self.attached.clear()
        self.turns.clear()

    def _answer(self, tokens: list[int]) -> Generator[str, None, None]:
        """Appends the assistant's turn, unless nothing came. If the template has begun it as reasoning, that tag comes
        first."""
        if self.llm.detokenize(tokens[-16:], special=True).rstrip().endswith(OPEN.encode()):
            yield OPEN
        generation = Generation(self.llm, tokens, max_tokens=self.n_predict, sampling=self.sampling, seed=None)
        try:
            yield from self._stream(generation) if self._stream else generation
        finally:
            answer = generation.answer()
            trace = self.llm.take_trace(self._n_trace)
            if answer.n_gen:
                self.answers.append(answer)
                self.trace = trace
                self.turns.append({"role": "assistant", "content": answer.text})

    def _fit(self) -> list[int]:
        """The prompt's tokens; drops the oldest turns if they leave no room for an answer."""
        n_ctx = self.llm.n_ctx()
        room = min(self.n_predict, max(1, n_ctx // 4))
        n_dropped = 0
        tokens = chat_tokens(self.llm, self.messages, thinks=self.thinks)
        while len(tokens) + room > n_ctx and len(self.turns) > 1:
            del self.turns[:2]
            n_dropped += 2
            tokens = chat_tokens(self.llm, self.messages, thinks=self.thinks)
        if n_dropped:
            self._tell(f"the context of {n_ctx} tokens is full: dropped the oldest {n_dropped} messages")
        return tokens
