"""The sums that closed-form fits need, gathered by the native library while the model runs dense over text."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..binding.library import ffi, lib
from ..binding.status import N_ERROR, raise_for
from ..models.profile import Profile
from ..runtime.batch import BatchContext
from ..runtime.context import SkipContext
from ..runtime.llama import Llama
from .sublayer import Sublayer

__all__ = ["Kind", "LayerSums", "gather"]


class Kind(enum.IntEnum):
    """What is gathered: enum pyskip_gather_kind (native/include/pyskip.h)."""

    OUTPUTS = lib.PYSKIP_GATHER_OUTPUTS
    NEURONS = lib.PYSKIP_GATHER_NEURONS
    HIDDEN = lib.PYSKIP_GATHER_HIDDEN
    ERRORS = lib.PYSKIP_GATHER_ERRORS
    GIVEN = lib.PYSKIP_GATHER_GIVEN
    STEPS = lib.PYSKIP_GATHER_STEPS


ACTIVATIONS = (None, "silu", "gelu", "relu")  # enum pyskip_activation


@dataclass(frozen=True)
class LayerSums:
    """Sums over tokens of features f and targets t, which are, x being the stream and xn the normed input of a block,
    an FFN or attention (which has neither NEURONS nor HIDDEN):

    OUTPUTS: f = (xn, log(|x|), 1), t = y, the block's output.
    NEURONS: f = 1, t = the squares of what ffn_down reads, then those of xn; gram is empty.
    HIDDEN: f = (what the stand-in's skip_down reads, 1), t = y, both over what the stand-in misses of y: it will serve
        where that is little.
    ERRORS: f = (xn, log(|x|), 1), t = log(|y - stand-in|).
    GIVEN: the same f, t = what gather() was given.
    STEPS: f = 1, t = (cos(x, x + y), |y| / |x|); gram is empty.
    """

    gram: npt.NDArray[np.float32]  # [n_row, n_row], sum of f f'
    cross: npt.NDArray[np.float32]  # [n_row, n_target], sum of f t'
    energy: float  # sum of |t|^2; 0 for NEURONS and STEPS
    n_tokens: int
    activation: str | None = None  # of the NEURONS: silu, gelu or relu


def gather(
    llm: Llama,
    windows: Sequence[npt.NDArray[np.int32]],
    kind: Kind,
    visit: Callable[[int, LayerSums], None],
    *,
    warmup: int,
    sublayer: Sublayer = Sublayer.FFN,
    profile: Profile | None = None,
    targets: Sequence[npt.NDArray[np.float32]] = (),
    progress: Callable[[int, int], None],
) -> None:
    """Run dense over the windows, then hand each layer's sums to `visit`; they are gone when it returns. Layers that
    have not what is gathered are left out; so is the last, of which llama.cpp computes only tokens with an output, one
    a window.

    profile: whose stand-ins, for HIDDEN and ERRORS. targets: for GIVEN, of each window's tokens, NaN where one does not
    count. Takes 4 * n_row * (n_row + n_target) bytes a layer. Raises
    PolicyError for a model whose blocks cannot be told.
    """
    n_window = max(map(len, windows))
    with (
        BatchContext(llm, 1, n_window, n_window) as context,
        _gathering(context.skip, kind, sublayer, profile, warmup) as native,
    ):
        for i, window in enumerate(windows):
            if targets:
                given = np.ascontiguousarray(targets[i], np.float32)
                lib.pyskip_gather_set_targets(native, ffi.from_buffer("float[]", given), len(given))
            context.decode_window(window, logits=False)
            progress(i + 1, len(windows))
        for il in range(context.skip.n_layer):
            sums = _take(native, il)
            if sums is not None and sums.n_tokens > len(windows):
                visit(il, sums)


@contextmanager
def _gathering(
    skip: SkipContext, kind: Kind, sublayer: Sublayer, profile: Profile | None, warmup: int
) -> Iterator[object]:
    """A struct pyskip_gather, while which lives the context runs dense."""
    out, error = ffi.new("struct pyskip_gather **"), ffi.new("char[]", N_ERROR)
    of = profile.native if profile else ffi.NULL
    status = lib.pyskip_gather_start(skip.native, int(kind), int(sublayer), of, warmup, out, error, N_ERROR)
    raise_for(status, error)
    try:
        yield out[0]
    finally:
        lib.pyskip_gather_free(skip.native, out[0])


def _take(native: object, il: int) -> LayerSums | None:
    sums = ffi.new("struct pyskip_gather_sums *")
    lib.pyskip_gather_get(native, il, sums)
    if sums.n_tokens == 0:
        return None

    def view(data: object, rows: int) -> npt.NDArray[np.float32]:
        return np.frombuffer(ffi.buffer(data, rows * sums.n_row * 4), np.float32).reshape(rows, sums.n_row)

    gram = view(sums.gram, sums.n_row) if sums.gram != ffi.NULL else np.empty((0, 0), np.float32)
    cross, activation = view(sums.cross, sums.n_cross).T, ACTIVATIONS[sums.activation]
    return LayerSums(gram, cross, float(sums.energy), int(sums.n_tokens), activation)
