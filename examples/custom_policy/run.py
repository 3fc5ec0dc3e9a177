"""A policy in C (policy.c): compiled, handed to pyskip, and what it skipped.

python run.py [MODEL] [--first 0.995] [--last 0.975] [-n 48]
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import tempfile
from pathlib import Path

import pyskip


class Settings(ctypes.Structure):
    """struct settings of policy.c."""

    _fields_ = (("first", ctypes.c_float), ("last", ctypes.c_float), ("warmup", ctypes.c_int32))


def compiled(source: Path, folder: Path) -> Path:
    library = folder / "policy.so"
    flags = ["-shared", "-fPIC", "-O2", "-Wall", "-I", pyskip.get_include()]
    subprocess.run(["cc", *flags, str(source), "-o", str(library)], check=True)
    return library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--first", type=float, default=0.995)
    parser.add_argument("--last", type=float, default=0.975)
    parser.add_argument("-n", type=int, default=48)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(__file__).with_name("policy.c"), Path(folder))
        settings = Settings(args.first, args.last, warmup=4)
        policy = pyskip.Custom.load(library, "decide", settings)
        llm = pyskip.Llama(args.model, skip=policy, n_ctx=512, verbose=False)
        out = llm.create_completion("The sky is", max_tokens=args.n, temperature=0)
        print(out["choices"][0]["text"])
        stats = llm.skip_stats()
        print(f"{stats.rate:.1%} of FFN blocks skipped; by layer:", *(f"{rate:.2f}" for rate in stats.per_layer))


if __name__ == "__main__":
    main()
