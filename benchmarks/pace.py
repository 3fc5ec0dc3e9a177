"""A pace that is kept while other processes spin on the same cores: tokens/s and operating point against time.

    python benchmarks/pace.py [--model demo] [--share 0.95] [--max-skip 0.44] [--hogs 1] [--duty 0.15] [--nice 0] [-t N]
                              [-o FOLDER]

First decodes dense for a while: the target is `--share` of that rate. Then three phases: alone, beside hogs, alone.
Hogs are processes that spin for a share of their time, 20 times a second. Answers of 200 tokens from a short prompt,
one after another, with a sampling seed, so that the context stays short. Writes pace.json and pace.svg.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyskip
from pyskip.binding.library import BUILD
from pyskip.models import resolve
from pyskip.system import cpu_name, physical_cores

ROOT = Path(__file__).resolve().parent.parent
N_ANSWER = 200
WINDOW = 1.0  # seconds that a rate is taken over
NEAR = 0.9  # of the target
PERIOD = 0.05  # seconds, of a hog


@dataclass(frozen=True)
class Token:
    at: float  # seconds since the start, when it was there
    seconds: float  # that it took
    point: float  # operating point under which it was decoded
    skipped: float  # blocks skipped / all, of this token


def decode(llm: pyskip.Llama, prompt: str, is_over: Callable[[float], bool]) -> list[Token]:
    """Answers until is_over(seconds). The first token of an answer, which takes the prompt with it, does not count."""
    tokens: list[Token] = []
    point = 0.0
    start = time.perf_counter()
    while True:
        llm.set_seed(7)
        last = None
        for _, _ in zip(range(N_ANSWER), llm.generate(llm.tokenize(prompt.encode()), temp=0.8), strict=False):
            now = time.perf_counter()
            if last is not None:
                skipped = llm.skip_stats().rate
                tokens.append(Token(now - start, now - last, point, skipped))
            if is_over(now - start):
                return tokens
            point = llm.pace.rate if llm.pace is not None else 0.0
            llm.engine.skip.reset_counters()
            last = time.perf_counter()


def rate(tokens: list[Token]) -> float:
    return len(tokens) / sum(token.seconds for token in tokens) if tokens else 0.0


# argv: niceness, share of the time
SPIN = f"""
import os, sys, time
os.nice(int(sys.argv[1]))
busy = float(sys.argv[2]) * {PERIOD}
while True:
    end = time.perf_counter() + busy
    while time.perf_counter() < end:
        pass
    time.sleep({PERIOD} - busy)
