"""Faults that take minutes to provoke: interrupts at random moments, too little memory, thousands of requests, and
clients by the hundred.

    python tests/faults/run.py [--only NAME ...] [--interrupts N] [--requests N] [--clients N] [--seed S] [--page FILE]

(`make faults` sets it up.) Prints a table; --page also puts its rows into FILE, docs/reference/faults.md. Exit 1 if
something did not hold. Those that take seconds are tests: tests/test_faults.py.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

import pyskip
from pyskip.system import cpu_name

sys.path.extend(str(Path(__file__).resolve().parents[2] / name) for name in ("tests/support", "tools/models"))
import make_profile
import make_random
from flood import flood
from siege import besiege
from table_page import keep_rows

PYSKIP = [sys.executable, "-m", "pyskip"]
FILES = ["m.gguf", "m.skip.gguf", "text"]  # and no half ones
POLICIES = ("off", "cosine:threshold=-1,cold_start=1,cold_end=1,warmup=0", "static:2", "profile:rate=0.5,warmup=0")


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    done: str
    came_of_it: str
    wrong: tuple[str, ...] = ()


def progress(line: str) -> None:
    live = sys.stderr.isatty()
    print(f"\r\x1b[2K{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)


class Bench:
    """A tiny model with its profile, and a text, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.text = folder, folder / "m.gguf", folder / "text"
        make_random.make(self.model, make_random.SHAPES["tiny"])
        self.profile = folder / "m.skip.gguf"
        make_profile.make_profile(self.model, self.profile)
        self.text.write_text("".join(f"w{i % 30} " for i in range(20_000)))

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def command(self, name: str) -> list[str]:
        return {
            "generate": ["generate", str(self.model), "-p", "w1 w2", "-n", "100000", "-c", "100000", "-t", "1"],
            "chat": ["chat", str(self.model), "-n", "100000", "-c", "100000", "-t", "1", "--temp", "0"],
            "eval": ["eval", str(self.model), "--text", str(self.text), "--skip", "0.4", "-c", "64", "-t", "1"],
            "calibrate": ["calibrate", str(self.model), "--text", str(self.text), "--fit", "60", "-t", "1"],
        }[name]


def wrong_lines(said: str) -> list[str]:
    """What is on stderr and is no line of ours."""
    return [line for line in said.splitlines() if line and not line.startswith("pyskip: ")]


# SIGINT


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it


