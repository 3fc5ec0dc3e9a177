"""The one seam under `pyskip.Llama`: a loaded model, its context, and what must be seen to around every decode.

Made by Llama when the model is loaded, and reached as `llm.engine` by whatever decodes otherwise than by Llama.eval():
generation, evaluation, sessions, calibration, the server. Nothing outside pyskip.runtime reads an underscore of Llama.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from ..binding import log
from ..binding.crash import aborts_caught
from ..binding.library import llama_cpp
from ..errors import DecodeError
from ..models.gguf_info import GGUFInfo
from .context import SkipContext
from .fork import check_threads
from .media import Media
from .model_file import ModelFile

__all__ = ["Engine", "Floats"]

Floats = npt.NDArray[np.float32]


class Engine:
    """A llama_model and a llama_context, which it does not own.

    info: what the model's file said when it was loaded.
    file: to be looked at around each decode; None: the model is not mapped.
    n_threads: that a decode may use.
    """

    def __init__(self, model: Any, ctx: Any, info: GGUFInfo, file: ModelFile | None, n_threads: int) -> None:
        self.model, self.ctx, self.info, self.file = model, ctx, info, file
        self.vocab: Any = llama_cpp.llama_model_get_vocab(model)
        self.memory: Any = llama_cpp.llama_get_memory(ctx)
        self.skip = SkipContext(ctx)
        self.has_encoder = bool(llama_cpp.llama_model_has_encoder(model))
        self.has_encoded = False  # a prompt
        self.media: Media | None = None  # what a projector reads
        self.n_cached = 0  # tokens of the last generation's prompt that were not decoded again; -1: not known yet
        self._n_threads = n_threads
        self._generates = False  # as far as is known
        self._marked_from = self._generating_from = -1  # position of sequence 0

    # The vocabulary

    @property
    def n_vocab(self) -> int:
        return int(llama_cpp.llama_vocab_n_tokens(self.vocab))

    @property
    def adds_bos(self) -> bool:
        """Whether a text begins with a token of its own."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))

    def is_eog(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def token_text(self, token: int) -> str:
        """The token as the vocabulary writes it; "" for -1, which stands for none."""
        raw: Any = llama_cpp.llama_vocab_get_text(self.vocab, token) if token != -1 else b""
        return bytes(raw).decode("utf-8", "replace")

    # What can decode

    def check_generates(self) -> None:
        """Raises DecodeError for a model that does not generate text."""
        if not self._generates:
            self.skip.check_generates()
            self._generates = True

    def check_decoder(self) -> None:
        """Raises DecodeError if decoding would abort, too: in an encoder-decoder that has encoded no prompt yet."""
        self.check_generates()
        if self.has_encoder and not self.has_encoded:
            raise DecodeError(
                f"found an encoder-decoder ({self.info.architecture}) without a prompt, expected a decoder: "
                "it can chat and generate"
            )

    def check_process(self) -> None:
        """Before a decode, for a file that was cut off would end the process. Raises DecodeError if the model's file
        was written to while it is mapped, or the threads are those of a process that forked."""
        self.check_file()
        check_threads(self._n_threads)

    def check_file(self) -> None:
        """Behind a decode, for what was computed while the file changed must not come out. A stat(), microseconds."""
        if self.file is not None:
            self.file.check()

    # Prompt or generated: marks of sequence 0

    def mark_generated(self, pos: int) -> None:
        """Positions >= pos count as generated until clear_mark()."""
        self.skip.set_generated_from(0, pos)
        self._marked_from = pos

    def clear_mark(self) -> None:
        self._marked_from = -1

    def generating(self, pos: int) -> None:
        """A generation decodes, which began at this position; -1: the caller's own mark counts again."""
        self._generating_from = pos

    def apply_mark(self) -> None:
        """Before each decode of Llama.eval(): a generator that is held must not leave its mark."""
        self.skip.set_generated_from(0, self.generated_from)

    @property
    def generated_from(self) -> int:
        """The position that counts; -1: all is prompt."""
        return self._marked_from if self._generating_from < 0 else self._generating_from

    # Decoding

    def decode(self, batch: Any, ctx: Any = None) -> None:
        """llama_decode() of a llama_batch, in this context or another of the model. Raises DecodeError."""
        log.forget()
        self.check_process()
        status = llama_cpp.llama_decode(self.ctx if ctx is None else ctx, batch)
        if status != 0:
            raise DecodeError(f"llama.cpp cannot decode ({log.last_complaint() or f'status {status}'})")
        self.check_process()

    # The cache

    def clear(self) -> None:
        """Empty all sequences."""
        if self.memory:
            llama_cpp.llama_memory_clear(self.memory, True)

    def cut(self, pos: int, seq_id: int = -1) -> bool:
        """Forget positions >= pos of a sequence, by default of all. False if the model's memory cannot."""
        return bool(self.memory and llama_cpp.llama_memory_seq_rm(self.memory, seq_id, pos, -1))

    def save_state(self, n_tokens: int) -> bytes:
        """The cache of sequence 0's first n_tokens, empty if it is not what those tokens left."""
        if not n_tokens or not self.memory or self.has_encoder:
            return b""
        self.cut(n_tokens)  # what an interrupted decode left
        if llama_cpp.llama_memory_seq_pos_max(self.memory, 0) != n_tokens - 1:
            return b""
        data = (ctypes.c_uint8 * int(llama_cpp.llama_state_seq_get_size(self.ctx, 0)))()
        n_bytes = llama_cpp.llama_state_seq_get_data(self.ctx, data, len(data), 0)
        return bytes(memoryview(data)[:n_bytes])

    def restore_state(self, n_tokens: int, state: bytes) -> bool:
        """Whether llama.cpp took the whole state, and it is one of that many tokens. The cache must be empty."""
        data = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if not self.memory or not n_tokens or self.has_encoder:
            return False
        log.forget()
        try:
            with aborts_caught():
                if llama_cpp.llama_state_seq_set_data(self.ctx, data, len(state), 0) != len(state):
                    return False
        except RuntimeError:
            return False
        first = llama_cpp.llama_memory_seq_pos_min(self.memory, 0)
        return bool(first >= 0 and llama_cpp.llama_memory_seq_pos_max(self.memory, 0) == n_tokens - 1)
