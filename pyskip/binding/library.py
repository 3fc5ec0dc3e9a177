"""Loads the native library first and llama_cpp onto it. Imported before everything else that needs either.

Patched and stock llama.cpp cannot live in one process, so a stock one that is there already is refused.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from ..errors import BuildMismatchError
from .files import library_file, looking_in
from .media_library import find_media_library

__all__ = ["BUILD", "LIB_DIR", "ffi", "lib", "llama_cpp"]


def _find_library() -> Path:
    spec = importlib.util.find_spec("pyskip._native")
    if spec is None or spec.origin is None:
        raise BuildMismatchError(
            "pyskip's native library is not installed: run `pip install .` in its source tree, or `make`"
        )
    return Path(spec.origin).parent / "lib"


def _refuse_stock(lib_dir: Path) -> None:
    loaded = sys.modules.get("llama_cpp.llama_cpp")
    if loaded is not None and Path(str(getattr(loaded, "_base_path", ""))).resolve() != lib_dir.resolve():
        raise BuildMismatchError(
            "a stock llama_cpp is loaded already, pyskip needs its own: import pyskip before llama_cpp"
        )


def _check_version(build: str) -> None:
    pinned = re.match(r"llama-cpp-python (\S+),", build)
    expected = pinned.group(1) if pinned else "unknown"
    found = _installed_version()
    if found != expected:
        raise BuildMismatchError(
            f"llama-cpp-python {found} is installed, pyskip was built with {expected}: "
            f"pip install llama-cpp-python=={expected}"
        )


def _installed_version() -> str:
    """llama_cpp.__version__, read and not imported: bindings of another release may not even load on this library.
    (importlib.metadata would cost as much as all the rest of importing pyskip.)"""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        return "none"
    stated = re.search(r"""^__version__ = ["'](.+)["']""", Path(spec.origin).read_text("utf-8"), re.MULTILINE)
    return stated.group(1) if stated else "of no version"


def _load_backends(lib_dir: Path) -> None:
    """In a build with a back end for every level of the instruction set (the wheels): load the one that fits best. By
    itself llama.cpp would look for one beside the Python interpreter and in the working directory. What counts is the
    processor as a device: the back end of other machines runs everywhere, and has none by itself."""
    ggml = ctypes.CDLL(str(library_file(lib_dir, "ggml")))
    if ggml.ggml_backend_dev_count() == 0:
        lib.pyskip_log_drop()  # it reports what it loads; log.py takes the rest
        ggml.ggml_backend_load_all_from_path(ctypes.c_char_p(os.fsencode(lib_dir)))
    if ggml.ggml_backend_dev_count() == 0:
        raise BuildMismatchError(f"no back end (ggml-cpu-*) in {lib_dir} runs on this processor: install pyskip again")


def _import_llama_cpp(lib_dir: Path) -> Any:
    try:
        with looking_in(lib_dir, "LLAMA_CPP_LIB_PATH"):
            module = importlib.import_module("llama_cpp")
    except (ImportError, OSError, MemoryError) as error:  # numpy's runs over a page: its last line has the reason
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise BuildMismatchError(
            f"llama_cpp cannot be imported ({reason}): make room, or install pyskip again"
        ) from error
    if not hasattr(module.llama_cpp._lib, "pyskip_build"):
        raise BuildMismatchError(f"llama_cpp loaded another library than {lib_dir}: import pyskip in a new process")
    return module


LIB_DIR = _find_library()
_refuse_stock(LIB_DIR)
if hasattr(os, "add_dll_directory"):  # Windows, which looks nowhere else, and not in the working directory or on PATH
    os.add_dll_directory(str(LIB_DIR))

try:
    from .._native import ffi as _ffi
    from .._native import lib as _lib
except ImportError as error:
    raise BuildMismatchError(f"pyskip's native library cannot be loaded ({error}): install pyskip again") from error

ffi: Any = _ffi
lib: Any = _lib
BUILD: str = ffi.string(lib.pyskip_build()).decode()
_check_version(BUILD)
_load_backends(LIB_DIR)
find_media_library(LIB_DIR)
llama_cpp: Any = _import_llama_cpp(LIB_DIR)  # loosely typed upstream; taken from here, so that the checks come first
