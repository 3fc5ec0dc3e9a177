"""Images and audio of noise, as files, as data: URIs and in messages; and what a model says to those."""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from typing import Any

import numpy as np

import pyskip

__all__ = ["audio", "image", "image_url", "png", "png_of", "said", "user", "wav"]

SIZE = 32


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE * 3), dtype=np.uint8)
    return png_of(SIZE, SIZE, b"".join(b"\0" + row.tobytes() for row in pixels))


def png_of(width: int, height: int, rows: bytes) -> bytes:
    """A PNG that says it has this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def image_url(seed: int) -> str:
    return "data:image/png;base64," + base64.b64encode(png(seed)).decode()


def wav(seed: int, seconds: float = 1.0, rate: int = 16000) -> bytes:
    samples = np.random.default_rng(seed).integers(-9999, 9999, int(seconds * rate), dtype=np.int16)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return out.getvalue()


def image(seed: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": image_url(seed)}}


def audio(seed: int, seconds: float = 1.0) -> dict[str, Any]:
    data = base64.b64encode(wav(seed, seconds)).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def user(*parts: dict[str, Any] | str) -> dict[str, Any]:
    """A message; texts may be given as they are."""
    typed = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": typed}


def said(llm: pyskip.Llama, messages: list[Any], **more: Any) -> str:
    answer = llm.create_chat_completion(messages, **{"max_tokens": 12, "temperature": 0.0, **more})
    return str(answer["choices"][0]["message"]["content"])
