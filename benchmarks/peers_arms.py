"""The arms of benchmarks/peers.py: pyskip in processes that stay, llama-bench of anyone's build once a turn.

An arm takes a turn: every test at one number of threads. Whatever runs does each test twice and counts the second, so
that no arm pays for pages it touches for the first time.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Arm", "ArmError", "LlamaBench", "Pyskip", "Sample", "Test", "Worker", "parse_llama_bench", "parse_tests"]

WORKER = str(Path(__file__).with_name("peers_worker.py"))
# pass these on, and nothing has a warm-up of its own
PEER_FLAGS = {"llama-bench": ("--no-warmup",), "ik": ("-rtr", "1", "-w", "0")}


class ArmError(Exception):
    """One line: which arm, what was found."""


@dataclass(frozen=True)
class Test:
    """kind: pp (a prompt, one batch) or tg (generation, token by token) of n tokens, as llama-bench spells it."""

    kind: str
    n: int

    def __str__(self) -> str:
        return f"{self.kind}{self.n}"


@dataclass(frozen=True)
class Sample:
    """One turn in one test."""

    tokens_s: float
    skip_rate: float = 0.0


class Arm(Protocol):
    name: str
    build: str
    flags: str

    def turn(self, tests: Sequence[Test], n_threads: int) -> dict[Test, Sample]:
        """Raises ArmError."""
        ...


def parse_tests(prompts: Sequence[int], generated: Sequence[int]) -> list[Test]:
    """In llama-bench's order."""
    return [*(Test("pp", n) for n in prompts if n), *(Test("tg", n) for n in generated if n)]


def parse_llama_bench(output: str) -> list[dict[str, Any]]:
    """The rows of `llama-bench -o json`, which some builds print among other lines.

    Raises ValueError if there are none.
    """
    lines = output.splitlines()
    first = next((i for i, line in enumerate(lines) if line.strip() == "["), None)
    last = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].strip() == "]"), None)
    if first is None or last is None or last < first:
        raise ValueError("no JSON array in what it printed")
    rows: list[dict[str, Any]] = json.loads("\n".join(lines[first : last + 1]))
    if not rows:
        raise ValueError("no rows in what it printed")
    return rows


class LlamaBench:
    """llama-bench of a build that is named by its path. kind: llama-bench or ik, which knows -rtr."""

    def __init__(self, name: str, kind: str, program: Path, model: Path, extra: Sequence[str] = ()) -> None:
        self.name, self.program, self.model = name, program, model
        self.arguments = [*PEER_FLAGS[kind], *extra]
        self.flags = " ".join(self.arguments)
        self.build = "unknown"  # until it has run

    def turn(self, tests: Sequence[Test], n_threads: int) -> dict[Test, Sample]:
        sizes = {kind: ",".join(str(t.n) for t in tests if t.kind == kind) or "0" for kind in ("pp", "tg")}
        command = [str(self.program), "-m", str(self.model), "-p", sizes["pp"], "-n", sizes["tg"]]
        command += ["-t", str(n_threads), "-r", "2", "-o", "json", *self.arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        except OSError as error:
            raise ArmError(
                f"{self.name}: {self.program} cannot be run ({error.strerror}), expected a llama-bench"
            ) from None
        if done.returncode != 0:
            reason = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
            raise ArmError(f"{self.name}: {self.program} ended with status {done.returncode} ({reason})")
        try:
            rows = parse_llama_bench(done.stdout)
            self.build = f"{rows[0]['build_commit']} ({rows[0]['build_number']})"
            return {test: self._sample(rows, test) for test in tests}
        except (ValueError, KeyError, IndexError) as error:
            raise ArmError(f"{self.name}: {self.program} is no llama-bench that pyskip knows ({error})") from None

    @staticmethod
    def _sample(rows: Sequence[Mapping[str, Any]], test: Test) -> Sample:
        wanted = (test.n, 0) if test.kind == "pp" else (0, test.n)
        for row in rows:
            if (int(row["n_prompt"]), int(row["n_gen"])) == wanted:
                return Sample(test.n * 1e9 / float(row["samples_ns"][1]))
        raise ValueError(f"no row for {test}")


class Worker:
    """A process that has a model loaded with one kind of kernels (peers_worker.py). A context manager."""

    def __init__(self, kernels: str, python: str, setup: Mapping[str, Any]) -> None:
        self.kernels = kernels
        try:
            self.process = subprocess.Popen(
                [python, WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for us
            )
        except OSError as error:
            raise ArmError(f"{python}: cannot be run ({error.strerror}), expected a Python that has pyskip") from None
        try:
            self.about = self.ask({**setup, "kernels": kernels})
        except ArmError:
            self.close()
            raise

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin
        assert stdout
        try:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ArmError(f"pyskip {self.kernels}: the process ended with status {self.process.wait()}, see above")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ArmError(f"pyskip {self.kernels}: {answer['error']}")
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pyskip:
    """A worker under a policy."""

    def __init__(self, worker: Worker, skip: str = "off") -> None:
        self.worker, self.skip = worker, skip
        self.name = f"pyskip {worker.kernels}" + ("" if skip == "off" else f", {skip}")
        self.build = str(worker.about["build"])
        self.flags = f"kernels={worker.kernels} skip={skip}"

    def turn(self, tests: Sequence[Test], n_threads: int) -> dict[Test, Sample]:
        samples = {}
        for test in tests:
            time.sleep(0.05)  # the last one's threads go to sleep
            job = {"do": "run", "kind": test.kind, "n": test.n, "n_threads": n_threads, "skip": self.skip}
            answer = self.worker.ask(job)
            samples[test] = Sample(test.n / answer["seconds"], answer["skip_rate"])
        return samples
