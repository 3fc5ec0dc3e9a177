"""Status codes of pyskip.h, with the message beside them, as exceptions.

The readers of files have their own way: what is out of memory there is mostly a size that the file made up.
"""

from __future__ import annotations

from typing import Any

from ..errors import PolicyError, PyskipError
from .library import ffi, lib

__all__ = ["N_ERROR", "raise_for"]

N_ERROR = 512


def raise_for(status: int, error: Any, kind: type[PyskipError] = PolicyError, line: str = "{}") -> None:
    """Raises `kind`, or MemoryError, for a status that is not OK. error: char[N_ERROR], for the {} of `line`."""
    if status == lib.PYSKIP_STATUS_OK:
        return
    reason = ffi.string(error).decode("utf-8", "replace")
    raise MemoryError(reason) if status == lib.PYSKIP_STATUS_NO_MEMORY else kind(line.format(reason))
