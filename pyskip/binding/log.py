"""llama.cpp's log: shown if a model is loaded verbosely, and its last complaints kept for error messages.

llama-cpp-python's own callback takes ggml's levels for another set, and drops errors when verbose=False.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import sys
from collections import deque

from .library import lib, llama_cpp

__all__ = ["forget", "last_complaint", "receive"]

INFO, WARN, CONT = 2, 3, 5  # enum ggml_log_level

_verbose = logging.getLogger("llama-cpp-python")  # set by llama_cpp.Llama(verbose=...)
_complaints: deque[str] = deque(maxlen=32)
_level = 0


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def receive(level: int, text: bytes, _user_data: object) -> None:
    global _level
    _level = _level if level == CONT else level
    line = text.decode("utf-8", "replace")
    if _level >= WARN:
        _complaints.append(line)
    if _level >= INFO and 0 < _verbose.level <= logging.DEBUG and sys.stderr is not None:  # 0: no model was loaded yet
        print(line, end="", flush=True, file=sys.stderr)


llama_cpp.llama_log_set(receive, ctypes.c_void_p(0))
atexit.register(lib.pyskip_log_drop)  # models that are freed after this module still log


def forget() -> None:
    """Drop what was kept: what comes next is about the next call."""
    _complaints.clear()


def last_complaint() -> str:
    """The last warning or error in one line, without the function it came from; "" if there was none."""
    lines = "".join(_complaints).strip().splitlines()
    # the most telling line is the first error: what follows it only repeats that something failed
    told = [line.partition(": ")[2] or line for line in lines if "error" in line.lower() or "fail" in line.lower()]
    return (told or lines or [""])[0].strip()
