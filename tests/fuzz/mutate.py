"""Structure-aware mutation: GGUF files by their layout, skip specifications by their grammar, task lines as JSON.

Called by targets.py. Every function draws from the random generator that it is given, and from nothing else.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from random import Random
from typing import Any

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # enum gguf_type -> bytes
STRING, ARRAY = 8, 9
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, 1e-30, float("nan"), float("inf"), -float("inf"), 0.5, 2.0)
TEXTS = (b"", b"llama", b"pyskip", b"gpt2", b"bert", b"linear", b"none", b"\xff\xfe", b"a\0b", b"%s%n", b"\n\n")


@dataclass(frozen=True)
class Field:
    """A number in a GGUF file: a count, length, type, dimension, offset or value."""

    at: int
    size: int
    is_float: bool = False


class Walk:
    """One pass over a sound GGUF file: its numbers, its texts, and the extents of its entries."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 4
        self.fields: list[Field] = []
        self.texts: list[tuple[int, int]] = []  # of bytes, without the length before them
        self.kvs: list[tuple[int, int]] = []
        self.infos: list[tuple[int, int]] = []
        self.number(4)
        n_infos, n_kvs = self.number(8), self.number(8)
        for _ in range(n_kvs):
            start = self.at
            self.text()
            self.value(self.number(4))
            self.kvs.append((start, self.at))
        for _ in range(n_infos):
            start = self.at
            self.text()
            for _ in range(self.number(4)):
                self.number(8)
            self.number(4)
            self.number(8)
            self.infos.append((start, self.at))
        self.header = self.at

    def number(self, size: int, is_float: bool = False) -> int:
        self.fields.append(Field(self.at, size, is_float))
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at], "little")

    def text(self) -> None:
        n = self.number(8)
        self.texts.append((self.at, self.at + n))
        self.at += n

    def value(self, kind: int) -> None:
        if kind == ARRAY:
            kind, n = self.number(4), self.number(8)
            for _ in range(n):
                self.value(kind)
        elif kind == STRING:
            self.text()
        else:
            self.number(SIZES[kind], kind in (6, 12))


