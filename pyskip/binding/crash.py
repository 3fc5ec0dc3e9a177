"""When llama.cpp gives up: exceptions while a model is loaded, and one line at the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .library import lib

__all__ = ["aborts_caught", "exit_on_crash"]


@contextmanager
def aborts_caught() -> Iterator[None]:
    """Around calls that load a model or make a context: if llama.cpp would abort the process on what a file says,
    the call fails, and the log has the reason. For the thread that enters."""
    lib.pyskip_catch_aborts(True)
    try:
        yield
    finally:
        lib.pyskip_catch_aborts(False)


def exit_on_crash(fd: int) -> None:
    """For command lines: a crash in native code ends the process with exit code 1 and one line on this descriptor."""
    if sys.platform == "win32":
        import msvcrt

        fd = msvcrt.get_osfhandle(fd)  # the C library that the native code is linked with need not be Python's
    lib.pyskip_exit_on_crash(fd)
