"""What the conditional graph costs, and what a skipped block still costs: decode rates of seven arms, interleaved.

    python benchmarks/skip_cost.py [--model demo] [--rounds N] [-n TOKENS] [-t THREADS] [--json]
                                   [--never-built PYTHON]

(`make bench` sets it up.) Arms, on a seeded random model of the 1.1 B LLaMA shape (22 layers, d 2048, ff 5632, Q4_K),
or on the demo model, with a random profile of full rank:

    unpatched    upstream's llama.cpp of the same release and flags
    off          pyskip, policy off
    armed        pyskip, every block conditional and tested, none skipped (cosine, threshold 2)
    static       pyskip, every second layer's FFN skipped
    never-built  upstream's llama.cpp whose graph leaves the same FFNs out (benchmarks/never-built.patch)
    gated        pyskip, a profile whose gates never skip
    stand-in     pyskip, a profile whose stand-ins serve for a quarter of the blocks, drawn at random by token and layer

All with llama.cpp's kernels, since the other builds have no others. --never-built names a Python whose pyskip was built
with never-built.patch at the end of patches/series: then all arms but `unpatched`, with pyskip's kernels.

Measured by pyskip.bench: one process an arm, in turns. Here are the arms that need other builds of llama.cpp.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from pyskip.bench import Arm, BenchResult, Test, run_bench

ROOT = Path(__file__).resolve().parent.parent
N_LAYER = {"llama-1.1b": 22, "demo": 30}
RATIOS = (
    ("off", "unpatched"),
    ("armed", "unpatched"),
    ("static", "never-built"),
    ("armed", "off"),
    ("static", "unpatched"),
    ("static", "off"),
    ("gated", "off"),
    ("stand-in", "off"),
)


def arms(model: str, never_built: str | None) -> list[Arm]:
    layers = ",".join(str(il) for il in range(1, N_LAYER[model], 2))
    kernels = "fast" if never_built else "upstream"

    def own(name: str, skip: str) -> Arm:
        return Arm(name, skip, kernels=kernels)

    def other(name: str, left_out: str) -> Arm:
        env = {"LLAMA_CPP_LIB_PATH": str(ROOT / "build" / name / "lib"), "PYSKIP_NEVER_BUILT": left_out}
        return Arm(name.replace("reference", "unpatched"), None, env=env)

    if never_built:
        env = {"PYSKIP_NEVER_BUILT": layers}
        others = [Arm("never-built", "off", python=never_built, env=env, kernels=kernels)]
    else:
        others = [other("reference", ""), other("never-built", layers)]
    return [
        own("off", "off"),
        *others,
        own("armed", "cosine:threshold=2,run=1,cold_start=0,cold_end=0,warmup=0"),
        own("static", f"static:{layers}"),
        own("gated", "profile:error=0"),
        own("stand-in", "random:rate=0.25,warmup=0,stand_in=1"),
    ]


def ratio(result: BenchResult, a: str, b: str) -> dict[str, float]:
    samples = {row.arm: row.samples_ts for row in result.rows}
    values = [x / y for x, y in zip(samples[a], samples[b], strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(result: BenchResult) -> dict[str, dict[str, float]]:
    names = {row.arm for row in result.rows}
    return {f"{a} / {b}": ratio(result, a, b) for a, b in RATIOS if {a, b} <= names}


def show(result: BenchResult) -> None:
    print(f"{result.model}, {result.cpu}, {result.n_threads} threads, {result.rounds} rounds, {result.date}")
    print(f"{result.builds['off']}\n")
    print("| arm | tokens/s, median | min | max |\n|---|---|---|---|")
    for row in result.rows:
        print(f"| {row.arm} | {row.avg_ts:.2f} | {min(row.samples_ts):.2f} | {max(row.samples_ts):.2f} |")
    print("\n| ratio of rates, by round | median | min | max |\n|---|---|---|---|")
    for name, values in ratios(result).items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values.values()) + " |")
    own = result.rows[-1]
    print(
        f"\nstand-in: {own.skip_rate:.3f} of the blocks skipped; bytes allow {own.ideal_speedup:.3f} x, efficiency "
        f"{own.efficiency:.3f}"
    )


def prepare(name: str) -> Path:
    """The model and a random profile beside it, made if they are missing."""
    model = ROOT / "build" / "models" / f"{name}.gguf"
    model.parent.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        print("making the model", file=sys.stderr)
        if name == "demo":
            from pyskip.models import resolve

            model.symlink_to(resolve("demo"))
        else:
            maker = [
                sys.executable,
                str(ROOT / "tools" / "models" / "make_random.py"),
                "--shape",
                name,
                "-o",
                str(model),
            ]
            subprocess.run(maker, check=True)
    profile = model.with_name(f"{name}.skip.gguf")
    maker = [sys.executable, str(ROOT / "tools" / "models" / "make_profile.py"), str(model), "-o", str(profile)]
    subprocess.run(maker, check=True)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(N_LAYER), default="llama-1.1b")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("-n", type=int, default=32, help="tokens a round an arm")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--never-built", metavar="PYTHON")
    args = parser.parse_args()
    start = time.monotonic()

    def progress(done: int, total: int) -> None:
        left = (time.monotonic() - start) / done * (total - done)
        print(f"\r{done}/{total}, {left:.0f} s left ", end="\n" if done == total else "", file=sys.stderr, flush=True)

    try:
        result = run_bench(
            prepare(args.model), arms(args.model, args.never_built), [Test("tg", args.n)],
            rounds=args.rounds, n_threads=args.threads, progress=progress,
        )  # fmt: skip
    except KeyboardInterrupt:
        print("skip_cost: interrupted before the first round was whole", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps({**asdict(result), "ratios": ratios(result)}, indent=1))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
