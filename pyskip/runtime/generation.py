"""One answer: tokens in, text out piece by piece, and what it took. For pyskip.chat and `pyskip generate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..binding.library import llama_cpp
from ..errors import DecodeError
from ..stats import SkipStats
from .formatter import MessageFormatter, flattened
from .llama import Llama
from .pace import PaceStats
from .sampling import Sampling
from .text import Stopwatch, TextStream
from .tools import find_calls, probe_call

__all__ = ["Answer", "Generation", "Message", "chat_tokens"]

Message = dict[str, Any]  # {"role": "system" | "user" | "assistant", "content": text, or parts with a projector}


@dataclass(frozen=True)
class Answer:
    """An answer, whole or cut short. Rates in tokens/s; 0 if nothing was measured."""

    text: str
    n_prompt: int  # tokens of the prompt; those that were cached are not decoded again
    n_gen: int
    prompt_ts: float
    gen_ts: float
    skip: SkipStats
    pace: PaceStats | None  # if a pace is kept
    tokens: tuple[int, ...] = ()  # [n_gen]
    n_drafted: int = 0  # by a draft model, and of them those that came out
    n_accepted: int = 0


class Generation:
    """Iterate for the pieces of text; answer() tells of what has come so far, at any time."""

    def __init__(
        self,
        llm: Llama,
        tokens: list[int],
        *,
        max_tokens: int,
        temp: float = 0.0,
        seed: int | None,
        sampling: Sampling | None = None,  # in the place of temp, and more
        grammar: str | None = None,  # GBNF that the answer holds to
    ) -> None:
        self._llm, self._tokens, self._max_tokens = llm, tokens, max_tokens
        self._sampling = {"temp": temp} if sampling is None else sampling.arguments()
        self._grammar = None if grammar is None else llama_cpp.LlamaGrammar.from_string(grammar, verbose=False)
        self._text = ""
        self._generated: list[int] = []
        self._n_decoded = 0
        self._watch = Stopwatch()
        if seed is not None:
            llm.set_seed(seed)

    def __iter__(self) -> Iterator[str]:
        llm = self._llm
        engine, text, watch = llm.engine, TextStream(), Stopwatch()
        llm.reset_skip_stats()
        self._n_decoded = len(self._tokens)
        self._watch = watch
        watch.begin()
        n_room = min(self._max_tokens, llm.n_ctx() - len(self._tokens))
        last = self._tokens[-1:]
        for token in llm.generate(self._tokens, **self._sampling, grammar=self._grammar):
            watch.token()
            if not self._generated:
                self._n_decoded = max(1, len(self._tokens) - engine.n_cached)
            if engine.is_eog(token):
                break
            self._generated.append(token)
            piece = text.push(llm.detokenize([token], prev_tokens=last))
            last = [token]
            if piece:
                self._text += piece
                yield piece
            if len(self._generated) >= n_room:
                break
        tail = text.finish()
        if tail:
            self._text += tail
            yield tail

    def answer(self) -> Answer:
        n_gen = len(self._generated)
        return Answer(
            text=self._text,
            n_prompt=len(self._tokens),
            n_gen=n_gen,
            prompt_ts=self._watch.prompt_ts(self._n_decoded),
            gen_ts=self._watch.gen_ts(n_gen),
            skip=self._llm.skip_stats(),
            pace=None if self._llm.pace is None else self._llm.pace.stats(),
            tokens=tuple(self._generated),
            n_drafted=self._llm.n_drafted,
            n_accepted=self._llm.n_accepted,
        )


def chat_tokens(
    llm: Llama,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
    thinks: bool | None = None,
) -> list[int]:
    """The prompt for the assistant's next turn, by the model's own chat template, ChatML if it has none.

    tools: as OpenAI's API has them; DecodeError if the template passes over them, or calls them in a form that is not
    read. thinks: whether the model shall reason before it answers, for templates that have it so (enable_thinking).
    """
    metadata: dict[str, str] = llm.metadata
    if llm.engine.media is not None:
        messages = llm.engine.media.marked(messages)
    text = llm.engine.token_text
    template = metadata.get("tokenizer.chat_template")
    if template is None and tools:
        raise DecodeError("the model has no chat template, expected one that has tools: use another model")
    if template is None:
        prompt = (
            "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in map(flattened, messages))
            + "<|im_start|>assistant\n"
        )
        return list(llm.tokenize(prompt.encode(), add_bos=True, special=True))
    formatter = MessageFormatter(template, eos_token=text(llm.token_eos()), bos_token=text(llm.token_bos()))
    try:
        more: dict[str, Any] = {"tools": list(tools)} if tools else {}
        more |= {} if thinks is None else {"enable_thinking": thinks}
        formatted = formatter(messages=messages, **more)
    except Exception as error:  # templates raise what they like, for instance for a system message
        raise DecodeError(
            f"the model's chat template refuses these messages ({error}): try without --system, with another "
            "--chat-template, or generate"
        ) from error
    if tools:
        _check_tools(formatter, formatted.prompt, tools)
    return list(llm.tokenize(formatted.prompt.encode(), add_bos=not formatted.added_special, special=True))


def _check_tools(formatter: MessageFormatter, prompt: str, tools: Sequence[Mapping[str, Any]]) -> None:
    names = [tool["function"]["name"] for tool in tools]
    if not all(name in prompt for name in names):
        raise DecodeError(
            f"the model's chat template passes over tools ({', '.join(names)}), expected one that has them: use a "
            "model that was trained to call tools"
        )
    messages, call = probe_call()
    try:
        written = formatter(messages=messages, tools=list(tools)).prompt
    except Exception:  # templates raise what they like
        written = ""
    if call not in find_calls(written, [call.name])[1]:
        raise DecodeError(
            "the model's chat template writes calls of tools in a form that is not read here, expected JSON with a "
            "name and arguments: use another model, or pyskip serve"
        )
