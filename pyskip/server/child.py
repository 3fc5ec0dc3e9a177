"""A server as a child of this process: for `pyskip generate --input`, and for a replica on Ray."""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from pyskip.errors import PyskipError

__all__ = ["Child"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Child:
    """`pyskip serve` with these arguments, on a free port of the loopback. Under Linux it does not outlive this
    process, nor the thread that made it.

    ended: called in a thread of its own if it ends though nobody stopped it. What it says goes to stderr.

    Raises PyskipError with what it said if it does not start.
    """

    def __init__(self, arguments: Sequence[str], ended: Callable[[], None] = lambda: None) -> None:
        self._ended, self._stopping = ended, False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pyskip", "serve", "--port", "0", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True,
            preexec_fn=_die_with_the_parent if sys.platform == "linux" else None,
        )  # fmt: skip
        self.url = self._address()
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        """Requests that are there are answered first."""
        self._stopping = True
        self._process.terminate()
        self._process.wait()

    def _address(self) -> str:
        last = ""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r" at (http://\S+?);", line):
                return found[1]
            last = line.strip() or last
        self._process.wait()
        raise PyskipError(f"the server does not start: {last.removeprefix('pyskip: ')}")

    def _watch(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            sys.stderr.write(line)
        self._process.wait()
        if not self._stopping:
            self._ended()


def _die_with_the_parent() -> None:
    if sys.platform != "win32":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
