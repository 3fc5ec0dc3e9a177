"""Cores for a replica, that no other replica of this machine runs on. Ray counts cores, it does not say which."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import PyskipError

__all__ = ["Claim", "running_on"]


class Claim:
    """Up to n cores of those that this process may use, held until close() or the process's end. `cores` is empty if so
    many are not free: then the system places threads.

    folder: of the lock files, one a core; by default one of the user's own among temporary files.
    """

    cores: frozenset[int]

    def __init__(self, n: int, folder: Path | None = None) -> None:
        if sys.platform != "linux":
            raise PyskipError(f"replicas claim cores under Linux alone, found {sys.platform}: use pyskip serve")
        import fcntl

        folder = folder or Path(tempfile.gettempdir()) / f"pyskip-cores-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        self._files: list[int] = []
        cores: set[int] = set()
        for core in sorted(os.sched_getaffinity(0)):
            if len(cores) == n:
                break
            file = os.open(folder / str(core), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                continue
            self._files.append(file)
            cores.add(core)
        self.cores = frozenset(cores) if len(cores) == n else frozenset[int]()
        if not self.cores:
            self.close()

    def close(self) -> None:
        while self._files:
            os.close(self._files.pop())


@contextmanager
def running_on(cores: frozenset[int]) -> Iterator[None]:
    """This thread, and processes that it starts meanwhile, on these cores; on all if there are none."""
    if sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores or before)
        yield
    finally:
        os.sched_setaffinity(0, before)
