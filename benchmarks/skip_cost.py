"""What the conditional graph costs, and what a skipped block still costs: decode rates of seven arms, interleaved.

    python benchmarks/skip_cost.py [--model demo] [--rounds N] [-n TOKENS] [-t THREADS] [--json]

(`make bench` sets it up.) Arms, on a seeded random model of the 1.1 B LLaMA shape (22 layers, d 2048, ff 5632, Q4_K),
or on the demo model, with a random profile of full rank:

    unpatched    upstream's llama.cpp of the same release and flags
    off          pyskip, policy off
    armed        pyskip, every block conditional and tested, none skipped (cosine, threshold 2)
    static       pyskip, every second layer's FFN skipped
    never-built  upstream's llama.cpp whose graph leaves the same FFNs out (benchmarks/never-built.patch)
    gated        pyskip, a profile whose gates never skip
    stand-in     pyskip, a profile whose stand-ins serve for a quarter of the blocks, drawn at random by token and layer

Each arm is a process of its own that keeps its model loaded; they take turns, in shuffled order, one at a time. The
ratios are medians of the rounds' own ratios, which a machine that drifts does not move much.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import cpu_name

ROOT = Path(__file__).resolve().parent.parent
N_LAYER = {"llama-1.1b": 22, "demo": 30}
ARMED = "cosine:threshold=2,run=1,cold_start=0,cold_end=0,warmup=0"
ARMS = {
    "unpatched": ("reference", "off"),
    "off": ("pyskip", "off"),
    "armed": ("pyskip", ARMED),
    "static": ("pyskip", "static:{layers}"),
    "never-built": ("never-built", "off"),
    "gated": ("pyskip", "profile:error=0"),
    "stand-in": ("pyskip", "random:rate=0.25,warmup=0,stand_in=1"),
}
RATIOS = {
    "off / unpatched": ("off", "unpatched"),
    "armed / unpatched": ("armed", "unpatched"),
    "static / never-built": ("static", "never-built"),
    "static / unpatched": ("static", "unpatched"),
    "gated / off": ("gated", "off"),
    "stand-in / off": ("stand-in", "off"),
}


def work(build: str, model: str, skip: str, threads: int, n: int) -> None:
    """A worker: for every line on stdin, decode n tokens and print the rate in tokens/s and the skip rate."""
    kwargs = {"n_ctx": 512, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    if build == "pyskip":
        import pyskip

        llm = pyskip.Llama(model, skip=skip, **kwargs)
        llm.mark_generated(0)
    else:
        import llama_cpp

        llm = llama_cpp.Llama(model, **kwargs)
        if hasattr(llama_cpp.llama_cpp._lib, "pyskip_build"):
            sys.exit("the unpatched arm loaded pyskip's library")
    print("ready", flush=True)
    for _ in sys.stdin:
        llm.n_tokens = 0
        if build == "pyskip":
            llm.reset_skip_stats()
        llm.eval(range(300, 316))
        llm.eval([400])  # wakes the threads
        start = time.perf_counter()
        for token in range(500, 500 + n):
            llm.eval([token])
        rate = n / (time.perf_counter() - start)
        print(rate, llm.skip_stats().rate if build == "pyskip" else 0.0, flush=True)


class Worker:
    def __init__(self, arm: str, model: Path, threads: int, n: int) -> None:
        layers = ",".join(str(il) for il in range(1, N_LAYER[model.stem], 2))
        build, skip = ARMS[arm][0], ARMS[arm][1].format(layers=layers)
        env = dict(os.environ, PYSKIP_NEVER_BUILT=layers if build == "never-built" else "")
        if build != "pyskip":
            env["LLAMA_CPP_LIB_PATH"] = str(ROOT / "build" / build / "lib")
        command = [sys.executable, __file__, "--worker", build, str(model), skip, str(threads), str(n)]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        if not line:
            raise SystemExit(f"skip_cost: a worker died ({self.process.args!r}): run it by hand to see why")
        return line

    def rate(self) -> float:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        rate, self.skip_rate = map(float, self.answer().split())
        return rate

    def close(self) -> None:
        self.process.communicate("")


def measure(model: Path, rounds: int, threads: int, n: int) -> tuple[dict[str, list[float]], float]:
    """(rates by arm, one a round; skip rate of the stand-in arm). Ctrl-C ends with the rounds that are whole."""
    workers = {arm: Worker(arm, model, threads, n) for arm in ARMS}
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    start = time.perf_counter()
    try:
        for i in range(rounds):
            turn = {}
            for arm in random.Random(i).sample(list(ARMS), len(ARMS)):
                time.sleep(0.05)  # the last arm's threads go to sleep
                turn[arm] = workers[arm].rate()
            for arm, rate in turn.items():
                rates[arm].append(rate)
            left = (time.perf_counter() - start) / (i + 1) * (rounds - i - 1)
            print(f"\rround {i + 1}/{rounds}, {left:.0f} s left ", end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        print(file=sys.stderr)
        for worker in workers.values():
            worker.close()
    return rates, workers["stand-in"].skip_rate


def ideal_speedup(model: Path, rate: float) -> float:
    """Of the stand-in arm: bytes read dense / bytes read, every layer being as large."""
    import pyskip
    from pyskip.profile import Profile, path_beside

    info, profile = pyskip.inspect(model), Profile(path_beside(model))
    saved = rate * (info.read_ffn_bytes - sum(profile.stand_in_bytes)) - sum(profile.gate_bytes)
    return info.read_bytes / (info.read_bytes - saved)


def report(model: Path, rates: dict[str, list[float]], rate: float, args: argparse.Namespace) -> dict[str, Any]:
    ratios = {}
    for name, (a, b) in RATIOS.items():
        values = [x / y for x, y in zip(rates[a], rates[b], strict=True)]
        ratios[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    ideal = ideal_speedup(model, rate)
    return {
        "model": args.model,
        "cpu": cpu_name(),
        "date": datetime.date.today().isoformat(),
        "n_threads": args.threads,
        "n_gen": args.n,
        "rounds": len(rates["off"]),
        "samples_ts": rates,
        "ratios": ratios,
        "stand_in": {
            "skip_rate": rate,
            "ideal_speedup": ideal,
            "efficiency": ratios["stand-in / off"]["median"] / ideal,
        },
    }


def show(result: dict[str, Any]) -> None:
    rates, ratios = result["samples_ts"], result["ratios"]
    rounds = f"{result['rounds']} rounds of {result['n_gen']} tokens"
    print(f"{result['model']}, {result['cpu']}, {result['n_threads']} threads, {rounds}, {result['date']}\n")
    print("| arm | tokens/s, median | min | max |\n|---|---|---|---|")
    for arm, values in rates.items():
        print(f"| {arm} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    print("\n| ratio of rates, by round | median | min | max |\n|---|---|---|---|")
    for name, value in ratios.items():
        print(f"| {name} | {value['median']:.3f} | {value['min']:.3f} | {value['max']:.3f} |")
    own = result["stand_in"]
    print(
        f"\nstand-in: {own['skip_rate']:.3f} of the blocks skipped; bytes allow {own['ideal_speedup']:.3f} x, "
        f"efficiency {own['efficiency']:.3f}"
    )


def prepare(name: str) -> Path:
    """The model and a random profile beside it, made where they are missing."""
    model = ROOT / "build" / "models" / f"{name}.gguf"
    model.parent.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        print("making the model", file=sys.stderr)
        if name == "demo":
            from pyskip.models import resolve

            model.symlink_to(resolve("demo"))
        else:
            maker = [sys.executable, str(ROOT / "models" / "make_random.py"), "--shape", name, "-o", str(model)]
            subprocess.run(maker, check=True)
    profile = model.with_name(f"{name}.skip.gguf")
    maker = [sys.executable, str(ROOT / "models" / "make_profile.py"), str(model), "-o", str(profile)]
    subprocess.run(maker, check=True)
    return model


def main() -> int:
    if len(sys.argv) == 7 and sys.argv[1] == "--worker":
        build, model, skip, threads, n = sys.argv[2:]
        work(build, model, skip, int(threads), int(n))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(N_LAYER), default="llama-1.1b")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("-n", type=int, default=32, help="tokens a round an arm")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model = prepare(args.model)
    rates, rate = measure(model, args.rounds, args.threads, args.n)
    if not rates["off"]:
        print("skip_cost: interrupted before the first round was whole", file=sys.stderr)
        return 130
    result = report(model, rates, rate, args)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
