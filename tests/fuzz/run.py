"""Fuzzing, seeded: the i-th input of a target is the same on every machine and in every run.

    python tests/fuzz/run.py [--target NAME ...] [--runs N] [--from I] [--seed S] [--workers N]

(`make fuzz` sets it up.) Every find is kept in build/fuzz/finds: the input's files and what was wrong. `--runs 1
--from I` runs one input again. Exit 1 if there are finds.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from threading import Event

from calls import Calls
from targets import LIMIT_S, Input, Target, Wrong, limit_cpu, limit_memory
from targets import TARGETS as TARGETS_OF_FILES

TARGETS: dict[str, type[Target]] = {**TARGETS_OF_FILES, "calls": Calls}
FINDS = Path(__file__).resolve().parent.parent.parent / "build" / "fuzz" / "finds"
HANG_S = 300.0  # without an input done: a worker that waits for something that never comes
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # memory: an input's files are written and read once
FORK = multiprocessing.get_context("fork")


def make(target: Target, name: str, seed: int, i: int) -> Input:
    return target.make(Random(f"{name} {seed} {i}"))


class Worker:
    """A process that runs every n-th input, restarted behind an input that ends it."""

    def __init__(self, target: Target, name: str, seed: int, indices: range) -> None:
        self.target, self.name, self.seed, self.indices = target, name, seed, indices
        self.shared = mmap.mmap(-1, 16)  # how many inputs it has begun, and how many of them were accepted
        self.shared[:] = bytes(16)
        self.finds: list[tuple[int, str]] = []
        self.folder = Path(tempfile.mkdtemp(prefix="pyskip-fuzz-", dir=SCRATCH))
        self.start(0)

    def start(self, done: int) -> None:
        self.seen, self.since = done, time.monotonic()
        self.conn, theirs = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self._body, args=(done, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def _body(self, done: int, conn: Connection) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
        os.environ["GGML_NO_BACKTRACE"] = "1"  # which would start a debugger
        self.target.prepare(self.folder)
        limit_memory()
        n_accepted = self.accepted
        for n in range(done, len(self.indices)):
            self.shared[:] = struct.pack("qq", n, n_accepted)
            limit_cpu(LIMIT_S)
            try:
                n_accepted += self.target.run(make(self.target, self.name, self.seed, self.indices[n]))
            except Wrong as wrong:
                conn.send((self.indices[n], str(wrong)))
        self.shared[:] = struct.pack("qq", len(self.indices), n_accepted)

    @property
    def begun(self) -> int:
        return int(struct.unpack("qq", self.shared[:])[0])

    @property
    def accepted(self) -> int:
        return int(struct.unpack("qq", self.shared[:])[1])

    def look(self) -> bool:
        """Takes in what came. Whether there is more to come."""
        is_alive = self.process.is_alive()  # before: what it sent last is taken in too
        while self.conn.poll():
            try:
                self.finds.append(self.conn.recv())
            except EOFError:
                break
        if self.begun != self.seen:
            self.seen, self.since = self.begun, time.monotonic()
        if is_alive:
            if time.monotonic() - self.since > HANG_S:
                self.process.kill()
            return True
        if self.begun >= len(self.indices):
            return False
        code = self.process.exitcode or 0
        if code >= 0:
            raise RuntimeError(f"the fuzzer itself failed at input {self.indices[self.begun]}, see above")
        ended = f"ended by {signal.Signals(-code).name}"
        self.finds.append((self.indices[self.begun], f"{ended}: {self._last_words()!r}"))
        self.start(self.begun + 1)
        return True

    def _last_words(self) -> str:
        said = self.folder / "err"
        return said.read_text("utf-8", "replace")[-600:] if said.exists() else ""

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def signature(wrong: str) -> str:
    """Finds that differ only in numbers and quoted bytes count as one."""
    return re.sub(r"\d+" if wrong.startswith("ended by") else r"\d+|'[^']*'", "_", wrong)[:300]


class Finds:
    """Kept on disk and counted by kind."""

    def __init__(self, target: Target, name: str, seed: int) -> None:
        self.target, self.name, self.seed = target, name, seed
        self.kinds: Counter[str] = Counter()

    def add(self, i: int, wrong: str) -> None:
        kind = signature(wrong)
        self.kinds[kind] += 1
        if self.kinds[kind] > 3:
            return
        clear = "\r\x1b[2K" if sys.stderr.isatty() else ""
        print(f"{clear}{self.name} {self.seed} {i}: {wrong}", file=sys.stderr)
        folder = FINDS / f"{self.name}-{self.seed}-{i}"
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in make(self.target, self.name, self.seed, i).items():
            (folder / file).write_bytes(content)
        (folder / "wrong").write_text(wrong, "utf-8", "replace")


@dataclass(frozen=True)
class Result:
    """Of one target."""

    inputs: int  # that were run
    accepted: int  # without an error
    seed: int
    seconds: float
    finds: dict[str, int]  # kind -> how many


def fuzz(name: str, indices: range, seed: int, n_workers: int, stop: Event) -> Result:
    with tempfile.TemporaryDirectory(prefix="pyskip-fuzz-") as folder:
        target = TARGETS[name](Path(folder))
    finds = Finds(target, name, seed)
    workers = [Worker(target, name, seed, indices[w::n_workers]) for w in range(min(n_workers, len(indices)))]
    start = last = time.monotonic()
    try:
        running = True
        while running and not stop.is_set():
            time.sleep(0.1)
            running = False
            for worker in workers:
                running |= worker.look()
                for find in worker.finds:
                    finds.add(*find)
                worker.finds.clear()
            now = time.monotonic()
            if sys.stderr.isatty() or not running or now - last > 10:
                last = now
                _show(name, sum(w.begun for w in workers), len(indices), finds, now - start)
    finally:
        for worker in workers:
            worker.close()
    n_run, n_accepted = sum(worker.begun for worker in workers), sum(worker.accepted for worker in workers)
    return Result(n_run, n_accepted, seed, round(time.monotonic() - start, 1), dict(finds.kinds))


def _show(name: str, done: int, total: int, finds: Finds, seconds: float) -> None:
    rate = done / seconds
    left = round((total - done) / rate) if rate else 0
    line = f"{name}: {done:,}/{total:,} inputs, {rate:,.0f}/s, {finds.kinds.total()} finds"
    line += f", {left // 60}:{left % 60:02} left" if done < total else ""
    live = sys.stderr.isatty() and done < total
    print(f"\r\x1b[2K{line}" if sys.stderr.isatty() else line, end="" if live else "\n", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=TARGETS, action="append", help="default: all")
    parser.add_argument("--runs", type=int, default=200_000, help="inputs a target")
    parser.add_argument("--from", dest="first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    stop = Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())  # what was run until then is told
    results: dict[str, Result] = {}
    for name in args.target or TARGETS:
        if not stop.is_set():
            results[name] = fuzz(name, range(args.first, args.first + args.runs), args.seed, args.workers, stop)
    print(json.dumps({name: asdict(result) for name, result in results.items()}))
    return 130 if stop.is_set() else 1 if any(result.finds for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
