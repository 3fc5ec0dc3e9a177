"""What the wheel costs beside a build for this processor: decode rates of both, interleaved.

    python benchmarks/wheel_speed.py WHEEL_PYTHON [--model demo] [--rounds N] [-n TOKENS] [-t THREADS] [-o FILE]

WHEEL_PYTHON is a Python that has the wheel (`make wheel-test` leaves some in build/wheel-test); the Python that runs
this has the other build, as `make` installs it. Arms: each build, policy off and every second layer's FFN skipped. On
a seeded random model of the 1.1 B LLaMA shape (Q4_K), or on the demo model.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from skip_cost import N_LAYER, prepare, ratio

from pyskip.bench import Arm, BenchResult, Test, run_bench
from pyskip.errors import PyskipError

RATIOS = (("wheel", "native"), ("wheel, static", "native, static"))


def libraries(python: str) -> list[str]:
    """The names of the libraries that this Python's pyskip loads."""
    code = "from pyskip.binding.library import LIB_DIR; print(*sorted(p.name for p in LIB_DIR.glob('*.so')))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise PyskipError(f"{python} has no pyskip ({reason}): install the wheel there, or run `make wheel-test`")
    return done.stdout.split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=os.path.abspath, metavar="WHEEL_PYTHON")
    parser.add_argument("--model", choices=tuple(N_LAYER), default="llama-1.1b")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("-n", type=int, default=32, help="tokens a round an arm")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, help="JSON")
    args = parser.parse_args()
    model, output = prepare(args.model).absolute(), args.output and args.output.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # which has no folder `pyskip` to be imported
        try:
            if "libggml-cpu.so" not in libraries(sys.executable) or "libggml-cpu-x64.so" not in libraries(args.python):
                raise PyskipError(
                    "expected a build for this processor here and the wheel there: run `make` and `make wheel`"
                )
            static = "static:" + ",".join(str(il) for il in range(1, N_LAYER[args.model], 2))
            arms = [
                Arm("native", "off"),
                Arm("wheel", "off", python=args.python),
                Arm("native, static", static),
                Arm("wheel, static", static, python=args.python),
            ]
            result = run_bench(model, arms, [Test("tg", args.n)], rounds=args.rounds, n_threads=args.threads)
        except PyskipError as error:
            print(f"wheel_speed: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("wheel_speed: interrupted before the first round was whole", file=sys.stderr)
            return 130
        finally:
            os.chdir("/")
    show(result)
    if output:
        ratios = {f"{a} / {b}": ratio(result, a, b) for a, b in RATIOS}
        output.write_text(json.dumps({**asdict(result), "ratios": ratios}, indent=1) + "\n")
    return 0


def show(result: BenchResult) -> None:
    print(f"{result.model}, {result.cpu}, {result.n_threads} threads, {result.rounds} rounds, {result.date}\n")
    print("| build | tokens/s, median | min | max |\n|---|---|---|---|")
    for row in result.rows:
        print(f"| {row.arm} | {row.avg_ts:.2f} | {min(row.samples_ts):.2f} | {max(row.samples_ts):.2f} |")
    print("\n| ratio of rates, by round | median | min | max |\n|---|---|---|---|")
    for a, b in RATIOS:
        print(f"| {a} / {b} | " + " | ".join(f"{value:.3f}" for value in ratio(result, a, b).values()) + " |")


if __name__ == "__main__":
    sys.exit(main())
