"""Which kernels a model is loaded for: native/kernels."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ModelLoadError
from .library import lib

__all__ = ["KERNELS", "check_kernels", "kernels_chosen"]

KERNELS = {"fast": lib.PYSKIP_KERNELS_FAST, "upstream": lib.PYSKIP_KERNELS_UPSTREAM}

_loading = threading.RLock()  # the choice is the process's, and counts while a model is loaded


def check_kernels(kernels: object) -> None:
    """Raises ModelLoadError unless it names kernels."""
    if kernels not in KERNELS:
        raise ModelLoadError(f"kernels is {kernels!r}, expected {' or '.join(map(repr, KERNELS))}")


@contextmanager
def kernels_chosen(kernels: str) -> Iterator[None]:
    """While open, models are loaded for these kernels; other threads that load wait."""
    with _loading:
        before = lib.pyskip_kernels_get()
        lib.pyskip_kernels_set(KERNELS[kernels])
        try:
            yield
        finally:
            lib.pyskip_kernels_set(before)
