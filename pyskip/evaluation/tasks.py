"""Text and task files of `pyskip eval`: read, checked, split into the tokens that are given and those that are scored;
and whether an item is right.

A task file holds one JSON object a line. Two kinds, which may be mixed, have a right answer:

    {"context": ..., "continuation": ...}          right when greedy decoding yields the continuation
    {"query": ..., "choices": [...], "gold": 0}    right when the gold choice is the likeliest for its length

Two more, each in files of its own, are what a model writes about: summaries (summaries.py) and answers, turn by turn
(conversations.py; MT-bench's questions are such a file):

    {"article": ..., "highlights": ...}
    {"turns": ["...", ...]}
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import PyskipError
from ..json_lines import object_of
from ..runtime.decoding import Decoder
from ..runtime.llama import Llama

__all__ = [
    "Article",
    "Conversation",
    "EncodedItem",
    "Option",
    "TaskItem",
    "encode",
    "is_right",
    "read_task",
    "read_text",
]

KEYS = {
    "choices": ("query", "choices", "gold"),
    "article": ("article", "highlights"),
    "turns": ("turns",),
    "continuation": ("context", "continuation"),
}


@dataclass(frozen=True)
class TaskItem:
    """One line of a task file."""

    where: str  # "FILE, line N"
    context: str
    answers: tuple[str, ...]  # the continuation, or the choices
    gold: int | None  # the right choice; None if the one answer has to be what greedy decoding yields


@dataclass(frozen=True)
class Article:
    """One line of a task file to be summarised."""

    where: str  # "FILE, line N"
    text: str
    highlights: str


@dataclass(frozen=True)
class Conversation:
    """One line of a task file: what the user says, turn by turn."""

    where: str  # "FILE, line N"
    turns: tuple[str, ...]


Line = TaskItem | Article | Conversation
NAMES: dict[type[Line], str] = {TaskItem: "items", Article: "articles", Conversation: "conversations"}


@dataclass(frozen=True)
class Option:
    """Context and answer; tokens[start:] are scored."""

    tokens: tuple[int, ...]
    start: int
    n_bytes: int  # of the answer as the file has it


@dataclass(frozen=True)
class EncodedItem:
    """An item in tokens: one option to be greedily decoded, or the choices and which is right."""

    options: tuple[Option, ...]
    gold: int | None


def read_text(path: str | os.PathLike[str]) -> str:
    """A UTF-8 file. Raises PyskipError if it cannot be read, is not UTF-8 or empty."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        raise PyskipError(f"{os.fspath(path)}: {error.strerror or error}, expected a UTF-8 text file") from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PyskipError(
            f"{os.fspath(path)}, line {line}: byte 0x{raw[error.start]:02x} at offset {error.start} is not UTF-8, "
            "expected UTF-8 text: convert the file (iconv -t UTF-8)"
        ) from None
    if not text.strip():
        raise PyskipError(f"{os.fspath(path)}: empty, expected UTF-8 text")
    return text


def read_task(
    path: str | os.PathLike[str], limit: int | None = None
) -> list[TaskItem] | list[Article] | list[Conversation]:
    """The first `limit` items of a task file (default: all). Empty lines do not count.

    Raises PyskipError with the line for what is no item, or of another kind than those before.
    """
    found: list[Any] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if limit is not None and len(found) >= limit:
            break
        if not line.strip():
            continue
        item = _item(f"{os.fspath(path)}, line {number}", line)
        if found and type(item) is not type(found[0]):
            is_, were = NAMES[type(item)], NAMES[type(found[0])]
            raise PyskipError(f"{item.where}: found {is_} behind {were}, expected one kind: put each into its own file")
        found.append(item)
    return found


