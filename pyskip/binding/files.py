"""What the native files are called on this system, as CMake names them, and where llama-cpp-python looks for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["library_file", "looking_in", "program_file"]

_PREFIX, _SUFFIX = {"win32": ("", ".dll"), "darwin": ("lib", ".dylib")}.get(sys.platform, ("lib", ".so"))


def library_file(folder: Path, name: str) -> Path:
    """Of the library `name`, such as llama, in its folder; it need not be there."""
    return folder / f"{_PREFIX}{name}{_SUFFIX}"


def program_file(folder: Path, name: str) -> Path:
    return folder / (f"{name}.exe" if sys.platform == "win32" else name)


@contextmanager
def looking_in(folder: Path, variable: str) -> Iterator[None]:
    """While a module of llama-cpp-python is imported: this variable has it load its library from the folder. What it
    does to PATH on Windows is undone: libraries are found beside each other, and nowhere else."""
    before = {name: os.environ.get(name) for name in (variable, "PATH")}
    os.environ[variable] = str(folder)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
