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
from .head import Head

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
    head: Head | None = None,
    progress: Callable[[int, int], None],
) -> None:
    """Run dense over the windows, then hand each layer's sums to `visit`; they are gone when it returns.

    Without a profile the targets are the blocks' outputs, with one its stand-ins' errors; with `head` too, those errors
    as far as the next token's distribution notices them (head.py), which takes a second pass over each window. Takes
    4 * n_layer * (n_embd + 2) * (2 * n_embd + 2) bytes, about half of it with a profile. Raises PolicyError for a model
    whose blocks cannot be told.
    """
    n_embd = llm.n_embd()
    n_window = max(map(len, windows))
    with BatchContext(llm, 1, n_window, n_window, embeddings=head is not None) as context:
        native = _start(context.skip, profile, warmup)
        try:
            for done, window in enumerate(windows, 1):
                context.clear()
                tokens, positions, seq_ids = window.tolist(), range(len(window)), [0] * len(window)
                if head is not None:
                    probes = np.ascontiguousarray(_probes(context, tokens, head), np.float32)
                    n, n_probe, _ = probes.shape
                    lib.pyskip_gather_set_probes(native, ffi.from_buffer("float[]", probes), n, n_probe)
                    context.clear()
                context.decode(tokens, positions, seq_ids, np.zeros(len(window), bool))
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


def _probes(context: BatchContext, tokens: list[int], head: Head) -> npt.NDArray[np.float32]:
    """Of a window, from its dense logits; not gathered."""
    context.skip.set_generated_from(-1, -1)
    wanted = np.ones(len(tokens), bool)
    logits = context.decode(tokens, range(len(tokens)), [0] * len(tokens), wanted)
    return head.probes(logits, context.embeddings(len(tokens)))


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
