"""Tokens to pieces of text: what upstream's completion and chat handlers turn into answers.

In the place of Llama._create_completion, which writes all text anew for every token, holds a stream back for good at
the first byte that is no UTF-8, and goes beyond max_tokens and the context in the middle of a character.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from pyskip.runtime.llama import Llama
from pyskip.runtime.text import TextStream

from .errors import bad_request

__all__ = ["create_completion"]


def create_completion(
    llm: Llama,
    prompt: str | list[int],
    *,
    max_tokens: int | None = None,
    stop: str | list[str] | None = None,
    stream: bool = False,
    seed: int | None = None,
    model: str | None = None,
    temperature: float = 0.8,
    **sampling: Any,
) -> Iterator[dict[str, Any]]:
    """llama_cpp's completion chunks; one whole completion if it is not to be streamed. Raises APIError."""
    tokens = llm.tokenize(prompt.encode("utf-8"), special=True) if isinstance(prompt, str) else list(prompt)
    n_left = llm.n_ctx() - len(tokens)
    if not tokens:
        raise bad_request("the prompt is empty, and the model has no token to begin with", "prompt")
    if n_left <= 0:
        raise bad_request(
            f"the prompt has {len(tokens)} tokens, the context {llm.n_ctx()}: shorten it, or start the server with "
            "a larger -c",
            "prompt" if isinstance(prompt, str) else "messages",
            "context_length_exceeded",
        )
    if seed is not None:
        llm.set_seed(seed)
    head = {"id": f"cmpl-{uuid.uuid4()}", "object": "text_completion", "created": int(time.time()), "model": model}
    choice = {"index": 0, "logprobs": None}
    pieces = _pieces(
        llm,
        tokens,
        n_left if max_tokens is None or max_tokens < 1 else min(n_left, max_tokens),
        [text for text in ([stop] if isinstance(stop, str) else stop or ()) if text],
        {"temp": temperature, **sampling},
    )
    text, finish_reason, n = "", None, 0
    for text_or_none, finish_reason, n in pieces:  # noqa: B007 the last one's
        if stream:
            yield {**head, "choices": [{**choice, "text": text_or_none, "finish_reason": finish_reason}]}
        text += text_or_none
    if not stream:
        usage = {"prompt_tokens": len(tokens), "completion_tokens": n, "total_tokens": len(tokens) + n}
        yield {**head, "choices": [{**choice, "text": text, "finish_reason": finish_reason}], "usage": usage}


def _pieces(
    llm: Llama, tokens: list[int], max_tokens: int, stops: list[str], sampling: dict[str, Any]
) -> Iterator[tuple[str, str | None, int]]:
    """(text, why it ends, tokens so far); the last has no text and the reason."""
    stream = TextStream(stops, errors="ignore")
    n, reason = 0, "stop"
    generated = llm.generate(tokens, **sampling)
    try:
        for token in generated:
            if llm.engine.is_eog(token):
                break
            n += 1
            text = stream.push(llm.detokenize([token]))
            if text:
                yield text, None, n
            if stream.is_stopped:
                break
            if n >= max_tokens:
                reason = "length"
                break
    finally:
        generated.close()
    text = stream.flush()
    if text:
        yield text, None, n
    yield "", reason, n
