"""What is compiled here for other systems (`make windows-test`, `make musl-test`, `make macos`): what each file needs,
where it looks, what it offers. Skipped where that was not done; what the files do is tried under Wine and musl."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, tool

binary, windows_python = tool("binary"), tool("windows_python")
needs_llvm = pytest.mark.skipif(not binary.available(), reason="llvm is not installed")

# What every Windows from 10 on has, and what the binding finds in Python.
WINDOWS_HAS = {"advapi32.dll", "kernel32.dll", "msvcrt.dll", "shell32.dll", "ws2_32.dll", "ntdll.dll", "bcrypt.dll"}
WINDOWS_HAS |= {"python3.dll", "user32.dll", "ole32.dll"}
MACOS_HAS = {"/usr/lib/libSystem.B.dylib"}
MUSL_HAS = {"libc.so"}


def built(system: str, *patterns: str) -> list[Path]:
    """Libraries, binding and program in a folder of a build, as far as they are there."""
    folder = ROOT / "build" / system / "cmake"
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if not path.name.startswith("test-"))


WINDOWS = built("windows", "bin/*.dll", "bin/pyskip-server.exe", "_native.pyd")
MACOS = [
    path
    for arch in ("aarch64", "x86_64")
    for path in built(f"macos/{arch}", "bin/*.dylib", "bin/pyskip-server", "*.so")
]
MUSL = built("musl", "bin/*.so", "bin/pyskip-server", "_native.abi3.so")


def declared() -> set[str]:
    """The functions of pyskip.h, as the binding declares them."""
    text = (ROOT / "native" / "cffi" / "_ffi.cdef.txt").read_text("utf-8")
    return set(re.findall(r"\b(pyskip_\w+)\(", text)) - {"pyskip_decide"}


def exported(folder: Path, pattern: str) -> set[str]:
    return set().union(*(binary.inspect(folder / pattern.format(name)).exports for name in ("llama", "ggml-base")))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT / "build"))


def test_what_is_looked_for() -> None:
    assert {"pyskip_build", "pyskip_seq_set_policy", "pyskip_gguf_inspect"} < declared()


@needs_llvm
def test_of_this_systems_own() -> None:
    """That the eyes see: the libraries that these tests run on."""
    from pyskip.binding.library import LIB_DIR

    if sys.platform != "linux":
        pytest.skip("their names are Linux's")
    found = binary.inspect(LIB_DIR / "libllama.so")
    assert (found.format, found.oldest) == ("elf", None)
    assert {"libggml.so", "libggml-base.so", "libc.so.6"} <= found.needs
    assert found.looks_in == {"$ORIGIN"}
    assert declared() <= exported(LIB_DIR, "lib{}.so")


@needs_llvm
@pytest.mark.skipif(sys.platform != "linux", reason="their names are Linux's")
def test_kernels_are_each_back_ends_own() -> None:
    """What a back end offers under a name that others have, too, a process may take from the first that it loads: one
    for a processor that this is not."""
    from pyskip.binding.library import LIB_DIR

    back_ends = sorted(LIB_DIR.glob("libggml-cpu*.so"))
    assert back_ends
    for path in back_ends:
        names = binary.inspect(path).exports
        assert any("ggml_backend_cpu" in name or name == "ggml_backend_init" for name in names)
        assert not [name for name in names if "pyskip_cpu" in name]


@needs_llvm
def test_of_no_library(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.so").write_text("no library")
    monkeypatch.setattr(sys, "argv", ["binary.py", str(tmp_path / "a.so")])
    assert binary.main() == 1
    assert capsys.readouterr().err.startswith("pyskip: llvm-objdump cannot read it (")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(binary.Failure, match="no llvm-objdump found, expected it on PATH: install llvm"):
        binary.inspect(tmp_path / "a.so")


@needs_llvm
@pytest.mark.skipif(not WINDOWS, reason="make windows-test compiles what is looked at")
@pytest.mark.parametrize("path", WINDOWS, ids=name_of)
def test_windows_needs_only_windows(path: Path) -> None:
    found = binary.inspect(path)
    assert (found.format, found.processor) == ("pe", "x86-64")
    assert {name.lower() for name in found.needs} - {other.name for other in WINDOWS} <= WINDOWS_HAS


@needs_llvm
@pytest.mark.skipif(not MACOS, reason="make macos compiles what is looked at")
@pytest.mark.parametrize("path", MACOS, ids=name_of)
def test_macos_needs_only_macos(path: Path) -> None:
    """And runs on 11: neighbours are found by @rpath, which is the file's own folder or the one below."""
    found = binary.inspect(path)
    assert found.format == "macho"
    assert found.processor == ("arm64" if "aarch64" in name_of(path) else "x86_64")
    assert found.oldest is not None
    assert [int(part) for part in found.oldest.split(".")][:2] <= [11, 0]
    neighbours = {f"@rpath/{other.name}" for other in MACOS}
    assert found.needs - neighbours <= MACOS_HAS
    assert found.looks_in == {"@loader_path/lib" if path.name.startswith("_native") else "@loader_path"}


@needs_llvm
@pytest.mark.skipif(not MUSL, reason="make musl-test compiles what is looked at")
@pytest.mark.parametrize("path", MUSL, ids=name_of)
def test_musl_needs_only_musl(path: Path) -> None:
    found = binary.inspect(path)
    assert (found.format, found.processor) == ("elf", "x86-64")
    assert found.needs - {other.name for other in MUSL} <= MUSL_HAS
    assert found.looks_in == {"$ORIGIN/lib" if path.name.startswith("_native") else "$ORIGIN"}


@needs_llvm
@pytest.mark.parametrize(
    ("system", "pattern", "target"),
    [
        ("windows", "{}.dll", "windows-test"),
        ("macos/aarch64", "lib{}.dylib", "macos"),
        ("macos/x86_64", "lib{}.dylib", "macos"),
        ("musl", "lib{}.so", "musl-test"),
    ],
)
def test_exports(system: str, pattern: str, target: str) -> None:
    if not built(system, "bin/*"):
        pytest.skip(f"make {target} compiles what is looked at")
    names = exported(ROOT / "build" / system / "cmake" / "bin", pattern)
    assert {"llama_decode", "llama_model_load_from_file"} <= names
    assert declared() <= names


def test_python_for_windows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the binding takes from python3.dll, functions and data."""
    (tmp_path / "a.h").write_text("PyAPI_FUNC(int) PyOne(void);\nPyAPI_DATA(PyObject) _Py_Two;\n")
    assert windows_python.declared(tmp_path) == {"PyOne": False, "_Py_Two": True}
    monkeypatch.setattr(sys, "argv", ["windows_python.py", str(tmp_path / "out")])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert windows_python.main() == 1
    assert "install it (Debian: apt-get install binutils-mingw-w64-x86-64)" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which(windows_python.DLLTOOL), reason="binutils-mingw-w64-x86-64 is not installed")
def test_import_library_for_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["windows_python.py", str(tmp_path / "out")])
    assert windows_python.main() == 0
    assert b"PyModule_Create2" in (tmp_path / "out" / "libpython3.a").read_bytes()
    assert "MS_WIN64" in (tmp_path / "out" / "include" / "pyconfig.h").read_text()
    assert (tmp_path / "out" / "include" / "Python.h").exists()