"""


class Hogs:
    """Processes that spin for a share of their time from `begin` to `end`; call it as often as possible."""

    def __init__(self, n: int, niceness: int, duty: float, begin: float, end: float) -> None:
        self.n, self.begin, self.end = n, begin, end
        self.command = [sys.executable, "-c", SPIN, str(niceness), str(duty)]
        self.running: list[subprocess.Popen[bytes]] = []
        self.came = self.went = 0.0

    def __call__(self, seconds: float) -> None:
        if self.begin <= seconds < self.end and not self.came:
            self.came = seconds
            self.running = [subprocess.Popen(self.command) for _ in range(self.n)]
        elif seconds >= self.end and not self.went:
            self.went = seconds
            self.stop()

    def stop(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()
        self.running = []


def measure(llm: pyskip.Llama, args: argparse.Namespace) -> dict[str, Any]:
    llm.skip = "profile:rate=0,warmup=0"  # gates that never skip: dense, and the same graph
    decode(llm, args.prompt, lambda seconds: seconds > 2)
    alone = rate(decode(llm, args.prompt, lambda seconds: seconds > args.phase))
    llm.keep_pace(args.share * alone, args.max_skip)
    assert llm.pace is not None
    hogs = Hogs(args.hogs, args.nice, args.duty, args.phase, 2.5 * args.phase)

    def is_over(seconds: float) -> bool:
        hogs(seconds)
        return seconds > 4 * args.phase

    try:
        tokens = decode(llm, args.prompt, is_over)
    finally:
        hogs.stop()
    stats = llm.pace.stats()
    return {
        "model": Path(resolve(args.model)).name, "cpu": cpu_name(), "build": BUILD, "n_threads": args.threads,
        "omp": {key: os.environ.get(key, "") for key in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")},
        "date": datetime.date.today().isoformat(), "command": " ".join(["benchmarks/pace.py", *sys.argv[1:]]),
        "hogs": args.hogs, "duty": args.duty, "nice": args.nice, "hog_from": hogs.came, "hog_to": hogs.went,
        "alone_tps": alone, "target_tps": stats.target_tps, "max_skip": stats.max_skip, "floor": stats.floor,
        **verdict(tokens, stats.target_tps, stats.floor, hogs.came, hogs.went),
        "series": series(tokens),
    }  # fmt: skip


def verdict(tokens: list[Token], target: float, floor: float, came: float, went: float) -> dict[str, float | None]:
    """When the rate was back, and the operating point; what the hogs cost before anything moved."""
    beside = [token for token in tokens if came <= token.at < went]
    still = [token for token in beside if token.point == floor]
    back = next((t.at - came for t in beside if _around(tokens, t.at) >= NEAR * target and t.at - came > WINDOW), None)
    floors = [t.at - went for t in tokens if t.at > went and t.point == floor]
    settled = [_around(tokens, t.at) for t in beside if t.at > came + 3]
    return {
        "shared_tps": rate(still),
        "settled_tps": rate([t for t in beside if t.at > came + 3]),
        "settled_point": statistics.mean(t.point for t in beside if t.at > came + 3),
        "settled_skipped": statistics.mean(t.skipped for t in beside if t.at > came + 3),
        "settled_held": sum(tps >= NEAR * target for tps in settled) / len(settled),
        "seconds_until_back": back,
        "seconds_until_floor": floors[0] if floors else None,
    }


def _around(tokens: list[Token], at: float) -> float:
    """The rate over the window that ends there."""
    return rate([token for token in tokens if at - WINDOW < token.at <= at])


def series(tokens: list[Token], step: float = 0.25) -> dict[str, list[float]]:
    """What the plot shows."""
    rows: dict[str, list[float]] = {"seconds": [], "tps": [], "point": [], "skipped": []}
    for k in range(1, int(tokens[-1].at / step)):
        window = [token for token in tokens if (k - 2) * step < token.at <= k * step]
        if window:
            rows["seconds"].append(k * step)
            rows["tps"].append(round(rate(window), 2))
            rows["point"].append(window[-1].point)
            rows["skipped"].append(round(statistics.mean(token.skipped for token in window), 4))
    return rows


def plot(result: dict[str, Any], path: Path) -> None:
    """Tokens/s above, operating point below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from results.plots import DASHES, DENSE, SETTINGS, STYLES

    data, blue, orange = result["series"], STYLES["profile"][0], STYLES["random"][0]
    target, most = result["target_tps"], max([result["max_skip"], *data["skipped"]])
    with matplotlib.rc_context(SETTINGS):
        figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5.8), sharex=True, layout="constrained")
        for axis in (above, below):
            axis.axvspan(
                result["hog_from"], result["hog_to"], color="#EDEDED", zorder=0, linewidth=0, label="a hog runs"
            )
        above.plot(data["seconds"], data["tps"], color=blue, label="tokens/s; operating point")
        above.axhline(target, color=DENSE, linestyle=DASHES, label="target; max-skip")
        above.axhspan(NEAR * target, target, color=DENSE, alpha=0.3, linewidth=0, label="10 % below the target")
        above.set(title="Rate", ylabel="tokens/s", ylim=(0, 1.12 * max(data["tps"])))
        below.plot(data["seconds"], data["skipped"], color=orange, linestyle=":", label="blocks skipped")
        below.step(data["seconds"], data["point"], color=blue, where="post")
        below.axhline(result["max_skip"], color=DENSE, linestyle=DASHES)
        below.set(title="Skip rate", xlabel="seconds", ylabel="skip rate", xlim=(0, data["seconds"][-1]))
        below.set_ylim(-0.015, 1.12 * most)
        entries = dict(zip(*reversed(above.get_legend_handles_labels()), strict=True))
        entries |= dict(zip(*reversed(below.get_legend_handles_labels()), strict=True))
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=3)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--share", type=float, default=0.95, help="target, of the rate alone")
    parser.add_argument("--max-skip", type=float, default=0.44)
    parser.add_argument("--hogs", type=int, default=1)
    parser.add_argument("--duty", type=float, default=0.15, help="share of its time that a hog spins")
    parser.add_argument("--nice", type=int, default=0, help="niceness of the hogs")
    parser.add_argument("--phase", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument("--prompt", default="The history of the city of Rome begins")
    parser.add_argument("-t", "--threads", type=int, default=physical_cores())
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    llm = pyskip.Llama(resolve(args.model), n_ctx=512, n_threads=args.threads, verbose=False)
    result = measure(llm, args)
    llm.close()
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "pace.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(result, args.output / "pace.svg")
    for key, value in result.items():
        if key != "series":
            print(f"{key}: {round(value, 3) if isinstance(value, float) else value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
