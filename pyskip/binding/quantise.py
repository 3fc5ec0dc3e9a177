"""Weights in ggml's types, by its own quantizer: gguf-py writes no K-quants."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import numpy.typing as npt

from ..system import physical_cores
from .files import library_file
from .library import LIB_DIR

__all__ = ["quantise_rows"]

ROWS = 256  # that a thread takes at a time

_ggml = ctypes.CDLL(str(library_file(LIB_DIR, "ggml-base")))  # loaded already, with libllama
_ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
_ggml.ggml_quantize_chunk.argtypes = [
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
]  # fmt: skip


def quantise_rows(
    matrix: npt.NDArray[np.float32],
    kind: gguf.GGMLQuantizationType,
    importance: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.uint8]:
    """matrix: [n_row, n], rows of whole blocks of the type. importance: [n], how much an error in each column counts,
    where the type can heed it. Returns [n_row, bytes of a row]."""
    n_row, n = matrix.shape
    block, size = gguf.GGML_QUANT_SIZES[kind]
    source = np.ascontiguousarray(matrix, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    out = np.empty((n_row, n // block * size), np.uint8)
    _ggml.ggml_quantize_init(int(kind))  # tables that threads would otherwise make at once

    def part(begin: int) -> None:
        _ggml.ggml_quantize_chunk(
            int(kind), source.ctypes.data, out.ctypes.data, begin * n, min(ROWS, n_row - begin), n,
            None if weights is None else weights.ctypes.data,
        )  # fmt: skip

    with ThreadPoolExecutor(physical_cores()) as pool:
        list(pool.map(part, range(0, n_row, ROWS)))
    return out
