"""Ctrl-C while the command line is still importing. Imported first of all; for any other program it does nothing."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress

__all__ = ["hear_interrupts"]


def _is_command_line() -> bool:
    """The console script, or python -m pyskip (whose sys.argv is not there yet)."""
    args = sys.orig_argv
    return os.path.basename(sys.argv[0] if sys.argv else "") in ("pyskip", "pyskip.exe") or (
        "-m" in args and args[args.index("-m") + 1 :][:1] == ["pyskip"]
    )


def hear_interrupts() -> None:
    """The command line is up: it handles KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(_signal: int, _frame: object) -> None:
    os._exit(130)


if _is_command_line() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, _leave)
