"""What a library or program of any system needs and offers, as llvm-objdump and llvm-nm read it.

    binary.py FILE...    one JSON line a file: format, processor, oldest macOS, needs, looks_in, exports

Used by tests/test_cross.py and tests/test_wheel.py. Needs llvm (Debian: apt-get install llvm).
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("llvm-objdump", "llvm-nm")


class Failure(Exception):
    """One line: what was found, what was expected, what to do."""


@dataclass(frozen=True)
class Binary:
    """format: elf, pe or macho; needs: libraries by the names under which they are looked for; looks_in: folders that
    the file itself names; oldest: the release of macOS that a Mach-O file says it runs on; exports: in C's spelling."""

    format: str
    processor: str
    oldest: str | None
    needs: frozenset[str]
    looks_in: frozenset[str]
    exports: frozenset[str]


def available() -> bool:
    return all(map(shutil.which, TOOLS))


def inspect(path: Path) -> Binary:
    """Raises Failure for a file that is neither ELF, PE nor Mach-O, and without llvm."""
    told = _said("llvm-objdump", "-p", path)
    found = re.search(r"file format (\S+)", told)
    kind = found[1] if found else ""
    if kind.startswith("elf"):
        return Binary(
            "elf", kind.removeprefix("elf64-"), None,
            frozenset(re.findall(r"^\s+NEEDED\s+(\S+)", told, re.MULTILINE)),
            frozenset(re.findall(r"^\s+R(?:UN)?PATH\s+(\S+)", told, re.MULTILINE)),
            _symbols(path, "--dynamic"),
        )  # fmt: skip
    if kind.startswith("coff"):
        table = told.partition("Export Table:")[2]
        return Binary(
            "pe", kind.removeprefix("coff-"), None,
            frozenset(re.findall(r"DLL Name: (\S+)", told)),
            frozenset(),
            frozenset(re.findall(r"^\s+\d+\s+0x[0-9a-f]+\s+(\w+)$", table, re.MULTILINE)),
        )  # fmt: skip
    if kind.startswith("mach-o"):
        return _mach_o(path)
    raise Failure(f"{path}: found the format {kind or 'of no object'}, expected ELF, PE or Mach-O: name a library")


def _mach_o(path: Path) -> Binary:
    told = _said("llvm-objdump", "--macho", "--private-headers", path)
    commands = re.split(r"^Load command \d+$", told, flags=re.MULTILINE)

    def fields(name: str, field: str) -> list[str]:
        return [
            found[1]
            for command in commands
            if re.search(rf"^\s+cmd {name}$", command, re.MULTILINE)
            and (found := re.search(rf"^\s+{field} (\S+)", command, re.MULTILINE))
        ]

    processor = re.search(r"\b(ARM64|X86_64)\b", told)
    return Binary(
        "macho", processor[1].lower() if processor else "",
        next(iter(fields("LC_BUILD_VERSION", "minos") + fields("LC_VERSION_MIN_MACOSX", "version")), None),
        frozenset(fields("LC_LOAD_DYLIB", "name") + fields("LC_LOAD_WEAK_DYLIB", "name")),
        frozenset(fields("LC_RPATH", "path")),
        frozenset(name.removeprefix("_") for name in _symbols(path, "--extern-only")),
    )  # fmt: skip


def _symbols(path: Path, which: str) -> frozenset[str]:
    told = _said("llvm-nm", which, "--defined-only", "--format=just-symbols", path)
    return frozenset(name.partition("@")[0] for name in told.split())


def _said(tool: str, *args: str | Path) -> str:
    program = shutil.which(tool)
    if program is None:
        raise Failure(f"no {tool} found, expected it on PATH: install llvm (Debian: apt-get install llvm)")
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"{tool} cannot read it ({(done.stderr.strip().splitlines() or ['nothing said'])[-1]})")
    return done.stdout


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        for name in sys.argv[1:]:
            found = dataclasses.asdict(inspect(Path(name)))
            print(json.dumps({"file": name, **found}, default=sorted))
    except Failure as error:
        print(f"pyskip: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
