"""Where a completion's text ends. llama-cpp-python's loop passes its length check by while a character is incomplete,
and streams what it held back token by token, without the characters that several make. Used by completion.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["ended", "stop_texts", "text_before"]

End = Callable[[], tuple[str, bool]]


def stop_texts(given: str | Sequence[str] | None) -> list[str]:
    """Those that are not empty; an empty one would end every text before it began."""
    return [stop for stop in ([given] if isinstance(given, str) else given or ()) if stop]


def text_before(stops: Sequence[str], raw: bytes) -> tuple[str, bool]:
    """The text of these bytes before the first stop text, without what is no whole character; whether one came."""
    text = raw.decode("utf-8", "ignore")
    found = [text.find(stop) for stop in stops if stop in text]
    return text[: min(found, default=len(text))], bool(found)


def ended(answers: Iterator[Any], stream: bool, is_over: Callable[[], bool], end: End) -> Iterator[Any]:
    """Completions, or chunks of one, with the text that `end` tells once is_over(): what it lacks is the last chunk but
    one, and what was said by then stands."""
    n_said = 0
    for answer in answers:
        choice = answer["choices"][0]
        if not is_over():
            n_said += len(choice["text"])
            yield answer
            continue
        if stream and choice["finish_reason"] is None:
            continue
        text, is_stopped = end()
        if is_stopped:
            choice["finish_reason"] = "stop"
        if not stream:
            choice["text"] = text
        elif len(text) > n_said:
            yield {**answer, "choices": [{**choice, "text": text[n_said:], "finish_reason": None}]}
        yield answer
