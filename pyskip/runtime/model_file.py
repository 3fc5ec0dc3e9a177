"""Whether the file that a model is mapped from is still what was loaded. Weights are read from it whenever they are
needed: llama.cpp would compute with whatever another program writes there."""

from __future__ import annotations

import os

from ..errors import DecodeError

__all__ = ["ModelFile"]


class ModelFile:
    """Made before the model is loaded. A file that was replaced by another of its name, or deleted, stays whole for who
    has it mapped; only one that is written to or cut off in place does not."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._before = self._look()

    def _look(self) -> tuple[int, int, int, int] | None:
        try:
            stat = os.stat(self._path)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            return None
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns

    def check(self) -> None:
        """Raises DecodeError if the file was written to in place."""
        before, now = self._before, self._look()
        if before and now and before[:2] == now[:2] and before != now:
            raise DecodeError(
                f"{self._path}: was written to while it is in use, expected the file that was loaded: load it again "
                "(a new version is best put in its place with mv, not with cp)"
            )
