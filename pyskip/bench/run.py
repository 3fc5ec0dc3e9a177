"""How fast policies are beside dense and beside each other. Used by `pyskip bench` and by benchmarks/.

Each arm is a process of its own that keeps its model loaded (worker.py). In every round each arm takes its turn,
in shuffled order, one at a time, on the same tokens; ratios are taken within a round, so that a machine that drifts
moves them little.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import PyskipError
from ..models.gguf_info import GGUFInfo, inspect
from ..system import cpu_name, governor

__all__ = ["Arm", "BenchResult", "Row", "Test", "run_bench"]

N_CONTEXT = 16  # tokens that a test at depth 0 follows
N_PROMPT = 256  # tokens before those that are timed; deeper contexts repeat them
N_CHARS = 32  # of a text, which are enough for a token
# not as a file: the worker would look for modules in its folder first
_FILE = str(Path(__file__).with_name("worker.py"))
WORKER = ("-c", f"import runpy; runpy.run_path({_FILE!r}, run_name='__main__')")


@dataclass(frozen=True)
class Arm:
    """skip: a specification, or None for llama-cpp-python without pyskip. kernels: as for pyskip.Llama.
    env: added to the worker's environment."""

    name: str
    skip: str | None
    python: str = sys.executable
    env: Mapping[str, str] = field(default_factory=dict)
    kernels: str = "fast"


@dataclass(frozen=True)
class Test:
    """kind: pp (prompt processing, one batch) or tg (text generation, token by token) of n tokens at a depth."""

    kind: str
    n: int
    depth: int = 0

    def __str__(self) -> str:
        """As llama-bench spells it."""
        return f"{self.kind}{self.n}" + (f" @ d{self.depth}" if self.depth else "")


@dataclass(frozen=True)
class Row:
    """An arm in a test. Ratios are medians over the rounds, to the first arm."""

    arm: str
    skip: str | None
    test: str
    samples_ts: tuple[float, ...]  # tokens/s, one a round
    avg_ts: float  # their median
    spread_ts: float  # half the distance between their quartiles
    speedup: float
    ideal_speedup: float | None  # what the bytes of FFNs that are not read allow; None for pp, not bound by them
    efficiency: float | None  # speedup / ideal_speedup
    skip_rate: float
    attention_skip_rate: float
    tokens_per_joule: float | None  # of the processor packages; None if they do not tell
    peak_rss: int  # bytes, of the arm's process


@dataclass(frozen=True)
class BenchResult:
    model: str
    model_bytes: int
    cpu: str
    governor: str
    n_threads: int
    builds: dict[str, str]  # by arm
    date: str
    rounds: int
    rows: tuple[Row, ...]


