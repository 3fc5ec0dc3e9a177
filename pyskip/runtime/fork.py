"""fork() leaves llama.cpp's threads behind: a child that would wait for them for ever is told so."""

from __future__ import annotations

import os

from ..errors import DecodeError

__all__ = ["check_threads"]

_has_pool = False  # this process decoded with several threads, which OpenMP keeps
_lost_pool = False  # it is the child of one that did


def _in_child() -> None:
    global _lost_pool
    _lost_pool = _lost_pool or _has_pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def check_threads(n_threads: int) -> None:
    """Before a decode. Raises DecodeError if its threads are those of another process."""
    global _has_pool
    if n_threads > 1 and _lost_pool:
        raise DecodeError(
            "this process was forked from one that decoded with several threads, which a child does not have: fork "
            "before the first decode, start children with multiprocessing's spawn, or use n_threads=1"
        )
    _has_pool = _has_pool or n_threads > 1
