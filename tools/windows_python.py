"""What the binding for Windows is compiled and linked with, made here: headers and an import library of python3.dll,
which stands for every Python there.

    windows_python.py OUT    writes OUT/include and OUT/libpython3.a

The headers are those of the Python that runs this, with a pyconfig.h of ours: what the stable ABI needs to know of
64 bit Windows. The library names what those headers declare. Run by the Makefile; needs Debian's
binutils-mingw-w64-x86-64.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

DLLTOOL = "x86_64-w64-mingw32-dlltool"
PYCONFIG = """\
#pragma once
#define MS_WINDOWS 1
#define MS_WIN32 1
#define MS_WIN64 1
#define NT_THREADS 1
#define WITH_THREAD 1
#define Py_ENABLE_SHARED 1
#define HAVE_DECLSPEC_DLL 1
#define HAVE_STDARG_PROTOTYPES 1
#define HAVE_SYS_TYPES_H 1
#define HAVE_SYS_STAT_H 1
#define HAVE_UINTPTR_T 1
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_WCHAR_T 2
#define ALIGNOF_SIZE_T 8
#define ALIGNOF_LONG 4
#define ALIGNOF_MAX_ALIGN_T 16
"""


def declared(include: Path) -> dict[str, bool]:
    """What the headers declare of Python's library -> whether it is data."""
    names: dict[str, bool] = {}
    for header in sorted(include.glob("*.h")):
        text = header.read_text("utf-8", "replace")
        names |= dict.fromkeys(re.findall(r"PyAPI_FUNC\([^)]*\)\s*(\w+)\s*\(", text), False)
        names |= dict.fromkeys(re.findall(r"PyAPI_DATA\([^)]*\)\s*(\w+)\s*;", text), True)
    return names


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    tool = shutil.which(DLLTOOL)
    if tool is None:
        print(
            f"pyskip: no {DLLTOOL} found: install it (Debian: apt-get install binutils-mingw-w64-x86-64)",
            file=sys.stderr,
        )
        return 1
    out, source = Path(sys.argv[1]), Path(sysconfig.get_path("include"))
    names = declared(source)
    if "PyModule_Create2" not in names:
        print(
            f"pyskip: {source} has no headers of Python: install them (Debian: apt-get install python3-dev)",
            file=sys.stderr,
        )
        return 1
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out / "include")
    (out / "include" / "pyconfig.h").unlink()
    (out / "include" / "pyconfig.h").write_text(PYCONFIG)
    lines = [f"{name} DATA" if is_data else name for name, is_data in sorted(names.items())]
    (out / "python3.def").write_text("\n".join(["LIBRARY python3.dll", "EXPORTS", *lines, ""]))
    command = [tool, "-d", str(out / "python3.def"), "-l", str(out / "libpython3.a"), "-m", "i386:x86-64"]
    return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
