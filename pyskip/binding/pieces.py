"""Bytes to tokens and back, for any vocabulary.

Upstream's own (llama_cpp._internals.LlamaModel) drops pieces of more than 32 bytes, and ends the process if a
vocabulary lacks what a text needs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import DecodeError
from .library import ffi, lib
from .status import N_ERROR, raise_for

__all__ = ["dry_sampler", "token_bytes", "tokenize"]

DAMAGED = "the model's vocabulary cannot {} ({{}}): the model file is damaged, download it again"


def tokenize(vocab: Any, text: bytes, add_bos: bool, special: bool) -> list[int]:
    """llama_tokenize(). Raises DecodeError if the vocabulary cannot."""
    n, error = ffi.new("int32_t *", -len(text) - 8), ffi.new("char[]", N_ERROR)
    while n[0] < 0:
        room = -n[0]
        tokens = ffi.new("int32_t[]", room)
        status = lib.pyskip_tokenize(_native(vocab), text, len(text), tokens, room, add_bos, special, n, error, N_ERROR)
        raise_for(status, error, DecodeError, DAMAGED.format("split this text into tokens"))
    return list(tokens[0 : n[0]])


def token_bytes(vocab: Any, tokens: Iterable[int], special: bool) -> bytes:
    """The tokens' pieces, one after the other; those of control tokens only if `special`. Raises DecodeError."""
    native, out = _native(vocab), bytearray()
    room, n, error = 64, ffi.new("int32_t *"), ffi.new("char[]", N_ERROR)
    piece = ffi.new("char[]", room)
    for token in tokens:
        n[0] = -1
        while n[0] < 0:
            status = lib.pyskip_token_to_piece(native, token, piece, room, special, n, error, N_ERROR)
            raise_for(status, error, DecodeError, DAMAGED.format(f"write token {token}"))
            if n[0] < 0:  # what it needs
                room = -n[0]
                piece = ffi.new("char[]", room)
        out += ffi.buffer(piece, n[0])
    return bytes(out)


def dry_sampler(
    vocab: Any,
    multiplier: float,
    base: float,
    allowed_length: int,
    penalty_last_n: int,
    breakers: Sequence[bytes],
) -> int:
    """llama_sampler_init_dry(), as an address. Raises DecodeError if the vocabulary cannot split the breakers."""
    sampler, error = ffi.new("struct llama_sampler **"), ffi.new("char[]", N_ERROR)
    kept = [ffi.new("char[]", breaker) for breaker in breakers]
    status = lib.pyskip_sampler_init_dry(
        _native(vocab), multiplier, base, allowed_length, penalty_last_n, kept, len(kept), sampler, error, N_ERROR
    )
    raise_for(status, error, DecodeError, DAMAGED.format("split a text into tokens"))
    return int(ffi.cast("uintptr_t", sampler[0]))


def _native(vocab: Any) -> Any:
    return ffi.cast("struct llama_vocab *", ctypes.cast(vocab, ctypes.c_void_p).value)
