"""What `make windows-test` and `make macos-check` have compiled here for systems that are not this one: what each file
needs and offers, and under Wine what it does. Skipped where that was not done."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

WINDOWS, MACOS = (ROOT / "build" / system / "cmake" / "bin" for system in ("windows", "macos"))
OBJDUMP = shutil.which("llvm-objdump")
WINE = shutil.which("wine64") or shutil.which("wine64", path="/usr/lib/wine")
# What every Windows from 10 on has.
SYSTEM_DLLS = {"advapi32.dll", "kernel32.dll", "msvcrt.dll", "shell32.dll", "ws2_32.dll", "ntdll.dll", "bcrypt.dll"}

on_windows = pytest.mark.skipif(
    not (OBJDUMP and (WINDOWS / "llama.dll").exists()), reason="make windows-test compiles what is looked at; llvm"
)
on_macos = pytest.mark.skipif(
    not (OBJDUMP and (MACOS / "libllama.dylib").exists()), reason="make macos-check compiles what is looked at; llvm"
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
@pytest.mark.parametrize(
    "name", ["llama.dll", "ggml.dll", "ggml-base.dll", "ggml-cpu.dll", "mtmd.dll", "pyskip-server.exe"]
)
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


def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {**os.environ, "WINEPREFIX": str(tmp_path_factory.mktemp("wine")), "WINEDEBUG": "-all"}


@pytest.fixture(scope="module")
def wine_server(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[str]:
    """Where the server answers, with a model whose path is not ASCII."""
    if not WINE:
        pytest.skip("no wine64 (Debian: apt-get install wine64)")
    folder = tmp_path_factory.mktemp("Müller 日本")
    shutil.copy(tiny, folder / "modèle.gguf")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [WINE, str(WINDOWS / "pyskip-server.exe"), "--model", f"Z:{folder / 'modèle.gguf'}", "--port", port]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--skip", "static:1", "-t", "1"], env=environment(tmp_path_factory), stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 120
        while not _is_ready(url):
            assert process.poll() is None, (folder / "log").read_text(errors="replace")
            assert time.monotonic() < end, (folder / "log").read_text(errors="replace")
            time.sleep(0.5)
        yield url
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        return dict(json.load(error))


@on_windows
@pytest.mark.slow
@pytest.mark.loopback
def test_windows_server_answers(wine_server: str) -> None:
    answer = ask(wine_server, "/v1/completions", {"prompt": "w1 w2", "max_tokens": 8, "temperature": 0})
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["usage"]["skip_rate"] > 0
    dense = ask(wine_server, "/v1/completions", {"prompt": "w1 w2", "max_tokens": 8, "skip": "off"})
    assert dense["usage"]["skip_rate"] == 0


@on_windows
@pytest.mark.slow
@pytest.mark.loopback
def test_windows_server_refuses(wine_server: str) -> None:
    answer = ask(wine_server, "/v1/completions", {"prompt": "w1", "skip": "static:99"})
    assert "static" in answer["error"]["message"]


@on_windows
@pytest.mark.slow
def test_windows_server_says_what_is_wrong(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With as many arguments of its own as the command line has: upstream must not read that again."""
    if not WINE:
        pytest.skip("no wine64 (Debian: apt-get install wine64)")
    command = [WINE, str(WINDOWS / "pyskip-server.exe"), "--timeout", "x"]
    done = subprocess.run(command, env=environment(tmp_path_factory), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip() == "pyskip: --timeout is 'x', expected a number from 1 to 86400"


@on_macos
@pytest.mark.parametrize("name", ["libllama.dylib", "libggml.dylib", "libggml-base.dylib", "libggml-cpu-apple_m1.so"])
def test_macos_loads(name: str) -> None:
    """From its own folder and from the system, on macOS 11 and newer, on ARM."""
    heads = dump(MACOS / name, "--macho", "--private-headers")
    assert re.search(r"^MH_MAGIC_64\s+ARM64\s", heads, re.MULTILINE)
    assert re.search(
        r"cmd LC_BUILD_VERSION\s+cmdsize \d+\s+platform (macos|1)\s+sdk [\d.]+\s+minos 11\.0$", heads, re.MULTILINE
    ) or (re.search(r"minos 11\.0$", heads, re.MULTILINE))
    loaded = set(re.findall(r"cmd LC_LOAD_DYLIB\s+cmdsize \d+\s+name (\S+)", heads))
    own = {path for path in loaded if path.startswith("@rpath/")}
    assert {path.removeprefix("@rpath/") for path in own} <= {path.name for path in MACOS.iterdir()}
    assert loaded - own <= {"/usr/lib/libSystem.B.dylib", "/usr/lib/libc++.1.dylib"}
    assert not own or "path @loader_path " in heads


@on_macos
def test_macos_exports() -> None:
    exported = set()
    for name in ("libllama.dylib", "libggml-base.dylib"):
        exported |= set(re.findall(r" _(\w+)$", dump(MACOS / name, "--macho", "--exports-trie"), re.MULTILINE))
    assert {"llama_decode", "llama_model_load_from_file"} <= exported
    assert declared() <= exported


@on_macos
def test_macos_back_ends() -> None:
    assert {path.name for path in MACOS.glob("libggml-cpu-*.so")} == {
        f"libggml-cpu-apple_{level}.so" for level in ("m1", "m2_m3", "m4")
    }