def _number(rng: Random, field: Field, old: int) -> int:
    """Another value for a number of a file: near the old one, at an edge, or anything."""
    bits = 8 * field.size
    if field.is_float and rng.random() < 0.8:
        return int.from_bytes(struct.pack("<f" if field.size == 4 else "<d", rng.choice(FLOATS)), "little")
    edges: tuple[int, ...] = (
        0,
        1,
        2,
        3,
        4,
        7,
        8,
        9,
        12,
        13,
        31,
        32,
        33,
        64,
        255,
        256,
        4096,
        65535,
        2**20,
        2**31 - 1,
        2**31,
        2**32 - 1,
    )
    edges = (*edges, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 32)
    near = (old + rng.choice((-1, 1, -2, 2, 32, -32)), old ^ (1 << rng.randrange(bits)), old * rng.choice((2, 3, 10)))
    new = rng.choice((rng.choice(edges), rng.choice(edges), *near, old // 2, rng.getrandbits(bits)))
    return new % (1 << bits)


def numbers(rng: Random, whole: bytes) -> bytes:
    """Other numbers in data whose layout is not looked at: half of the time among its first, which are counts."""
    data = bytearray(_bytes(rng, whole) if rng.random() < 0.1 else whole)
    for _ in range(rng.choice((1, 1, 2, 8))):
        size = rng.choice((4, 4, 8))
        if len(data) >= size:
            n_places = (min(len(data), 256) if rng.random() < 0.5 else len(data)) - size + 1
            at = rng.randrange(n_places)
            at -= at % 4 * (rng.random() < 0.8)
            field = Field(at, size, rng.random() < 0.2)
            old = int.from_bytes(data[at : at + size], "little")
            data[at : at + size] = _number(rng, field, old).to_bytes(size, "little")
    return bytes(_cut(rng, bytes(data)) if rng.random() < 0.1 else data)


def _numbers(rng: Random, whole: bytes, walk: Walk) -> bytes:
    data = bytearray(whole)
    # half of the time among the first, which are counts, shapes and hyperparameters and not a vocabulary
    start = [field for field in walk.fields if field.at < 2048] if rng.random() < 0.5 else walk.fields
    for field in rng.choices(start, k=rng.choice((1, 1, 1, 2, 3))):
        old = int.from_bytes(data[field.at : field.at + field.size], "little")
        data[field.at : field.at + field.size] = _number(rng, field, old).to_bytes(field.size, "little")
    return bytes(data)


def _text(rng: Random, whole: bytes, walk: Walk) -> bytes:
    """Another text, with its length; what lies behind moves, but for the tensors, which stay aligned."""
    names = walk.texts if rng.random() < 0.3 else walk.texts[:24] + walk.texts[-len(walk.infos) :]
    start, end = rng.choice(names)
    old = whole[start:end]
    other = whole[slice(*rng.choice(walk.texts))]
    noise = rng.randbytes(rng.randrange(80))
    new = rng.choice((rng.choice(TEXTS), other, old[: rng.randrange(len(old) + 1)], old + old, noise, _bytes(rng, old)))
    head = whole[: start - 8] + len(new).to_bytes(8, "little") + new + whole[end : walk.header]
    return head + bytes(-len(head) % 32) + whole[walk.header + -walk.header % 32 :]


def _entries(rng: Random, whole: bytes, walk: Walk) -> bytes:
    """An entry left out, doubled or moved, and mostly the count that goes with it."""
    kvs = [whole[a:b] for a, b in walk.kvs]
    infos = [whole[a:b] for a, b in walk.infos]
    entries = kvs if rng.random() < 0.6 or not infos else infos
    i = rng.randrange(len(entries))
    action = rng.randrange(4)
    if action == 0:
        del entries[i]
    elif action == 1:
        entries.insert(rng.randrange(len(entries)), entries[i])
    elif action == 2:
        entries[i], entries[-1] = entries[-1], entries[i]
    else:
        other = rng.choice(entries)  # the other's value under this one's name
        name = 8 + int.from_bytes(entries[i][:8], "little")
        entries[i] = entries[i][:name] + other[8 + int.from_bytes(other[:8], "little") :]
    counts = whole[8:24]
    if rng.random() < 0.9:
        counts = len(infos).to_bytes(8, "little") + len(kvs).to_bytes(8, "little")
    head = whole[:8] + counts + b"".join(kvs + infos)
    return head + bytes(-len(head) % 32) + whole[walk.header + -walk.header % 32 :]


def _weights(rng: Random, whole: bytes, walk: Walk) -> bytes:
    """Values of a tensor, or of many: not finite, huge, zero, or anything."""
    data = bytearray(whole)
    if walk.header + 4 >= len(data):
        return whole
    for _ in range(rng.choice((1, 1, 4, 64))):
        at = walk.header + 4 * rng.randrange((len(data) - walk.header) // 4)
        n = rng.choice((1, 1, 16, 256))
        values = rng.choice((struct.pack("<f", rng.choice(FLOATS)), rng.getrandbits(32).to_bytes(4, "little"))) * n
        data[at : at + len(values)] = values[: len(data) - at]
    return bytes(data)


def _bytes(rng: Random, data: bytes) -> bytes:
    """Bytes flipped, left out or doubled, of any data."""
    if not data:
        return data
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(out)) if out else 0
        action = rng.randrange(4)
        if action < 2 and out:
            out[at] = rng.getrandbits(8) if action else out[at] ^ 1 << rng.randrange(8)
        elif action == 2:
            del out[at : at + rng.choice((1, 4, 64))]
        else:
            out[at:at] = out[at : at + rng.choice((1, 4, 64))]
    return bytes(out)


def _cut(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))] if rng.random() < 0.7 else data + data[: rng.randrange(len(data))]


def gguf(rng: Random, whole: bytes, walk: Walk) -> bytes:
    """A mutant of a sound GGUF file, whose walk is given."""
    kind = rng.choices((_numbers, _text, _entries, _weights), (8, 4, 3, 2))[0]
    data = kind(rng, whole, walk)
    if rng.random() < 0.05:
        data = _bytes(rng, data)
    if rng.random() < 0.03:
        data = _cut(rng, data)
    return data


# Skip specifications

KEYS = {
    "cosine": ("threshold", "run", "cold_start", "cold_end", "warmup"),
    "profile": ("rate", "error", "attn", "hold", "prompt", "prefill", "warmup"),
    "random": ("rate", "seed", "warmup", "stand_in", "error", "attn"),
    "off": (),
    "static": (),
    "0.25": (),
    "": ("x",),
    "Cosine": ("",),
}
VALUES = ("0", "1", "2", "0.5", "0.98", "1e-3", "17")
ODD_VALUES = (
    "-1", "1e400", "-1e400", "nan", "inf", "-inf", "2147483647", "2147483648", "99999999999999999999", "9" * 400, "",
    " 1", "1 ", "1_0", "\u0663", "\u00b2", "0x1", "+1", "--1", "1.", ".5", "1e", "true", "None", "\0", "\n", "=", ",",
    ":", "\ud800", "\u00e9", "0" * 5000,
)  # fmt: skip


