"""What calibrating a 7 B model takes in memory beyond the model itself, on a random one (32 layers, d 4096, Q4_K).

    python benchmarks/calibration_memory.py [--tokens 64]

Gathers over one short window and solves every layer, for stand-ins and for gates. The sums are as large for one token
as for a million; the fits mean nothing at this count. Needs 4 GB of disk and 12 GB of memory.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import pyskip
from pyskip.calibration import fit
from pyskip.calibration.calibrate import Run, Settings
from pyskip.calibration.text import CalibrationText
from pyskip.system import cpu_name

ROOT = Path(__file__).resolve().parent.parent


def peak() -> float:
    """Resident memory at its largest, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    model = ROOT / "build" / "models" / "llama-7b.gguf"
    if not model.exists():
        model.parent.mkdir(parents=True, exist_ok=True)
        maker = [
            sys.executable,
            str(ROOT / "tools" / "models" / "make_random.py"),
            "--shape",
            "llama-7b",
            "-o",
            str(model),
        ]
        subprocess.run(maker, check=True)
    fit.N_PER_FEATURE = 0
    llm = pyskip.Llama(model, n_ctx=args.tokens, n_batch=args.tokens, n_ubatch=args.tokens, verbose=False)
    llm.eval(list(range(300, 300 + args.tokens)))
    before = peak()
    windows = tuple(np.random.default_rng(i).integers(300, 30000, args.tokens).astype(np.int32) for i in range(2))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(llm, Settings(), lambda *_: None, Path(folder) / "draft.skip.gguf")
        run.text = CalibrationText(windows[:1], windows[1:], "random", "", sum(map(len, windows[:1])))
        run.fit()
        size = (Path(folder) / "draft.skip.gguf").stat().st_size / 2**30
    found = peak()
    print(f"{cpu_name()}: model and context {before:.2f} GiB, peak {found:.2f} GiB, {found - before:.2f} GiB beyond it")
    print(f"profile {size:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
