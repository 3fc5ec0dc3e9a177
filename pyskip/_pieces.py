"""Tokens to bytes. Upstream's own (llama_cpp._internals.LlamaModel.detokenize) drops pieces of more than 32 bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

from ._library import llama_cpp

__all__ = ["token_bytes"]


def token_bytes(vocab: Any, tokens: Iterable[int], special: bool) -> bytes:
    """The tokens' pieces, one after the other; those of control tokens only where `special`."""
    buffer = ctypes.create_string_buffer(64)
    out = bytearray()
    for token in tokens:
        n = llama_cpp.llama_token_to_piece(vocab, llama_cpp.llama_token(token), buffer, len(buffer), 0, special)
        if n < 0:  # what it needs
            buffer = ctypes.create_string_buffer(-n)
            n = llama_cpp.llama_token_to_piece(vocab, llama_cpp.llama_token(token), buffer, len(buffer), 0, special)
        out += buffer.raw[: max(0, n)]
    return bytes(out)
