"""The x86-64 wheel on every Python: installed where nothing compiles, then a chat. `make wheel-test` runs it.

    python tests/wheel/install.py [--dist DIST] PYTHON ...

Prints a row a Python, with seconds that hold what pip has to download. Exit 1 if one fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import environment
from environment import Failure, bare, run

QUESTION = "Are dogs real?"


def try_on(python: str, dist: Path) -> str:
    version = run([python, "-c", "import platform; print(platform.python_version())"], {}).strip()
    start = time.perf_counter()
    installed = environment.install(python, dist, f"python-{version}")
    middle = time.perf_counter()
    env = bare(installed.parent)
    answer = run([installed, "-m", "pyskip", "chat", "-t", "1", "--temp", "0"], env, input=f"{QUESTION}\n", timeout=300)
    seconds = time.perf_counter() - middle
    if "dog" not in answer.lower():
        raise Failure(
            f"Python {version} answered {answer.strip()[:80]!r} to {QUESTION!r}, expected something about dogs"
        )
    return f"| {version} | {middle - start:.0f} s | {seconds:.1f} s | {' '.join(answer.split())[:60]} ... |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, default=environment.ROOT / "dist")
    parser.add_argument("python", nargs="+")
    args = parser.parse_args()
    rows = []
    try:
        for python in args.python:
            rows.append(try_on(python, args.dist.resolve()))
            print(rows[-1], file=sys.stderr, flush=True)
    except (Failure, OSError, subprocess.TimeoutExpired) as error:
        print(f"pyskip: {error}", file=sys.stderr)
        return 1
    environment.report("Installed from the wheel", f"| Python | install | chat | {QUESTION} |", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
