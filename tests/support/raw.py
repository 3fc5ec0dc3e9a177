"""A context driven through llama.cpp's own C API: batches of any shape, several sequences, taps into the graph."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from pyskip.binding.files import library_file
from pyskip.binding.library import LIB_DIR
from pyskip.policy import parse_skip
from pyskip.runtime.context import SkipContext

ggml = ctypes.CDLL(str(library_file(LIB_DIR, "ggml-base")))
ggml.ggml_get_name.restype = ctypes.c_char_p
ggml.ggml_get_name.argtypes = [ctypes.c_void_p]
ggml.ggml_nbytes.restype = ctypes.c_size_t
ggml.ggml_nbytes.argtypes = [ctypes.c_void_p]
ggml.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]

Token = tuple[int, int, int]  # token, position, sequence


class Raw:
    """One model and one context. taps: prefixes of node names, e.g. ("ffn_inp-", "l_out-"), kept in `tapped`.
    exact: an f32 KV cache and no flash attention, so that batches differ from single steps by float noise only."""

    def __init__(
        self,
        path: Path,
        skip: str = "off",
        *,
        n_ctx: int = 1024,
        n_seq: int = 4,
        taps: tuple[str, ...] = (),
        exact: bool = False,
    ) -> None:
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        assert self.model
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = n_ctx, 512, 512, n_seq
        params.n_threads = params.n_threads_batch = 2
        params.kv_unified = True
        if exact:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.tapped: dict[str, npt.NDArray[np.float32]] = {}
        self._taps = taps
        if taps:
            self._callback = params.cb_eval = llama_cpp.ggml_backend_sched_eval_callback(self._tap)
        self.ctx = llama_cpp.llama_init_from_model(self.model, params)
        assert self.ctx
        self.memory = llama_cpp.llama_get_memory(self.ctx)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.skip = SkipContext(self.ctx)
        self.skip.set_trace(4096)
        self.set_policy(skip)

    def _tap(self, tensor: int, ask: bool, _data: Any) -> bool:
        name = ggml.ggml_get_name(tensor).decode()
        wanted = name.startswith(self._taps)
        if wanted and not ask:
            value = np.empty(ggml.ggml_nbytes(tensor) // 4, np.float32)
            ggml.ggml_backend_tensor_get(tensor, value.ctypes.data, 0, value.nbytes)
            self.tapped[name] = value
        return wanted or not ask

    def set_policy(self, spec: str) -> None:
        self.skip.set_policy(parse_skip(spec))

    def decode(self, tokens: Iterable[Token]) -> npt.NDArray[np.float32]:
        """Logits [n_tokens, n_vocab]."""
        tokens = list(tokens)
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, pos, seq) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, pos, 1, True
            batch.seq_id[i][0] = seq
        status = llama_cpp.llama_decode(self.ctx, batch)
        llama_cpp.llama_batch_free(batch)
        assert status == 0
        shape = len(tokens), self.n_vocab
        logits: npt.NDArray[np.float32] = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.ctx), shape).copy()
        return logits

    def step(self, tokens: Iterable[Token]) -> npt.NDArray[np.float32]:
        """The same tokens, one a batch."""
        return np.concatenate([self.decode([token]) for token in tokens])

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, True)

    def close(self) -> None:
        llama_cpp.llama_free(self.ctx)
        llama_cpp.llama_model_free(self.model)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
