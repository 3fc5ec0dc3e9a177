"""A model that drafts for itself, with sublayers skipped (self-speculative decoding, after SWIFT). Used by pyskip.Llama
(lossless=True), in the place of a model that drafts (draft.py).

What is skipped, when and how far is decided natively (native/src/lossless.cpp), as on the server.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
from llama_cpp.llama_speculative import LlamaDraftModel

from ..binding.library import ffi, lib
from ..binding.status import N_ERROR, raise_for
from ..errors import ModelLoadError
from .cached import Cached
from .interrupt import interruptible

__all__ = ["Lossless"]


class Lossless(LlamaDraftModel):
    """Drafts for `llm`, whose cache must be empty: it is measured first whether that pays.

    always: draft where it does not, too.
    pays: whether drafts are made.
    line: the reason, with what was measured.

    Raises ModelLoadError for a model that cannot: a recurrent one, or one of which nothing can be skipped.
    """

    def __init__(self, llm: Cached, always: bool = False) -> None:
        self._llm, self.always = weakref.proxy(llm), always  # which holds this one
        handle, error = ffi.new("struct pyskip_lossless **"), ffi.new("char[]", N_ERROR)
        with interruptible(llm.engine.skip.native):
            status = lib.pyskip_lossless_new(llm.engine.skip.native, always, handle, error, N_ERROR)
        raise_for(status, error, ModelLoadError, f"{llm.model_path}: {{}}")
        self._native = ffi.gc(handle[0], lib.pyskip_lossless_free)
        line = ffi.new("char[]", N_ERROR)
        self.pays = bool(lib.pyskip_lossless_pays(self._native, line, N_ERROR))
        self.line = ffi.string(line).decode()

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        """Up to lib.PYSKIP_N_DRAFT tokens behind input_ids [n], the last of which is not decoded yet; none where a step
        is better."""
        llm, n = self._llm, len(input_ids)
        n_max = min(llm.n_ctx() - n, llm.n_batch - 1)
        if n != llm.n_tokens + 1 or n_max < 1:
            return np.empty(0, np.intc)
        llm.engine.check_process()
        tokens = np.empty(n_max, np.intc)
        with interruptible(llm.engine.skip.native):
            n_drafted = lib.pyskip_lossless_draft(
                self._native, 0, n - 1, int(input_ids[-1]), n_max, ffi.from_buffer("int32_t[]", tokens)
            )
        return tokens[:n_drafted]
