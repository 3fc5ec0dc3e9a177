"""Images and audio to what a model decodes in the place of tokens: libmtmd, by llama-cpp-python's own bindings of it.

A Projector is what `--mmproj` names: an encoder of images or of audio, and the projection into the model's embeddings.
"""

from __future__ import annotations

import ctypes
import importlib
import secrets
from collections.abc import Sequence
from typing import Any

from ..errors import DecodeError, ModelLoadError
from . import log
from .crash import aborts_caught
from .library import llama_cpp

__all__ = ["Chunk", "Projector"]

FORMATS = "an image (PNG, JPEG, BMP, GIF) or audio (WAV, MP3, FLAC)"


class Chunk:
    """An image, a slice of one, or audio, preprocessed and not encoded yet.

    n_tokens: rows of embeddings, and of the KV cache. n_pos: positions, fewer where an image is laid out by row and
    column (M-RoPE). id: SHA-256 of the file it is of, in hexadecimal digits.
    """

    def __init__(self, mtmd: Any, native: Any) -> None:
        self._mtmd = mtmd
        self.native: Any = mtmd.mtmd_input_chunk_copy(native)
        self.n_tokens = int(mtmd.mtmd_input_chunk_get_n_tokens(native))
        self.n_pos = int(mtmd.mtmd_input_chunk_get_n_pos(native))
        self.id = bytes(mtmd.mtmd_input_chunk_get_id(native) or b"").decode()

    def __del__(self) -> None:
        native, self.native = getattr(self, "native", None), None
        if native is not None:
            self._mtmd.mtmd_input_chunk_free(native)


class Projector:
    """Of a loaded llama_model, which must live longer. Raises ModelLoadError for a file that is no projector of it, and
    BuildMismatchError if pyskip was built without libmtmd."""

    def __init__(self, path: str, model: Any, n_threads: int, flash_attn: bool) -> None:
        self._mtmd: Any = importlib.import_module("llama_cpp.mtmd_cpp")
        self.path = path
        self.marker = f"<__media_{secrets.token_hex(16)}__>"  # which no text has by itself
        self._mtmd.mtmd_helper_log_set(log.receive, ctypes.c_void_p(0))
        params = self._mtmd.mtmd_context_params_default()
        params.use_gpu, params.print_timings, params.warmup = False, False, False
        params.n_threads, params.media_marker = n_threads, self.marker.encode()
        kind = "ENABLED" if flash_attn else "DISABLED"
        params.flash_attn_type = getattr(llama_cpp, f"LLAMA_FLASH_ATTN_TYPE_{kind}")
        log.forget()
        with aborts_caught():
            self._ctx: Any = self._mtmd.mtmd_init_from_file(path.encode("utf-8", "surrogateescape"), model, params)
        if not self._ctx:
            raise ModelLoadError(
                f"{path}: no projector for this model ({log.last_complaint() or 'no reason given'}), expected the "
                "mmproj file that belongs to it"
            )
        self.sees = bool(self._mtmd.mtmd_support_vision(self._ctx))
        self.hears = bool(self._mtmd.mtmd_support_audio(self._ctx))

    def tokenize(self, text: bytes, files: Sequence[bytes], add_bos: bool, special: bool) -> list[list[int] | Chunk]:
        """The text's tokens, and for each marker in it what its file holds. Raises DecodeError for a file that is none
        of FORMATS, or of a kind that the projector does not take."""
        mtmd, bitmaps = self._mtmd, []
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            for file in files:
                bitmaps.append(self._bitmap(file))
            array = (mtmd.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
            given = mtmd.mtmd_input_text(text, len(text), add_bos, special)
            log.forget()
            with aborts_caught():
                status = mtmd.mtmd_tokenize(self._ctx, chunks, ctypes.byref(given), array, len(bitmaps))
            if status != 0:
                raise DecodeError(
                    f"libmtmd cannot prepare the prompt ({log.last_complaint() or f'status {status}'}): leave images "
                    "and audio out, or give others"
                )
            n_chunks = int(mtmd.mtmd_input_chunks_size(chunks))
            return [self._taken(mtmd.mtmd_input_chunks_get(chunks, i)) for i in range(n_chunks)]
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                mtmd.mtmd_bitmap_free(bitmap)

    def _bitmap(self, file: bytes) -> Any:
        log.forget()
        data = (ctypes.c_uint8 * max(1, len(file))).from_buffer_copy(file or b"\0")
        with aborts_caught():
            bitmap = self._mtmd.mtmd_helper_bitmap_init_from_buf(self._ctx, data, len(file), False)
        if not bitmap:
            raise DecodeError(
                f"a message's file of {len(file)} bytes cannot be read ({log.last_complaint() or 'no reason given'}), "
                f"expected {FORMATS}"
            )
        return bitmap

    def _taken(self, native: Any) -> list[int] | Chunk:
        mtmd = self._mtmd
        if mtmd.mtmd_input_chunk_get_type(native) != mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
            return Chunk(mtmd, native)
        n = ctypes.c_size_t()
        tokens: Any = mtmd.mtmd_input_chunk_get_tokens_text(native, ctypes.byref(n))
        return list(tokens[: n.value])

    def decode(self, ctx: Any, chunk: Chunk, pos: int, n_batch: int, n_ubatch: int) -> None:
        """Encode, and decode into sequence 0 from a position on, in batches of n_batch. Leaves no logits. Raises
        DecodeError."""
        if self._mtmd.mtmd_decode_use_non_causal(self._ctx, chunk.native) and chunk.n_tokens > min(n_batch, n_ubatch):
            raise DecodeError(
                f"an image of {chunk.n_tokens} tokens is decoded at once in this model, and n_batch is {n_batch}, "
                f"n_ubatch {n_ubatch}: raise both to {chunk.n_tokens}"
            )
        end = llama_cpp.llama_pos(0)
        log.forget()
        with aborts_caught():
            status = self._mtmd.mtmd_helper_eval_chunk_single(
                self._ctx, ctx, chunk.native, pos, 0, n_batch, False, ctypes.byref(end)
            )
        if status != 0:
            raise DecodeError(
                f"llama.cpp cannot decode an image or audio ({log.last_complaint() or f'status {status}'})"
            )

    def close(self) -> None:
        """Free it; repeated, nothing."""
        ctx, self._ctx = self._ctx, None
        if ctx:
            self._mtmd.mtmd_free(ctx)
