"""A model of twice the memory: bytes read from the file for a token, and tokens/s, dense and skipping.

    python benchmarks/low_memory.py [--model FILE] [--rounds 2] [-n 8] [--timeout 120] [-o FILE.json]

Linux. Each arm is a process of its own with a memory limit of half of the model's file: cgroup v1 by a child of the
group that this process is in (needs the right to make one), v2 by systemd-run. Without --model, on a seeded random
model of the 1.1 B LLaMA shape. The file's pages are dropped from memory before each arm; untimed tokens come first.
What was read is what the kernel counts for the process (read_bytes of /proc/self/io). An arm that the kernel kills, or
that is not done in --timeout seconds since it reads the same pages again and again, says so and is not tried again.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyskip
from pyskip.system import cpu_name, physical_cores

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
N_WARM = 2
GROUPS = Path("/sys/fs/cgroup/memory")  # v1


def every(step: int, n_layer: int) -> str:
    return "static:" + ",".join(str(il) for il in range(1, n_layer, step))


def arms(n_layer: int) -> dict[str, tuple[str, str]]:
    """Name: (skip, how the file is mapped). llama: as llama.cpp does it; unpacked: so, but with the weights in the
    mapping; low-memory: as low_memory=True does it."""
    dense = "cosine:threshold=2,run=1,cold_start=0,cold_end=0,warmup=0"  # every block is conditional, none is skipped
    return {
        "off, llama.cpp's own": ("off", "llama"),
        "off, unpacked": ("off", "unpacked"),
        "every 2nd block skipped, unpacked": (every(2, n_layer), "unpacked"),
        "dense, low memory": (dense, "low-memory"),
        "every 4th block skipped, low memory": (every(4, n_layer), "low-memory"),
        "every 2nd block skipped, low memory": (every(2, n_layer), "low-memory"),
        "25 % at random, low memory": ("random:rate=0.25,warmup=0", "low-memory"),
        "50 % at random, low memory": ("random:rate=0.5,warmup=0", "low-memory"),
    }


@contextlib.contextmanager
def group(limit: int) -> Iterator[list[str]]:
    """What to put before a command so that it runs with so much memory."""
    own = re.search(r"^\d+:memory:(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    if own is None or not GROUPS.exists():
        user = [] if os.geteuid() == 0 else ["--user"]
        yield ["systemd-run", "--quiet", *user, "--scope", "-p", f"MemoryMax={limit}", "-p", "MemorySwapMax=0"]
        return
    folder = GROUPS / own[1].lstrip("/") / f"pyskip-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text(str(limit))
        yield ["sh", "-c", f'echo $$ >{folder}/cgroup.procs && exec "$@"', "sh"]
    finally:
        folder.rmdir()


def read_bytes() -> int:
    found = re.search(r"^read_bytes: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def evict(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def work(model: Path, skip: str, mapping: str, n: int) -> None:
    """One arm, in its own process: a JSON document on stdout."""
    evict(model)
    start = time.perf_counter()
    llm = pyskip.Llama(model, low_memory=mapping != "llama", n_ctx=128, verbose=False)
    if mapping == "unpacked":
        llm.engine.skip.set_streaming(False)
    llm.skip = skip
    load = (time.perf_counter() - start, read_bytes())
    llm.mark_generated(0)
    for token in range(300, 300 + N_WARM):
        llm.eval([token])
    before, start = read_bytes(), time.perf_counter()
    for token in range(400, 400 + n):
        llm.eval([token])
    seconds = time.perf_counter() - start
    read = (read_bytes() - before) / n
    skipped = 0.0 if skip == "off" else llm.skip_stats().rate
    print(json.dumps({"load_s": load[0], "load_read": load[1], "read": read, "tps": n / seconds, "skipped": skipped}))


def run(model: Path, skip: str, mapping: str, n: int, limit: int, timeout: float) -> dict[str, Any] | str:
    """What the arm measured, or why there is nothing: it wants more memory than there is."""
    command = [sys.executable, __file__, "--model", str(model), "-n", str(n), "--arm", skip, mapping]
    with group(limit) as before:
        try:
            done = subprocess.run([*before, *command], stdout=subprocess.PIPE, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"stopped: not done in {timeout:g} s"
        finally:
            time.sleep(0.2)  # until the kernel has seen the group empty
    if done.returncode in (-9, 137):
        return "killed: out of memory"
    if done.returncode:
        sys.exit(f"low_memory: the arm {skip} ended with status {done.returncode}, expected 0: see above")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def summary(name: str, samples: list[dict[str, Any]], end: str | None) -> dict[str, Any]:
    medians = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]} if samples else {}
    return {"arm": name, "end": end, **medians, "samples": samples}


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['model']}, {result['model_bytes'] / MIB:.0f} MiB, limit {result['limit'] / MIB:.0f} MiB; "
        f"{result['cpu']}, {result['n_threads']} threads; {result['rounds']} rounds of {result['n']} tokens; "
        f"{result['date']}\n\n| arm | skipped | read, MiB/token | tokens/s |\n|---|---|---|---|"
    )
    for row in result["rows"]:
        if row["end"]:
            print(f"| {row['arm']} | | {row['end']} | |")
        else:
            print(f"| {row['arm']} | {row['skipped']:.3f} | {row['read'] / MIB:.0f} | {row['tps']:.2f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "build" / "models" / "llama-1.1b.gguf")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("-n", type=int, default=8, help="tokens that are timed")
    parser.add_argument("--timeout", type=float, default=120, help="seconds an arm")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--arm", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        work(args.model, *args.arm, args.n)
        return 0
    if not args.model.exists():
        args.model.parent.mkdir(parents=True, exist_ok=True)
        maker = [sys.executable, str(ROOT / "tools" / "models" / "make_random.py"), "--shape", "llama-1.1b"]
        subprocess.run([*maker, "-o", str(args.model)], check=True)
    info = pyskip.inspect(args.model)
    limit = args.model.stat().st_size // 2
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in arms(info.n_layer)}
    ends: dict[str, str] = {}
    for i in range(args.rounds):
        for name, (skip, mapping) in arms(info.n_layer).items():
            if name in ends:
                continue
            sample = run(args.model, skip, mapping, args.n, limit, args.timeout)
            if isinstance(sample, str):
                ends[name] = told = sample
            else:
                samples[name].append(sample)
                told = f"{sample['read'] / MIB:.0f} MiB/token, {sample['tps']:.2f} tokens/s"
            print(f"{i + 1}/{args.rounds} {name}: {told}", file=sys.stderr, flush=True)
    result = {
        "model": args.model.name, "model_bytes": args.model.stat().st_size, "limit": limit, "cpu": cpu_name(),
        "n_threads": physical_cores(), "rounds": args.rounds, "n": args.n, "date": datetime.date.today().isoformat(),
        "rows": [summary(name, found, ends.get(name)) for name, found in samples.items()],
    }  # fmt: skip
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