def _value(rng: Random) -> str:
    return rng.choice(VALUES if rng.random() < 0.7 else ODD_VALUES)


def _setting(rng: Random, name: str) -> str:
    if name == "static":
        return str(rng.randrange(4)) if rng.random() < 0.7 else _value(rng)
    keys = KEYS[name if KEYS[name] and rng.random() < 0.95 else rng.choice(("cosine", "profile", "random"))]
    return rng.choice(keys) + ("=" if rng.random() < 0.97 else "") + _value(rng)


def spec(rng: Random) -> str:
    """A skip specification, or something near one."""
    name = rng.choices(tuple(KEYS), (6, 6, 6, 1, 4, 1, 1, 1))[0]
    items = [_setting(rng, name) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5)))]
    text = name + (":" if items or rng.random() < 0.1 else "") + rng.choice((",", ",", ",", ",,")).join(items)
    if rng.random() < 0.2:
        at = rng.randrange(len(text) + 1)
        new = rng.choice((chr(rng.randrange(0x250)), chr(rng.randrange(0x110000)), "", *ODD_VALUES))
        text = text[:at] + new + text[at + 1 :]
    return text


# Task files


STRINGS = ("", " ", "a", "Paris", "\u00e9", "\ud800", "\0", "x" * 2000, "1", "\u2028", "<s>", "\U0001f600")
CONSTANTS = (0, 1, -1, 2, 10**400, 1.5, 1e308, float("nan"), float("inf"), None, True, False)


def _json_value(rng: Random, depth: int = 0) -> Any:
    kind = rng.randrange(4 if depth < 4 else 2)
    if kind == 2:
        return [_json_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 3:
        return {rng.choice(("a", "query", "")): _json_value(rng, depth + 1)}
    return rng.choice(STRINGS if kind else CONSTANTS)


def _item(rng: Random) -> dict[str, Any]:
    sound = rng.choice(
        (
            {"context": "The capital of France is", "continuation": "Paris"},
            {"query": "Two and two is", "choices": ["four", "five"], "gold": 0},
            {"article": "It rained. It rained again.", "highlights": "It rained."},
        )
    )
    item: dict[str, Any] = dict(sound)
    for _ in range(rng.choice((0, 1, 1, 2))):
        key = rng.choice((*item, "context", "choices", "gold", "article", "highlights", "query", "continuation"))
        if rng.random() < 0.2:
            item.pop(key, None)
        else:
            item[key] = _json_value(rng)
    return item


def task(rng: Random) -> bytes:
    """A task file of a few lines, or something near one."""
    lines = [json.dumps(_item(rng), ensure_ascii=rng.random() < 0.7) for _ in range(rng.choice((1, 1, 2, 5)))]
    if rng.random() < 0.1:
        lines.append(rng.choice(("", " ", "[" * 100_000, '{"a":' * 3000, "nul", "1", '"', "{}", "[]", "9" * 5000)))
    data = rng.choice(("\n", "\n", "\r\n", "\n\n", "\r")).join(lines).encode("utf-8", "surrogatepass")
    if rng.random() < 0.5:
        data = _bytes(rng, data)
    return data


# Sessions


def session(rng: Random, whole: bytes) -> bytes:
    """session.json with other values, or fewer."""
    document: dict[str, Any] = json.loads(whole)
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice((*document, "turns", "tokens", "skip"))
        if key == "tokens" and rng.random() < 0.7:
            old = document.get(key)
            tokens = list(old) if isinstance(old, list) else []
            at = rng.randrange(len(tokens) + 1)
            tokens[at : at + rng.randrange(3)] = rng.choices(
                (0, 1, 2, 5, 287, 288, 2**31, -1), k=rng.choice((0, 1, 1, 40))
            )
            document[key] = tokens
        elif key == "turns" and rng.random() < 0.7:
            texts = rng.choices((*STRINGS, "w1 w2", "w3 " * 90), k=rng.choice((0, 2, 4)))
            document[key] = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        elif key == "skip":
            document[key] = spec(rng)
        else:
            document[key] = _json_value(rng)
    data = json.dumps(document).encode("utf-8", "surrogatepass")
    return _bytes(rng, data) if rng.random() < 0.1 else data