class _Worker:
    def __init__(self, arm: Arm, setup: Mapping[str, Any]) -> None:
        self.arm, self.peak_rss = arm, 0
        try:
            self.process = subprocess.Popen(
                [arm.python, *WORKER],
                env={**os.environ, **arm.env},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for us
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # the same on Windows
            )
        except OSError as error:
            raise PyskipError(f"{arm.python}: cannot be run ({error.strerror}), expected a Python") from error
        self.build = str(self.ask({**setup, "skip": arm.skip, "kernels": arm.kernels})["build"])

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin
        assert stdout
        try:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
            line = stdout.readline()
        except OSError:  # a broken pipe, which Windows calls an invalid argument
            line = ""
        if not line:
            raise PyskipError(f"arm {self.arm.name}: {self.arm.python} died with status {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PyskipError(f"arm {self.arm.name}: {answer['error']}")
        self.peak_rss = int(answer.get("peak_rss", 0))
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def run_bench(
    model: str | os.PathLike[str],
    arms: Sequence[Arm],
    tests: Sequence[Test],
    *,
    rounds: int = 10,
    n_threads: int = 1,
    profile: str | os.PathLike[str] | None = None,
    text: str | None = None,
    seed: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> BenchResult:
    """Measure every arm in every test. The first arm, one of pyskip's, is what the others are compared with.

    text: what is decoded, so that policies skip as they do on it; without one what the model samples at temperature 1.

    Ctrl-C ends with the rounds that are whole. Raises PyskipError if an arm cannot be started or the text is too
    short, and KeyboardInterrupt before the first round is whole.
    """
    n_max = max(test.n for test in tests)
    n_ctx = max(N_PROMPT, *(test.depth for test in tests)) + n_max + 8
    setup = {
        "model": os.fspath(model), "n_ctx": n_ctx, "n_threads": n_threads,
        "profile": None if profile is None else os.fspath(profile),
    }  # fmt: skip
    workers: list[_Worker] = []
    taken: dict[tuple[int, Test], list[dict[str, Any]]] = {(a, t): [] for a in range(len(arms)) for t in tests}
    try:
        for arm in arms:
            workers.append(_Worker(arm, setup))
        tokens = _tokens(workers[0], N_PROMPT + n_max, text, seed)

        def measure(a: int, test: Test) -> dict[str, Any]:
            depth = test.depth or N_CONTEXT
            context = [tokens[i % N_PROMPT] for i in range(-depth, 0)]
            timed = tokens[N_PROMPT : N_PROMPT + test.n]
            return workers[a].ask({"do": "run", "context": context, "tokens": timed, "batch": test.kind == "pp"})

        done, total = 0, (rounds + 1) * len(arms) * len(tests)
        for i in range(-1, rounds):  # the first one warms up
            turn = {}
            for test in tests:
                for a in random.Random(f"{seed} {i} {test}").sample(range(len(arms)), len(arms)):
                    time.sleep(0.05)  # the last arm's threads go to sleep
                    turn[a, test] = measure(a, test)
                    done += 1
                    if progress is not None:
                        progress(done, total)
            if i >= 0:
                for key, sample in turn.items():
                    taken[key].append(sample)
    except KeyboardInterrupt:
        if not all(taken.values()):
            raise
    finally:
        for worker in workers:
            worker.close()
    info = inspect(model)
    rows = [
        _row(arms[a], test, taken[a, test], taken[0, test], workers[a].peak_rss, info)
        for test in tests
        for a in range(len(arms))
    ]
    return BenchResult(
        model=info.name or Path(model).name,
        model_bytes=info.bytes,
        cpu=cpu_name(),
        governor=governor(),
        n_threads=n_threads,
        builds={worker.arm.name: worker.build for worker in workers},
        date=datetime.date.today().isoformat(),
        rounds=min(map(len, taken.values())),
        rows=tuple(rows),
    )


def _tokens(worker: _Worker, n: int, text: str | None, seed: int) -> list[int]:
    """The first n tokens of the text, or of what the model writes."""
    if text is None:
        return list(worker.ask({"do": "sample", "n": n, "seed": seed})["tokens"])
    tokens = worker.ask({"do": "tokenize", "text": text[: N_CHARS * n]})["tokens"]
    if len(tokens) < n:
        raise PyskipError(f"the text has {len(tokens)} tokens, expected at least {n}: take a longer text or lower -n")
    return list(tokens[:n])


def _row(
    arm: Arm,
    test: Test,
    taken: Sequence[Mapping[str, Any]],
    first: Sequence[Mapping[str, Any]],
    peak_rss: int,
    info: GGUFInfo,
) -> Row:
    samples = tuple(test.n / s["seconds"] for s in taken)
    speedup = statistics.median(f["seconds"] / s["seconds"] for s, f in zip(taken, first, strict=True))
    ideal = info.ideal_speedup(statistics.mean(s["ffn_bytes_saved"] for s in taken)) if test.kind == "tg" else None
    energy = [s["joules"] for s in taken if s["joules"]]
    low, _, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else (samples[0],) * 3
    return Row(
        arm=arm.name,
        skip=arm.skip,
        test=str(test),
        samples_ts=samples,
        avg_ts=statistics.median(samples),
        spread_ts=(high - low) / 2,
        speedup=speedup,
        ideal_speedup=ideal,
        efficiency=None if ideal is None else speedup / ideal,
        skip_rate=statistics.mean(s["skip_rate"] for s in taken),
        attention_skip_rate=statistics.mean(s["attention_skip_rate"] for s in taken),
        tokens_per_joule=test.n / statistics.median(energy) if energy else None,
        peak_rss=peak_rss,
    )
