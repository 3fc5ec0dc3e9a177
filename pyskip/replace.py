"""A file that is replaced as a whole or not at all. Used by what writes profiles and sessions."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(target: Path, *, private: bool = False) -> Iterator[str]:
    """The name of a new file beside the target, which takes its place when the block ends well.

    A full disk or an interruption leaves the old file as it was. private: for the owner only, else as the umask says.
    Raises OSError.
    """
    descriptor, name = tempfile.mkstemp(prefix=target.name[:200] + ".", suffix=".part", dir=target.parent)
    os.close(descriptor)
    try:
        yield name
        if not private:
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
        os.replace(name, target)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