def interrupts(bench: Bench, args: argparse.Namespace) -> Row:
    """SIGINT at a random moment of the first 1.5 s: exit 130, no traceback, no half file."""
    rng, ends, wrong = Random(args.seed), Counter[str](), []
    before = bench.profile.read_bytes()
    for i in range(args.interrupts):
        name, delay = ("generate", "chat", "eval", "calibrate")[i % 4], rng.uniform(0.0, 1.5)
        process = subprocess.Popen(
            [*PYSKIP, *bench.command(name)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            preexec_fn=_hear_interrupts,
        )  # fmt: skip
        assert process.stdin
        process.stdin.write("w1 w2 w3\n")
        process.stdin.flush()
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        if process.returncode in (1, -signal.SIGINT) and "/pyskip/" not in said:  # 1: in its site module
            ends["Python itself was still starting"] += 1
            continue
        ends[f"exit {process.returncode}"] += 1
        if process.returncode != 130 or wrong_lines(said) or bench.files() != FILES:
            wrong.append(f"{name} after {delay:.3f} s: exit {process.returncode}, {bench.files()}, {said[-300:]!r}")
        progress(f"interrupts: {i + 1}/{args.interrupts}, {len(wrong)} wrong")
    if bench.profile.read_bytes() != before:
        wrong.append("the profile is another one")
    came = ", ".join(f"{end}: {n}" for end, n in sorted(ends.items()))
    return Row(
        "SIGINT at random moments", f"{args.interrupts} times in chat, generate, eval, calibrate", came, tuple(wrong)
    )


# Memory

NOT_OURS = ("OpenBLAS", "thread-local data")  # what numpy's OpenBLAS and the C library say, and end the process


def memory(bench: Bench, args: argparse.Namespace) -> Row:
    """RLIMIT_AS from what Python and numpy need upwards: it works, or it is exit 1 and a line."""
    ends, wrong = Counter[str](), []
    commands = {name: bench.command(name) for name in ("generate", "eval", "calibrate")}
    commands["generate"][5] = "20"
    commands["eval"] += ["--chunks", "20"]
    commands["info"] = ["info", str(bench.model)]
    commands["generate demo"] = ["generate", "demo", "-p", "Once", "-n", "8"]
    limits = [int(140 * 1.2**i) for i in range(16)]  # MiB
    for n, limit in enumerate(limits, 1):
        for name, command in commands.items():
            try:
                done = subprocess.run(
                    [*PYSKIP, *command],
                    stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
                    preexec_fn=partial(resource.setrlimit, resource.RLIMIT_AS, (limit << 20, limit << 20)),
                )  # fmt: skip
            except subprocess.TimeoutExpired as late:
                wrong.append(f"{name} in {limit} MiB: no end within {late.timeout:.0f} s")
                continue
            if any(name in done.stderr for name in NOT_OURS):
                ends["OpenBLAS or the C library gives up"] += 1
                continue
            ends["it works" if done.returncode == 0 else f"exit {done.returncode}"] += 1
            if done.returncode not in (0, 1) or wrong_lines(done.stderr) or bench.files() != FILES:
                wrong.append(f"{name} in {limit} MiB: exit {done.returncode}, {done.stderr[-400:]!r}")
        progress(f"memory: {n}/{len(limits)}, {len(wrong)} wrong")
    came = ", ".join(f"{name}: {n}" for name, n in ends.items())
    return Row(
        "too little memory (RLIMIT_AS)", f"{', '.join(commands)} in {limits[0]} to {limits[-1]} MiB", came, tuple(wrong)
    )


# Load


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def requests(bench: Bench, args: argparse.Namespace) -> Row:
    """Short requests to one model, under four policies in turn: the same answers throughout, and flat memory."""
    llm = pyskip.Llama(bench.model, n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
    first: dict[tuple[int, int], str] = {}
    wrong, at, rss = [], [], []
    for i in range(args.requests):
        policy, prompt = i % 4, i // 4 % 5
        llm.skip = POLICIES[policy]
        done = llm.create_completion(f"w{prompt} w{prompt + 7} w3", max_tokens=4, temperature=0)
        text = done["choices"][0]["text"]
        if first.setdefault((policy, prompt), text) != text:
            wrong.append(f"request {i}: {text!r}, before {first[policy, prompt]!r}")
        if i % 50 == 49:
            at.append(i)
            rss.append(_rss())
        if i % 1000 == 999:
            progress(f"requests: {i + 1}/{args.requests}, {rss[-1] >> 20} MiB")
    warm = len(at) // 5
    slope = float(np.polyfit(at[warm:], rss[warm:], 1)[0])
    if slope >= 1024:
        wrong.append(f"memory grows by {slope:.0f} bytes a request")
    llm.close()
    came = (
        f"{slope:.0f} bytes of memory a request after the first fifth; {len(first)} answers, each the same throughout"
    )
    return Row("short requests", f"{args.requests:,}, four policies in turn", came, tuple(wrong))


# A server


def server(bench: Bench, args: argparse.Namespace) -> Row:
    """Clients by the hundred, most of them rude."""
    done, came, wrong = besiege(bench.model, POLICIES, args.clients, args.seed)
    return Row("a server and its clients", done, came, wrong)


def served(bench: Bench, args: argparse.Namespace) -> Row:
    """Short requests to a server."""
    done, came, wrong = flood(bench.model, POLICIES, args.requests, progress)
    return Row("short requests to a server", done, came, wrong)


FAULTS: dict[str, Callable[[Bench, argparse.Namespace], Row]] = {
    "interrupts": interrupts,
    "memory": memory,
    "requests": requests,
    "server": server,
    "served": served,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FAULTS, nargs="+", default=list(FAULTS))
    parser.add_argument("--interrupts", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = []
    for name in args.only:
        with tempfile.TemporaryDirectory(prefix="pyskip-faults-") as folder:
            rows.append(FAULTS[name](Bench(Path(folder)), args))
    progress("")
    print("| fault | how often | what came of it |\n|---|---|---|")
    for row in rows:
        print(f"| {row.fault} | {row.done} | {row.came_of_it} |")
    if args.page:
        on = f"{date.today()}, {cpu_name()}, {len(os.sched_getaffinity(0))} cores, seed {args.seed}"
        keep_rows(args.page, {row.fault: (row.done, row.came_of_it, on) for row in rows})
    for row in rows:
        for wrong in row.wrong:
            print(f"{row.fault}: {wrong}", file=sys.stderr)
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
