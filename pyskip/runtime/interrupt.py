"""Ctrl-C while llama.cpp decodes: Python hears it only when the call returns, so the decode is made to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..binding.library import lib

__all__ = ["interruptible"]


@contextmanager
def interruptible(native: Any) -> Iterator[None]:
    """While open, SIGINT stops the decode of this llama_context; Python then raises KeyboardInterrupt. Does nothing in
    other threads than the main one, which Python has no KeyboardInterrupt for, and for a program that handles SIGINT
    otherwise."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    lib.pyskip_watch_interrupt(native, True)
    try:
        yield
    finally:
        if lib.pyskip_watch_interrupt(native, False):
            signal.raise_signal(signal.SIGINT)  # only now: a callback of llama.cpp's would swallow the exception
