"""Images and audio in prompts: files in messages to markers in the text, and these to placeholders among the tokens.

A prompt stays a list of numbers. Each position of an image has a placeholder, a negative number made of a hash of the
file, so that the prefix of a prompt that is in the cache is found as for text, and no image is taken for another. Who
decodes a placeholder (Cached.eval) gets the chunk that stands for it here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import numpy as np

from ..binding.media import Chunk, Projector
from ..errors import DecodeError

__all__ = ["Media", "Placed", "foreign", "gone", "is_placeholder", "is_self_contained", "part_of"]

KINDS = {"image_url": "images", "input_audio": "audio"}  # of a message's parts
MAX_FILE = 256 << 20  # bytes
MAX_FILES = 64 << 20  # bytes kept of messages that were marked, beside the last one's
N_PROMPTS = 4  # whose chunks are kept


def is_placeholder(token: int) -> bool:
    """Whether it stands for a position of an image or of audio."""
    return token < -(1 << 30)


def foreign(n: int) -> list[int]:
    """Placeholders of n positions that something else decoded: of no other prompt's."""
    return _placeholders(secrets.token_bytes(4 * n))


def _placeholders(data: bytes) -> list[int]:
    words = np.frombuffer(data, "<u4") & np.uint32(0x3FFFFFFF) | np.uint32(0x80000000)
    return [int(word) for word in words.view(np.int32)]


def gone(what: str) -> DecodeError:
    return DecodeError(f"the {what} has an image or audio that is no longer there: hand its messages over again")


@dataclass(frozen=True)
class Placed:
    """A chunk, and the placeholders that stand for it, one a position."""

    chunk: Chunk
    tokens: list[int]


class Media:
    """What a projector reads, for one Llama."""

    def __init__(self, projector: Projector) -> None:
        self._projector = projector
        self._nonce = secrets.token_hex(16)  # no text of a message has a marker by itself
        self._marker = re.compile(rf"<__{self._nonce}_([0-9a-f]{{64}})__>".encode())
        self._files: dict[str, bytes] = {}  # by SHA-256, oldest first
        self._chunks: dict[int, Placed] = {}  # by the first placeholder
        self._recent: deque[set[int]] = deque(maxlen=N_PROMPTS)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of files that are read: images, audio."""
        return ("images",) * self._projector.sees + ("audio",) * self._projector.hears

    # Messages to text

    def marked(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages with a marker, as a part of text, for each image_url and input_audio. Raises DecodeError for
        what cannot be read, and what the projector does not take."""
        messages = list(messages)
        used: dict[str, bytes] = {}
        found = [{**message, "content": self._parts(message.get("content"), used)} for message in messages]
        for kept, message in zip(found, messages, strict=True):
            if "content" not in message:
                del kept["content"]
        self._keep(used)
        return found

    def text_of(self, parts: Sequence[Mapping[str, Any]]) -> bytes:
        """Their markers, for a prompt that is no chat's."""
        (message,) = self.marked([{"content": list(parts)}])
        return "".join(part["text"] for part in message["content"]).encode()

    def _parts(self, content: Any, used: dict[str, bytes]) -> Any:
        if not isinstance(content, list):
            return content
        return [self._part(part, used) if _is_file(part) else part for part in content]

    def _part(self, part: Mapping[str, Any], used: dict[str, bytes]) -> dict[str, str]:
        kind = KINDS[part["type"]]
        if kind not in self.kinds:
            raise DecodeError(
                f"a message has a part of type {part['type']!r}, and {self._projector.path} reads "
                f"{' and '.join(self.kinds)}: leave it out, or load another projector"
            )
        file = read_file(part)
        digest = hashlib.sha256(file).hexdigest()
        used[digest] = file
        return {"type": "text", "text": f"<__{self._nonce}_{digest}__>"}

    def _keep(self, used: dict[str, bytes]) -> None:
        self._files = {**{key: file for key, file in self._files.items() if key not in used}, **used}
        n_bytes = sum(map(len, self._files.values()))
        for key in [key for key in self._files if key not in used]:
            if n_bytes <= MAX_FILES:
                break
            n_bytes -= len(self._files.pop(key))

    # Text to tokens

    def is_marked(self, text: bytes) -> bool:
        return self._marker.search(text) is not None

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        """Tokens, and placeholders where the markers are. Raises DecodeError."""
        files = []
        for match in self._marker.finditer(text):
            file = self._files.get(match[1].decode())
            if file is None:
                raise gone("text")
            files.append(file)
        text = self._marker.sub(self._projector.marker.encode(), text)
        tokens: list[int] = []
        seen: Counter[str] = Counter()
        keys = set()
        for piece in self._projector.tokenize(text, files, add_bos, special):
            if isinstance(piece, Chunk):
                placed = self._place(piece, seen[piece.id])
                seen[piece.id] += 1
                keys.add(placed.tokens[0])
                tokens += placed.tokens
            else:
                tokens += piece
        self._recent.append(keys)
        wanted = set().union(*self._recent)
        self._chunks = {key: placed for key, placed in self._chunks.items() if key in wanted}
        return tokens

    def _place(self, chunk: Chunk, ordinal: int) -> Placed:
        """By the file, and by which of its slices it is."""
        name, salt = f"{chunk.id} {ordinal}", 0
        while True:
            digest = hashlib.shake_256(f"{name} {salt}".encode()).digest(4 * chunk.n_pos)
            tokens = _placeholders(digest)
            placed = self._chunks.setdefault(tokens[0], Placed(chunk, tokens))
            if placed.tokens == tokens:
                return placed
            salt += 1  # another's first one is the same, by chance

    # Tokens to what is decoded

    def chunks(self, tokens: Sequence[int]) -> Iterator[tuple[int, Placed]]:
        """Where they begin among the tokens, and which. Raises DecodeError for placeholders of none that is known."""
        i = 0
        while i < len(tokens):
            if not is_placeholder(tokens[i]):
                i += 1
                continue
            placed = self._chunks.get(tokens[i])
            if placed is None or list(tokens[i : i + len(placed.tokens)]) != placed.tokens:
                raise gone("prompt")
            yield i, placed
            i += len(placed.tokens)

    def knows(self, tokens: Sequence[int]) -> bool:
        """Whether all of them could be decoded again."""
        try:
            for _ in self.chunks(tokens):
                pass
        except DecodeError:
            return False
        return True

    def n_rows(self, tokens: Sequence[int]) -> int:
        """Rows of the KV cache that they take."""
        return len(tokens) + sum(placed.chunk.n_tokens - placed.chunk.n_pos for _, placed in self.chunks(tokens))

    def boundary(self, tokens: Sequence[int], n: int) -> int:
        """The first n tokens, without the half of an image."""
        for start, placed in self.chunks(tokens):
            if start < n < start + len(placed.tokens):
                return start
        return n

    def decode(self, ctx: Any, chunk: Chunk, pos: int, n_batch: int, n_ubatch: int) -> None:
        """As Projector.decode()."""
        self._projector.decode(ctx, chunk, pos, n_batch, n_ubatch)

    def close(self) -> None:
        self._chunks.clear()
        self._projector.close()


