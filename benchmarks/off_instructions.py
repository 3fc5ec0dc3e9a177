"""Instructions per decoded token, pyskip under `off` against unpatched llama.cpp, counted by callgrind on one thread.

    python benchmarks/off_instructions.py [MODEL] [--tokens N M] [--json]

decode_n.cpp, compiled here, decodes N and then M tokens on each library; the difference, divided by M - N, is free of
loading and of the prompt. MODEL is the demo model unless named. Needs valgrind, g++ and `make build/reference/.built`.

Exit 0: within 0.1 % and the same logits. 1: not so, or an error. 2: usage.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

from pyskip.system import cpu_name

ROOT = Path(__file__).resolve().parent.parent
DRIVER = Path(__file__).resolve().parent / "decode_n.cpp"
BOUND = 0.001  # of unpatched


class Failure(Exception):
    """One line: what was found, what was expected, what to do."""


class Count(NamedTuple):
    """One run: all its instructions, and the checksum of its last logits."""

    instructions: int
    logits: str


@dataclass(frozen=True)
class Result:
    """Instructions a token of both builds; same_logits: the last logits of both lengths are equal, bit for bit."""

    cpu: str
    date: str
    model: str
    tokens: tuple[int, int]
    unpatched: float
    pyskip_off: float
    ratio: float
    same_logits: bool


def clean_environment(library: Path) -> dict[str, str]:
    """One thread, and this library alone."""
    return {**os.environ, "LD_LIBRARY_PATH": str(library), "OMP_NUM_THREADS": "1"}


def compile_driver(source_tree: Path, library: Path, out: Path) -> None:
    """Against the headers of source_tree; the loader picks the library later, by LD_LIBRARY_PATH."""
    include = [source_tree / "include", source_tree / "ggml" / "include", ROOT / "native" / "include"]
    command = [os.environ.get("CXX", "g++"), "-std=c++17", "-O2", *[f"-I{path}" for path in include], str(DRIVER)]
    command += ["-o", str(out), f"-L{library}", "-lllama", "-ldl", f"-Wl,-rpath-link,{library}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"{DRIVER.name} does not compile against {source_tree}: {first_line(done.stderr)}")


def first_line(text: str) -> str:
    """The first line that names an error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no output")


def count(driver: Path, library: Path, expected: str, model: Path, n: int) -> Count:
    """Instructions that decoding n tokens takes on this library, loading included."""
    with tempfile.TemporaryDirectory() as work:
        out = Path(work) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", str(driver), str(model), str(n)]
        done = subprocess.run(command, env=clean_environment(library), capture_output=True, text=True, check=False)
        if done.returncode in (-signal.SIGILL, 128 + signal.SIGILL):
            raise Failure(
                "valgrind does not know an instruction of this build, most likely AVX-512: run this on another CPU, "
                "or build both libraries with CMAKE_ARGS=-DGGML_NATIVE=OFF"
            )
        if done.returncode:
            own = re.search(r"^decode_n: .*", done.stderr, re.MULTILINE)
            raise Failure(f"decoding with {library} failed: {own[0] if own else first_line(done.stderr)}")
        build, _, logits = done.stdout.strip().partition(" ")
        if build != expected:
            raise Failure(f"{library} holds the {build} libllama, expected the {expected} one: name another directory")
        totals = re.search(r"^(?:totals|summary): (\d+)", out.read_text(errors="replace"), re.MULTILINE)
        if not totals:
            raise Failure("callgrind wrote no totals, expected a line of them: try another valgrind")
        return Count(int(totals[1]), logits)


def demo() -> Path:
    """The demo model's file."""
    try:
        from pyskip.errors import PyskipError
        from pyskip.models import resolve
    except ImportError as error:
        raise Failure(
            f"cannot import pyskip ({error}): run this with the Python that has it, .venv/bin/python"
        ) from None
    try:
        return resolve("demo")
    except PyskipError as error:
        raise Failure(str(error)) from None


def measure(args: argparse.Namespace, model: Path) -> Result:
    """Both libraries, both lengths."""
    few, many = args.tokens
    libraries = {"unpatched": args.reference, "pyskip": args.pyskip}
    for library in libraries.values():
        if not (library / "libllama.so").exists():
            raise Failure(f"no libllama.so in {library}, expected one: run `make bench` once, or name the directory")
    per_token: dict[str, float] = {}
    logits: dict[str, set[str]] = {"few": set(), "many": set()}
    with tempfile.TemporaryDirectory() as work:
        driver = Path(work) / "decode_n"
        compile_driver(args.tree, args.reference, driver)
        for name, library in libraries.items():
            counts = []
            for length, n in (("few", few), ("many", many)):
                print(f"{name}: {n} tokens under callgrind", file=sys.stderr, flush=True)
                counts.append(count(driver, library, name, model, n))
                logits[length].add(counts[-1].logits)
            per_token[name] = (counts[1].instructions - counts[0].instructions) / (many - few)
    return Result(
        cpu=cpu_name(),
        date=date.today().isoformat(),
        model=model.name,
        tokens=(few, many),
        unpatched=per_token["unpatched"],
        pyskip_off=per_token["pyskip"],
        ratio=per_token["pyskip"] / per_token["unpatched"],
        same_logits=all(len(sums) == 1 for sums in logits.values()),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    platlib = Path(sysconfig.get_path("platlib"))
    parser.add_argument("model", type=Path, nargs="?", help="GGUF file (default: the demo model)")
    parser.add_argument("--tokens", type=int, nargs=2, default=(4, 12), metavar=("N", "M"), help="default: 4 12")
    parser.add_argument(
        "--reference", type=Path, default=ROOT / "build" / "reference" / "lib", help="unpatched libllama"
    )
    parser.add_argument("--pyskip", type=Path, default=platlib / "pyskip" / "lib", help="pyskip's libllama")
    parser.add_argument(
        "--tree", type=Path, default=ROOT / "build" / "upstream" / "patched", help="llama.cpp's headers"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    args = parser.parse_args()
    if not 0 <= args.tokens[0] < args.tokens[1] <= 200:
        parser.error(f"--tokens {args.tokens[0]} {args.tokens[1]}: expected 0 <= N < M <= 200")
    try:
        for tool in ("valgrind", os.environ.get("CXX", "g++")):
            if not shutil.which(tool):
                raise Failure(f"no {tool} found, expected it on the PATH: install it (Debian: apt-get install {tool})")
        model = args.model or demo()
        if not model.is_file():
            raise Failure(f"no model {model}: name a GGUF file")
        result = measure(args, model)
    except Failure as failure:
        print(f"off_instructions: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if args.json:
        print(json.dumps(asdict(result), indent=1))
    else:
        print(f"{result.cpu}, {result.model}, 1 thread, {result.date}\n")
        print("| build | instructions a token |\n|---|---|")
        print(f"| unpatched | {result.unpatched:,.0f} |\n| pyskip, off | {result.pyskip_off:,.0f} |")
        print(f"\nratio {result.ratio:.5f}; logits {'equal' if result.same_logits else 'DIFFER'}")
    return 0 if abs(result.ratio - 1) <= BOUND and result.same_logits else 1


if __name__ == "__main__":
    sys.exit(main())
