"""libFuzzer on the native readers of GGUF files (native/fuzz): builds it with clang and runs it from the seeds.

    python tests/fuzz/native.py [--runs N] [--seed S]

What it finds lies in build/fuzz/finds; `build/fuzz/native/fuzz-gguf FILE` runs that again. Inputs that went another way
through the code are kept in build/fuzz/corpus, where the next run starts from.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from seeds import ROOT, make

BUILD = ROOT / "build" / "fuzz" / "native"
LIMITS = ("-timeout=10", "-rss_limit_mb=2048", "-max_len=262144")


def build() -> Path:
    """The fuzzer. cmake and ninja are those of the virtual environment."""
    tools = Path(sys.executable).parent
    configure = [
        str(tools / "cmake"), "-S", str(ROOT / "native" / "fuzz"), "-B", str(BUILD), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", "-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++",
        f"-DPYSKIP_TREE={ROOT / 'build' / 'upstream' / 'patched'}",
    ]  # fmt: skip
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "log", "w+") as log:
        for command in (configure, [str(tools / "cmake"), "--build", str(BUILD), "--target", "fuzz-gguf"]):
            if subprocess.run(command, stdout=log, stderr=log).returncode != 0:
                raise SystemExit(f"fuzz: cannot build native/fuzz with clang: see {log.name}")
    return BUILD / "fuzz-gguf"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if not shutil.which("clang++"):
        print(
            "fuzz: native is left out: no clang++ found: install one (Debian: apt-get install clang)", file=sys.stderr
        )
        return 0
    fuzzer = build()
    finds, corpus = BUILD.parent / "finds", BUILD.parent / "corpus"
    for folder in (finds, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pyskip-fuzz-") as seeds:
        make(Path(seeds))
        command = [
            str(fuzzer),
            *LIMITS,
            f"-runs={args.runs}",
            f"-seed={args.seed}",
            f"-artifact_prefix={finds}/native-",
        ]
        return subprocess.run([*command, str(corpus), seeds]).returncode


if __name__ == "__main__":
    sys.exit(main())
