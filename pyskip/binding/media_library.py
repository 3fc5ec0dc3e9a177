"""llama_cpp.mtmd_cpp, llama-cpp-python's bindings of libmtmd, on pyskip's own libmtmd.

By itself the module loads the library that came with llama-cpp-python, and that one a stock libllama, whoever imports
it and whenever: llama-cpp-python's chat handlers of images do when they are made.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import BuildMismatchError
from .files import library_file, looking_in

__all__ = ["find_media_library"]

MODULE, VARIABLE = "llama_cpp.mtmd_cpp", "MTMD_CPP_LIB"


def find_media_library(lib_dir: Path) -> None:
    """Whoever imports the module from now on gets the library of this folder; BuildMismatchError if it has none."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(lib_dir))


class _Finder(MetaPathFinder):
    def __init__(self, lib_dir: Path) -> None:
        self._lib_dir = lib_dir

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == MODULE else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._lib_dir)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Any, lib_dir: Path) -> None:
        self._loader, self._lib_dir = loader, lib_dir

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        if not library_file(self._lib_dir, "mtmd").is_file():
            raise BuildMismatchError(
                f"images and audio need libmtmd, and {self._lib_dir} has none: this pyskip was built without its "
                "server: install a wheel, or `make serve` in its source tree"
            )
        with looking_in(self._lib_dir, VARIABLE):
            self._loader.exec_module(module)
