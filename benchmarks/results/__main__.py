"""Measures what docs/results.md shows, into JSON files beside its plots, and has the page written (page.py).

    make results DATA=FOLDER [ONLY="STEP ..."]
    python -m benchmarks.results --text FILE --lambada FILE ... [--only STEP ...] [-o docs/results]

Steps, in this order; each needs the ones that it names to have run, in this or an earlier call:

    headline  the profile's and the paper's policy at three rates, on 80 windows of the text
    accuracy  the profile at a rate of 0.25 on every item of lambada, factoid and arc_easy
    cos       cos(x, z) of each block on the text, dense
    arms      what to compare: the layers of `static` by single ablation, the thresholds of `cosine` (cos)
    text, lambada, factoid, arc_easy, cnn, mt_bench     quality of each policy at each rate, by `pyskip eval` (arms)
    bench     decode rates of the policies, by pyskip.bench; wants an otherwise idle machine (arms)
    calibration  profiles that `pyskip calibrate` makes with other flags, and from other text, on the text
    page      the page and the plots

Every score goes to a journal in build/results first: after Ctrl-C the same command goes on where it was, and more
windows or items (--chunks, --items) add to what is there. On two slow cores, with the default counts, near three hours:
headline 22, accuracy 30, arms 6, text 17, lambada 19, factoid 6, arc_easy 8, cnn 13, bench 5, calibration 12. Another
model has a page of its own: -o docs/results-NAME writes docs/results-NAME.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pyskip.errors import PyskipError

from .setup import FORMATS, ITEMS, RATES, READS, ROOT, STEPS, Setup
from .steps import run


def parse(argv: Sequence[str] | None) -> tuple[Setup, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a path, or demo")
    for name, form in FORMATS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", f"--{name}", type=Path, metavar="FILE", help=form)
    parser.add_argument("--fit", type=Path, metavar="FILE", help="UTF-8 text to calibrate on")
    parser.add_argument("--chunks", type=int, default=16, help="windows of the text")
    parser.add_argument("--items", type=int, help=f"of each task; default {ITEMS}")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--rounds", type=int, default=10, help="of the bench")
    parser.add_argument("--only", choices=STEPS, nargs="+", default=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "results", help="folder; the page beside it")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "results", help="folder of the journals")
    args = parser.parse_args(argv)
    inputs = {name: getattr(args, name) for name in (*FORMATS, "fit")}
    steps = [step for step in STEPS if step in args.only]
    for name in dict.fromkeys(name for step in steps for name in READS.get(step, ())):
        if inputs[name] is None or not inputs[name].is_file():
            found = "no file given" if inputs[name] is None else f"{inputs[name]}: no such file"
            raise PyskipError(
                f"{found}, expected {FORMATS.get(name, 'UTF-8 text')}: name it with --{name.replace('_', '-')}"
            )
    setup = Setup(args.model, inputs, args.out, args.work, args.chunks, args.items, tuple(args.rates), args.rounds)
    return setup, steps


def main(argv: Sequence[str] | None = None) -> int:
    try:
        setup, steps = parse(argv)
        setup.work.mkdir(parents=True, exist_ok=True)
        for step in steps:
            print(f"results: {step}", file=sys.stderr, flush=True)
            run(setup, step)
    except PyskipError as error:
        print(f"results: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("results: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
