"""Batches of one's own: the one place that fills a llama_batch, and a context for many sequences at once."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..binding import log
from ..binding.library import llama_cpp
from ..errors import ModelLoadError
from .context import SkipContext
from .engine import Engine, Floats
from .llama import Llama

__all__ = ["Batch", "BatchContext"]


class Batch:
    """A llama_batch of up to n_max tokens, each in one sequence. Owns it until close()."""

    def __init__(self, n_max: int) -> None:
        self._native: Any = llama_cpp.llama_batch_init(n_max, 0, 1)

    def decode(
        self,
        engine: Engine,
        ctx: Any,
        tokens: Sequence[int],
        positions: Sequence[int] | npt.NDArray[np.int64],
        seq_ids: Sequence[int],
        wanted: npt.NDArray[np.bool_],
    ) -> Floats:
        """Decode in a context of the engine's model. Logits [wanted.sum(), n_vocab] of the wanted tokens, valid until
        the context's next decode. Raises DecodeError."""
        batch, n = self._native, len(tokens)
        batch.n_tokens = n
        np.ctypeslib.as_array(batch.token, (n,))[:] = tokens
        np.ctypeslib.as_array(batch.pos, (n,))[:] = positions
        np.ctypeslib.as_array(batch.logits, (n,))[:] = wanted
        for i, seq_id in enumerate(seq_ids):
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, seq_id
        engine.decode(batch, ctx)
        n_wanted, n_vocab = int(wanted.sum()), engine.n_vocab
        if n_wanted == 0:
            return np.empty((0, n_vocab), np.float32)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(ctx), (n_wanted, n_vocab))

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._native)


class BatchContext:
    """n_seq sequences of up to n_ctx tokens over a loaded model, beside the context that the Llama holds and with its
    way of computing attention. Every token counts as generated."""

    def __init__(self, llm: Llama, n_seq: int, n_ctx: int, n_batch: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = n_seq * n_ctx, n_seq, False
        params.n_batch = params.n_ubatch = n_batch
        params.flash_attn_type = llm.context_params.flash_attn_type
        params.n_threads, params.n_threads_batch = llm.n_threads, llm.n_threads_batch
        log.forget()
        self._engine = llm.engine
        self.ctx: Any = llama_cpp.llama_init_from_model(self._engine.model, params)
        if not self.ctx:
            raise ModelLoadError(f"llama.cpp cannot make a context for calibration ({log.last_complaint()})")
        self.skip = SkipContext(self.ctx)
        self._batch = Batch(n_batch)
        self.clear()

    def clear(self) -> None:
        """Empty all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.ctx), True)
        self.skip.set_generated_from(-1, 0)

    def decode(
        self, tokens: Sequence[int], positions: Sequence[int], seq_ids: Sequence[int], wanted: npt.NDArray[np.bool_]
    ) -> Floats:
        """Logits [wanted.sum(), n_vocab], valid until the next call. Raises DecodeError."""
        return self._batch.decode(self._engine, self.ctx, tokens, positions, seq_ids, wanted)

    def decode_window(self, window: npt.NDArray[np.int32], logits: bool = True) -> Floats:
        """Logits [n, n_vocab] of one sequence's n tokens, from a clear start; or of the last token only, and no more of
        the last layer (some models abort on a batch without outputs)."""
        n = len(window)
        self.clear()
        wanted = np.full(n, logits)
        wanted[-1] = True
        return self.decode(window.tolist(), range(n), [0] * n, wanted)

    def __enter__(self) -> BatchContext:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._batch.close()
        llama_cpp.llama_free(self.ctx)
        self.ctx = None
