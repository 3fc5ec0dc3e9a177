"""The sums that closed-form fits need, gathered by the native library while the model runs dense over text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._context import SkipContext
from .._library import ffi, lib
from ..errors import PolicyError
from ..llama import Llama
from ..profile import Profile
from .context import BatchContext

__all__ = ["LayerSums", "gather"]

N_ERROR = 512


@dataclass(frozen=True)
class LayerSums:
    """Sums over tokens of rows f = (normed input [n_embd], log(|x|), 1) and targets t (the block's output [n_embd], or
    the log of the stand-in's relative error [1])."""

    gram: npt.NDArray[np.float32]  # [n_embd + 2, n_embd + 2], sum of f f'
    cross: npt.NDArray[np.float32]  # [n_embd + 2, n_target], sum of f t'
    energy: float  # sum of |t|^2
    n_tokens: int


def gather(
    llm: Llama,
    windows: Sequence[npt.NDArray[np.int32]],
    visit: Callable[[int, LayerSums], None],
    *,
    warmup: int,
    profile: Profile | None = None,
    progress: Callable[[int, int], None],
) -> None:
    """Run dense over the windows, then hand each layer's sums to `visit`; they are gone when it returns.

    Without a profile the targets are the blocks' outputs, with one its stand-ins' errors. Takes
    4 * n_layer * (n_embd + 2) * (2 * n_embd + 2) bytes, about half of it with a profile. Raises PolicyError for a model
    whose blocks cannot be told.
    """
    n_embd = llm.n_embd()
    n_window = max(map(len, windows))
    with BatchContext(llm, 1, n_window, n_window) as context:
        native = _start(context.skip, profile, warmup)
        try:
            for done, window in enumerate(windows, 1):
                context.clear()
                wanted = np.zeros(len(window), bool)
                context.decode(window.tolist(), range(len(window)), [0] * len(window), wanted)
                progress(done, len(windows))
            for il in range(context.skip.n_layer):
                sums = _take(native, il, n_embd, 1 if profile else n_embd)
                if sums is not None:
                    visit(il, sums)
        finally:
            lib.pyskip_gather_free(context.skip.native, native)


def _start(skip: SkipContext, profile: Profile | None, warmup: int) -> object:
    out, error = ffi.new("struct pyskip_gather **"), ffi.new("char[]", N_ERROR)
    status = lib.pyskip_gather_start(skip.native, profile.native if profile else ffi.NULL, warmup, out, error, N_ERROR)
    if status == lib.PYSKIP_STATUS_NO_MEMORY:
        raise MemoryError(ffi.string(error).decode("utf-8", "replace"))
    if status != lib.PYSKIP_STATUS_OK:
        raise PolicyError(ffi.string(error).decode("utf-8", "replace"))
    return out[0]


def _take(native: object, il: int, n_embd: int, n_target: int) -> LayerSums | None:
    gram, cross = ffi.new("float **"), ffi.new("float **")
    energy, n_tokens = ffi.new("double *"), ffi.new("int64_t *")
    lib.pyskip_gather_get(native, il, gram, cross, energy, n_tokens)
    if n_tokens[0] == 0:
        return None
    n_row = n_embd + 2

    def view(data: object, rows: int) -> npt.NDArray[np.float32]:
        return np.frombuffer(ffi.buffer(data, rows * n_row * 4), np.float32).reshape(rows, n_row)

    return LayerSums(view(gram[0], n_row), view(cross[0], n_target).T, float(energy[0]), int(n_tokens[0]))
