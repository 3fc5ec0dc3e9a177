"""A chat at the command line under every policy, watched by the address and undefined-behaviour sanitizers.

    python tests/support/sanitized_chat.py SITE MODEL

`make sanitize` calls this. SITE holds pyskip with an extension and libraries built so, MODEL has its profile beside it.
Prints what each chat skipped. Exit 1 if one fails, or says anything but pyskip's own lines.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

POLICIES = (
    "off",
    "static:1,3",
    "cosine:threshold=-1,run=1,cold_start=1,cold_end=1,warmup=1",
    "profile:rate=0.5,warmup=1",
    "profile:rate=0.5,warmup=1,prefill=1",
    "random:rate=0.5,warmup=0",
    "random:rate=0.5,warmup=0,stand_in=1",
)
PROMPTS = "w1 w2 w3 w4 w5 w6 w7\nw8 w9\n"
DEBUG = ("register_backend", "register_device")  # what ggml says in a build that is no release
PYTHON = (sys.executable, "-S")  # without the site-packages' way to another pyskip


def environment(site: Path) -> dict[str, str]:
    """Python itself is not built so: its memory must come from the sanitizer first, and is no leak when it ends. The
    sanitizer looks for the function that throws when it starts, before anything in C++ is loaded."""
    compiler = os.environ.get("CC", "cc")
    preload = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    path = os.pathsep.join([str(site), sysconfig.get_path("platlib")])
    own = {"LD_PRELOAD": " ".join(preload), "PYTHONPATH": path, "PYTHONMALLOC": "malloc", "PYSKIP_DEBUG": "1"}
    ends = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    return {**os.environ, **own, **ends}


def main() -> int:
    site, model = (Path(argument).resolve() for argument in sys.argv[1:])
    env = environment(site)
    where = [*PYTHON, "-c", "from pyskip.binding.library import LIB_DIR; print(LIB_DIR)"]
    found = subprocess.run(where, env=env, cwd=site, capture_output=True, text=True)
    if Path(found.stdout.strip()) != site / "pyskip" / "lib" or b"__asan" not in found_library(site).read_bytes():
        print(f"{site} is not what would be tested: {found.stdout}{found.stderr}", file=sys.stderr)
        return 1
    status = 0
    for policy in POLICIES:
        command = [*PYTHON, "-m", "pyskip", "chat", str(model), "--skip", policy, "-n", "12", "-t", "2", "--seed", "1"]
        done = subprocess.run(command, env=env, cwd=site, input=PROMPTS, capture_output=True, text=True)
        said = [line for line in done.stderr.splitlines() if not line.startswith(DEBUG)]
        if done.returncode != 0 or len(said) != 1 or not said[0].startswith("pyskip: 2 answers"):
            print(f"{policy}: exit {done.returncode}\n{done.stderr}", file=sys.stderr)
            status = 1
        else:
            print(said[0].removeprefix("pyskip: "), flush=True)
    return status


def found_library(site: Path) -> Path:
    return site / "pyskip" / "lib" / "libllama.so"


if __name__ == "__main__":
    sys.exit(main())
