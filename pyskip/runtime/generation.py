"""One answer: tokens in, text out piece by piece, and what it took. For pyskip.conversation and `pyskip generate`."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..binding.library import llama_cpp
from ..errors import DecodeError
from ..pace import PaceStats
from ..stats import SkipStats
from .llama import Llama

__all__ = ["Answer", "Generation", "Message", "chat_tokens"]

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Answer:
    """An answer, whole or cut short. Rates in tokens/s; 0 where nothing was measured."""

    text: str
    n_prompt: int  # tokens of the prompt; those that were cached are not decoded again
    n_gen: int
    prompt_ts: float
    gen_ts: float
    skip: SkipStats
    pace: PaceStats | None  # where a pace is kept
    tokens: tuple[int, ...] = ()  # [n_gen]


class Generation:
    """Iterate for the pieces of text; answer() tells of what has come so far, at any time."""

    def __init__(self, llm: Llama, tokens: list[int], *, max_tokens: int, temp: float, seed: int | None) -> None:
        self._llm, self._tokens, self._max_tokens, self._temp = llm, tokens, max_tokens, temp
        self._text = ""
        self._generated: list[int] = []
        self._n_decoded = 0
        self._t_start = self._t_first = self._t_last = 0.0
        if seed is not None:
            llm.set_seed(seed)

    def __iter__(self) -> Iterator[str]:
        llm = self._llm
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        vocab = llm._model.vocab
        llm.reset_skip_stats()
        n_cached = llm.longest_token_prefix(llm._input_ids.tolist(), self._tokens)
        self._n_decoded = max(1, len(self._tokens) - n_cached)
        self._t_start = time.perf_counter()
        n_room = min(self._max_tokens, llm.n_ctx() - len(self._tokens))
        last = self._tokens[-1:]
        for token in llm.generate(self._tokens, temp=self._temp):
            self._t_last = time.perf_counter()
            self._t_first = self._t_first or self._t_last
            if llama_cpp.llama_vocab_is_eog(vocab, token):
                break
            self._generated.append(token)
            piece = decoder.decode(llm.detokenize([token], prev_tokens=last))
            last = [token]
            if piece:
                self._text += piece
                yield piece
            if len(self._generated) >= n_room:
                break
        tail = decoder.decode(b"", final=True)
        if tail:
            self._text += tail
            yield tail

    def answer(self) -> Answer:
        n_gen = len(self._generated)
        prompt_s, gen_s = self._t_first - self._t_start, self._t_last - self._t_first
        return Answer(
            text=self._text,
            n_prompt=len(self._tokens),
            n_gen=n_gen,
            prompt_ts=self._n_decoded / prompt_s if self._t_first and prompt_s > 0 else 0.0,
            gen_ts=(n_gen - 1) / gen_s if n_gen > 1 and gen_s > 0 else 0.0,
            skip=self._llm.skip_stats(),
            pace=None if self._llm.pace is None else self._llm.pace.stats(),
            tokens=tuple(self._generated),
        )


def chat_tokens(llm: Llama, messages: list[Message]) -> list[int]:
    """The prompt for the assistant's next turn, by the model's own chat template, ChatML where it has none."""
    metadata: dict[str, str] = llm.metadata
    vocab = llm._model.vocab

    def text(token: int) -> str:
        raw: Any = llama_cpp.llama_vocab_get_text(vocab, token) if token != -1 else b""
        return bytes(raw).decode("utf-8", "replace")

    template = metadata.get("tokenizer.chat_template")
    if template is None:
        prompt = (
            "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
            + "<|im_start|>assistant\n"
        )
        return list(llm.tokenize(prompt.encode(), add_bos=True, special=True))
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = Jinja2ChatFormatter(template, eos_token=text(llm.token_eos()), bos_token=text(llm.token_bos()))
    try:
        formatted = formatter(messages=messages)  # type: ignore[arg-type]
    except Exception as error:  # templates raise what they like, for instance for a system message
        raise DecodeError(
            f"the model's chat template refuses these messages ({error}): try without --system, or generate"
        ) from error
    return list(llm.tokenize(formatted.prompt.encode(), add_bos=not formatted.added_special, special=True))
