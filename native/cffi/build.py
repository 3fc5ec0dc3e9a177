"""Emit the C source of `pyskip._native`, the cffi extension that binds pyskip.h: `build.py OUT.c`. Run by CMake."""

import sys
from pathlib import Path

import cffi


def main() -> None:
    ffi = cffi.FFI()
    ffi.cdef((Path(__file__).parent / "_ffi.cdef.txt").read_text())
    ffi.set_source("pyskip._native", '#include "pyskip.h"', py_limited_api=True)
    ffi.emit_c_code(sys.argv[1])


if __name__ == "__main__":
    main()
