"""The installed x86-64 wheel on older and newer processors than this one: `make wheel-test` runs it.

    python tests/wheel/processors.py [PYTHON] [--cpu MODEL ...] [--n-gen N]

PYTHON is one that has the wheel (default: one that tests/wheel/install.py has left in build/wheel-test). Its answer is
compared with those of every back end of the wheel that this processor runs, and then with those under qemu-x86_64 as
each MODEL, all greedy, one thread, `--skip 0.25`; so are the logits of a few tokens with f32 weights. Exit 1 if the
tokens differ, a logit by TOLERANCE, or another back end than BACK_ENDS names is loaded.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import environment
from answers import HEADER, N_GEN, ask, model_in_f32, row
from environment import Failure, bare, run

QEMU = "qemu-x86_64-static"
# What must be loaded on which model. QEMU emulates no AVX-512: its Skylake-Server has none, and says so in CPUID.
# Nothing older than Nehalem: numpy's own wheels need its instructions.
BACK_ENDS = {
    "Nehalem": "cpu-sse42",
    "SandyBridge": "cpu-sandybridge",
    "IvyBridge": "cpu-ivybridge",
    "Haswell": "cpu-haswell",
    "Skylake-Server": "cpu-haswell",
}


def back_ends(python: Path) -> Iterator[tuple[str, Path]]:
    """Each back end of the wheel, and a folder for PYTHONPATH in which pyskip has no other."""
    code = "import importlib.util as u; print(u.find_spec('pyskip').submodule_search_locations[0])"
    package = Path(run([python, "-c", code], bare(python.parent)).strip())
    for library in sorted((package / "lib").glob("libggml-cpu-*.so")):
        with tempfile.TemporaryDirectory() as folder:
            others = [path.name for path in (package / "lib").glob("libggml-cpu-*.so") if path != library]
            shutil.copytree(package, Path(folder) / "pyskip", ignore=shutil.ignore_patterns(*others, "__pycache__"))
            (Path(folder) / "pyskip.libs").symlink_to(package.parent / "pyskip.libs")
            yield library.stem.removeprefix("libggml-"), Path(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, nargs="?", help="default: one of build/wheel-test")
    parser.add_argument("--cpu", nargs="*", choices=sorted(BACK_ENDS), default=["Nehalem", "Haswell", "Skylake-Server"])
    parser.add_argument("--n-gen", type=int, default=N_GEN)
    args = parser.parse_args()
    rows: list[str] = []

    def add(line: str) -> None:
        rows.append(line)
        print(line, file=sys.stderr, flush=True)

    try:
        python = args.python or environment.installed()
        if args.cpu and shutil.which(QEMU) is None:
            raise Failure(
                f"no {QEMU} found: install it (Debian: apt-get install qemu-user-static) or give --cpu nothing"
            )
        env = bare(python.parent)
        f32 = model_in_f32(python, env)
        native = ask([python], env, f32, args.n_gen)
        add(row("this processor", native, native, native.back_end))
        for back_end, folder in back_ends(python):
            try:
                answer = ask([python], env | {"PYTHONPATH": str(folder)}, f32, args.n_gen)
                add(row("this processor, forced", answer, native, back_end))
            except Failure as error:
                if "runs on this processor" not in str(error):
                    raise
        for model in args.cpu:
            answer = ask([shutil.which(QEMU) or QEMU, "-cpu", model, python], env, f32, args.n_gen)
            add(row(f"QEMU {model}", answer, native, BACK_ENDS[model]))
    except (Failure, OSError, subprocess.TimeoutExpired) as error:
        print(f"pyskip: {error}", file=sys.stderr)
        return 1
    environment.report(f"One answer on all: {native.text!r}", HEADER, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