# Files


def part_of(file: bytes | Path) -> dict[str, Any]:
    """A message's part, self-contained: of audio by the first bytes of WAV, MP3 and FLAC, else of an image. Raises
    DecodeError for a file that cannot be read."""
    if isinstance(file, Path):
        file = _read(file)
    data = base64.b64encode(file).decode()
    riff = {b"WAVE": "wav"}.get(file[8:12]) if file[:4] == b"RIFF" else None
    mp3 = "mp3" if file[:3] == b"ID3" or (file[:1] == b"\xff" and file[1:2] >= b"\xe0") else None
    audio = riff or mp3 or ("flac" if file[:4] == b"fLaC" else None)
    if audio is not None:
        return {"type": "input_audio", "input_audio": {"data": data, "format": audio}}
    return {"type": "image_url", "image_url": {"url": f"data:;base64,{data}"}}


def is_self_contained(part: Any) -> bool:
    """Whether it is as part_of() makes them: it names no other file."""
    if not _is_file(part) or set(part) != {"type", part["type"]}:
        return False
    value = part[part["type"]]
    keys = {"url"} if part["type"] == "image_url" else {"data", "format"}
    if (
        not isinstance(value, Mapping)
        or set(value) != keys
        or not all(isinstance(text, str) for text in value.values())
    ):
        return False
    return str(value.get("url", "data:")).startswith("data:")


def _is_file(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("type"), str) and part["type"] in KINDS


def read_file(part: Mapping[str, Any]) -> bytes:
    """Of a part of type image_url (a data: URI, a file: URI, a path) or input_audio (base64). Raises DecodeError."""
    value = part.get(part["type"])
    if part["type"] == "input_audio":
        data = value.get("data") if isinstance(value, Mapping) else None
        if not isinstance(data, str):
            raise DecodeError('input_audio has no data, expected {"data": BASE64, "format": "wav"}')
        return _decoded("input_audio", data)
    url = value.get("url") if isinstance(value, Mapping) else value
    if isinstance(url, os.PathLike):
        return _read(Path(url))
    if not isinstance(url, str):
        raise DecodeError(f"image_url is a {type(url).__name__}, expected a data: URI or the path of a file")
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url)
    if scheme is None:
        return _read(Path(url))
    if scheme[0].lower() == "data:":
        head, _, data = url[5:].partition(",")
        return _decoded("image_url", data) if head.endswith(";base64") else unquote_to_bytes(data)
    if scheme[0].lower() == "file:":
        return _read(Path(unquote(urlsplit(url).path)))
    raise DecodeError(
        f"image_url is {url[:80]!r}, expected a data: URI or the path of a file: nothing is downloaded here"
    )


def _decoded(what: str, data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DecodeError(f"{what} has no base64 in it ({error}), expected a file in base64") from None


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise DecodeError(f"{path}: no such file, expected an image or audio")
        if path.stat().st_size > MAX_FILE:
            raise DecodeError(f"{path}: larger than {MAX_FILE >> 20} MiB, expected an image or audio")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"{str(path)[:200]!r}: cannot be read ({error}), expected an image or audio") from None