def _item(where: str, line: str) -> Line:
    document = object_of(where, line)
    kind = next((kind for kind, keys in KEYS.items() if any(key in document for key in keys)), "continuation")
    for key in KEYS[kind]:
        if key not in document:
            raise PyskipError(
                f'{where}: no "{key}", expected the keys "context" and "continuation", or "query", "choices" and '
                '"gold", or "article" and "highlights", or "turns"'
            )
    if kind == "article":
        return Article(where, *(_text(where, key, document[key]) for key in KEYS[kind]))
    if kind == "continuation":
        context, answer = (_text(where, key, document[key]) for key in KEYS[kind])
        return TaskItem(where, context, (answer,), None)
    if kind == "turns":
        return Conversation(where, _texts(where, "turns", document["turns"], 1))
    answers = _texts(where, "choices", document["choices"], 2)
    gold = document["gold"]
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(answers):
        raise PyskipError(f'{where}: "gold" is {_shown(gold)}, expected a whole number from 0 to {len(answers) - 1}')
    return TaskItem(where, _text(where, "query", document["query"]), answers, gold)


def _texts(where: str, key: str, values: Any, n_least: int) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) < n_least:
        least = "two strings" if n_least == 2 else "one string"
        raise PyskipError(f'{where}: "{key}" is {_shown(values)}, expected a list of at least {least}')
    return tuple(_text(where, f"{key}[{i}]", value) for i, value in enumerate(values))


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PyskipError(f'{where}: "{key}" is {_shown(value)}, expected a string that is not empty')
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise PyskipError(f'{where}: "{key}" holds half a surrogate pair, expected Unicode text')
    return value


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def encode(llm: Llama, items: Iterable[TaskItem], n_ctx: int) -> list[EncodedItem]:
    """Every item in tokens. Raises PyskipError if one does not fit n_ctx, or its answer has no tokens of its own."""
    return [EncodedItem(tuple(_option(llm, item, a, n_ctx) for a in item.answers), item.gold) for item in items]


def _option(llm: Llama, item: TaskItem, answer: str, n_ctx: int) -> Option:
    """As lm-eval splits them: white space at the context's end belongs to the answer; the answer's tokens are those of
    the whole text after as many as the context alone has. If there is no white space between the two, a space is
    put there."""
    context = item.context.rstrip()
    between = item.context[len(context) :] or ("" if answer[0].isspace() else " ")
    start = len(llm.tokenize(context.encode(), add_bos=True, special=False))
    tokens = llm.tokenize((context + between + answer).encode(), add_bos=True, special=False)
    if start < 1 or start >= len(tokens):
        raise PyskipError(
            f"{item.where}: {_shown(answer)} adds no token to the {start} of its context, expected at least one"
        )
    if len(tokens) > n_ctx:
        raise PyskipError(f"{item.where}: {len(tokens)} tokens do not fit a context of {n_ctx}: raise n_ctx (--ctx)")
    return Option(tuple(tokens), start, len(answer.encode()))


def is_right(decoder: Decoder, item: EncodedItem) -> bool:
    """Whether the item is right under the decoder's policy, which has begun an empty sequence."""
    if item.gold is None:
        (option,) = item.options
        logits = decoder.decode(option.tokens, 0, option.start - 1)
        return bool((logits.argmax(axis=1) == option.tokens[option.start :]).all())
    return int(np.argmax(_likelihoods(decoder, item.options))) == item.gold


def _likelihoods(decoder: Decoder, options: Sequence[Option]) -> list[float]:
    """Log-likelihood a byte of each answer. What they share of the context is decoded once, but for its last token,
    whose logits are scored."""
    shared = min(option.start for option in options)
    while any(option.tokens[:shared] != options[0].tokens[:shared] for option in options):
        shared -= 1
    pos = max(shared - 1, 0)
    if pos > 0:
        decoder.decode(options[0].tokens[:pos], 0, pos)
    return [_log_likelihood(decoder, option, decoder.rewind(pos)) for option in options]


def _log_likelihood(decoder: Decoder, option: Option, pos: int) -> float:
    logits = decoder.decode(option.tokens, pos, option.start - 1).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(log_p[np.arange(len(log_p)), option.tokens[option.start :]].sum()) / option.n_bytes
