"""Distils on a machine with a GPU, which has torch, transformers, gguf and numpy, and of pyskip its Python files alone.

python -m pyskip.calibration.distill MODEL.gguf --tokens FILE --seconds N --state FILE

The tokens come from `pyskip calibrate MODEL --distill N --tokens FILE`; from the state `pyskip calibrate MODEL
--distill N --state FILE` makes the profile: docs/calibration.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from ...errors import PyskipError
from .state import save_state
from .text import load_text

__all__ = ["main"]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pyskip.calibration.distill", description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("--tokens", type=Path, required=True, help="what pyskip calibrate --tokens wrote")
    parser.add_argument("--state", type=Path, required=True, help="what is learnt; gone on from if it is there")
    parser.add_argument("--seconds", type=float, required=True, help="in all, loading and earlier runs included")
    parser.add_argument("--width", type=int, help="neurons of a stand-in (default: 1/7 of the FFN's)")
    parser.add_argument("--own-tokens", type=int, help="that the model writes itself (default: 1,000,000 on a GPU)")
    parser.add_argument("--batch", type=int, help="windows a step (default: 32 on a GPU)")
    parser.add_argument("--recompute", action="store_true", help="keep no activations: slower, for large models")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # rows that run and skip vary
    args, begin = _arguments(), time.monotonic()
    shown = ""

    def show(stage: str, done: int, total: int, words: str) -> None:
        nonlocal shown
        line = f"{stage} {done}/{total} {words}".rstrip()
        if words or stage != shown or done >= total:
            print(f"{time.monotonic() - begin:6.1f} s  {line}", file=sys.stderr, flush=True)
        shown = stage

    try:
        from .train import Plan, train

        plan = replace(Plan.here(args.seconds), width=args.width, seed=args.seed, recompute=args.recompute)
        if args.batch:
            plan = replace(plan, batch=args.batch)
        if args.own_tokens is not None:
            plan = replace(plan, n_own=args.own_tokens)
        save_state(args.state, train(args.model, load_text(args.tokens), plan, show, args.state))
    except (PyskipError, OSError) as error:
        print(f"distill: {error}", file=sys.stderr)
        return 1
    print(args.state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
