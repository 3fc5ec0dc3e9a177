"""What `make windows-test` has compiled here for Windows: what each library needs and offers. Skipped where that was
not done; what they do the native tests try under Wine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

WINDOWS = ROOT / "build" / "windows" / "cmake" / "bin"
OBJDUMP = shutil.which("llvm-objdump")
# What every Windows from 10 on has.
SYSTEM_DLLS = {"advapi32.dll", "kernel32.dll", "msvcrt.dll", "shell32.dll", "ws2_32.dll", "ntdll.dll", "bcrypt.dll"}

on_windows = pytest.mark.skipif(
    not (OBJDUMP and (WINDOWS / "llama.dll").exists()), reason="make windows-test compiles what is looked at; llvm"
)


def declared() -> set[str]:
    """The functions of pyskip.h, as the binding declares them."""
    text = (ROOT / "native" / "cffi" / "_ffi.cdef.txt").read_text("utf-8")
    return set(re.findall(r"\b(pyskip_\w+)\(", text)) - {"pyskip_decide"}


def dump(path: Path, *flags: str) -> str:
    assert OBJDUMP
    return subprocess.run([OBJDUMP, *flags, str(path)], capture_output=True, text=True, check=True).stdout


def test_windows_is_looked_for_functions() -> None:
    assert {"pyskip_build", "pyskip_seq_set_policy", "pyskip_gguf_inspect"} < declared()


@on_windows
@pytest.mark.parametrize("name", ["llama.dll", "ggml.dll", "ggml-base.dll", "ggml-cpu.dll"])
def test_windows_needs_only_windows(name: str) -> None:
    needed = {found.lower() for found in re.findall(r"DLL Name: (\S+)", dump(WINDOWS / name, "-p"))}
    assert needed
    assert needed - {path.name for path in WINDOWS.glob("*.dll")} <= SYSTEM_DLLS


@on_windows
def test_windows_exports() -> None:
    exported = set()
    for name in ("llama.dll", "ggml-base.dll"):
        _, _, table = dump(WINDOWS / name, "-p").partition("Export Table:")
        exported |= set(re.findall(r"^ +\d+ +0x[0-9a-f]+ +(\w+)$", table, re.MULTILINE))
    assert {"llama_decode", "llama_model_load_from_file"} <= exported
    assert declared() <= exported
