"""benchmarks/peers.py: what it reads of llama-bench, how it takes turns and adds rounds, and what it writes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import peers
    import peers_arms
    import peers_page
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

Run = Callable[..., subprocess.CompletedProcess[str]]

# Prints what llama-bench does, for the sizes asked for: 100 tokens/s at first, then 200, of prompts ten times that.
LLAMA_BENCH = f"""#!{sys.executable}
import json, sys
given = dict(zip(sys.argv[1::1], sys.argv[2::1]))
print("======== something that a build says")
assert (given["-r"], given["-o"]) == ("2", "json")
rows = [(int(n), 0) for n in given["-p"].split(",") if n != "0"]
rows += [(0, int(n)) for n in given["-n"].split(",") if n != "0"]
print(json.dumps([
    dict(n_prompt=p, n_gen=g, n_threads=int(given["-t"]), build_commit="abc123", build_number=7,
         samples_ns=[int((p / 10 + g) / r * 1e9) for r in (100, 200)])
    for p, g in rows
], indent=2))
print("done")
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)

    return call


def row(arm: str, test: str, n_threads: int, *samples: float, skip_rate: float = 0.0) -> dict[str, Any]:
    values = {"arm": arm, "test": test, "n_threads": n_threads, "skip_rate": skip_rate}
    return {**values, "samples_ts": list(samples)}


def a_run(**changes: Any) -> dict[str, Any]:
    names = ("pyskip upstream", "pyskip fast", "pyskip fast, 0.2", "ik_llama.cpp")
    return {
        "model": "m.gguf", "model_bytes": 1, "cpu": "a processor", "n_cores": 2, "instructions": "AVX2",
        "date": "2026-01-02", "commit": "123456789",
        "arms": [{"name": name, "build": "b", "flags": "f"} for name in names],
        "rows": [
            row("pyskip upstream", "tg32", 1, 10, 20, 30),
            row("pyskip fast", "tg32", 1, 20, 30, 45),
            row("pyskip fast, 0.2", "tg32", 1, 22, 33, 49.5, skip_rate=0.2),
            row("ik_llama.cpp", "tg32", 1, 20, 40, 90),
        ],
        **changes,
    }  # fmt: skip


def test_llama_bench_is_parsed() -> None:
    rows = [{"n_prompt": 8, "samples_ns": [1, 2]}]
    for text in (json.dumps(rows, indent=2), "noise [ ]\n" + json.dumps(rows, indent=2) + "\n\nmore"):
        assert peers_arms.parse_llama_bench(text) == rows
    for text in ("", "no rows\n", "[\n]\n", "]\n[\n", "[\n  {\n]\n"):
        with pytest.raises(ValueError, match=r".+"):
            peers_arms.parse_llama_bench(text)


def test_llama_bench_is_run(tmp_path: Path) -> None:
    """The second of two passes counts, in whatever order the rows come."""
    arm = peers_arms.LlamaBench("ik", "ik", program(tmp_path / "llama-bench", LLAMA_BENCH), tmp_path / "m.gguf")
    tests = peers_arms.parse_tests([0, 256, 512], [32])
    assert [str(test) for test in tests] == ["pp256", "pp512", "tg32"]
    rates = {str(test): sample.tokens_s for test, sample in arm.turn(tests, 2).items()}
    assert rates == pytest.approx({"pp256": 2000, "pp512": 2000, "tg32": 200})
    assert (arm.build, arm.flags) == ("abc123 (7)", "-rtr 1 -w 0")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#!/bin/sh\necho first >&2; echo 'no such model' >&2; exit 3\n", r"ended with status 3 \(no such model\)$"),
        ("#!/bin/sh\nexit 3\n", r"ended with status 3 \(nothing was said\)$"),
        ("#!/bin/sh\necho hello\n", r"is no llama-bench that pyskip knows \(no JSON array in what it printed\)$"),
        ("#!/bin/sh\nprintf '[\\n{}\\n]\\n'\n", r"is no llama-bench that pyskip knows \('build_commit'\)$"),
        (LLAMA_BENCH.replace('given["-n"].split(",")', '"9"'), r"knows \(no row for tg32\)$"),
        ("#!/no/such/shell\n", r"cannot be run \(.*\), expected a llama-bench$"),
    ],
)
def test_llama_bench_that_fails(text: str, found: str, tmp_path: Path) -> None:
    arm = peers_arms.LlamaBench("ik", "ik", program(tmp_path / "llama-bench", text), tmp_path / "m.gguf")
    with pytest.raises(peers_arms.ArmError, match=r"^ik: .*" + found):
        arm.turn(peers_arms.parse_tests([], [32]), 2)


class Clock:
    """An arm whose rate says when it was asked."""

    turns = 0

    def __init__(self, name: str, stop_at: int | None = None) -> None:
        self.name, self.build, self.flags, self.stop_at = name, "", "", stop_at

    def turn(self, tests: Sequence[peers_arms.Test], n_threads: int) -> dict[peers_arms.Test, peers_arms.Sample]:
        Clock.turns += 1
        if Clock.turns == self.stop_at:
            raise KeyboardInterrupt
        return {test: peers_arms.Sample(Clock.turns) for test in tests}


def test_turns_rotate() -> None:
    """Each arm once a round at each number of threads, each first in its turn; on from the rounds that there are."""
    tests = peers_arms.parse_tests([], [32])
    Clock.turns = 0
    taken = peers.measure([Clock("a"), Clock("b"), Clock("c")], tests, [1, 2], range(3, 6), lambda _: None)
    found = {key: [sample.tokens_s for sample in samples] for key, samples in taken.items()}
    assert found == {
        ("a", "tg32", 1): [1, 9, 14], ("b", "tg32", 1): [2, 7, 15], ("c", "tg32", 1): [3, 8, 13],
        ("a", "tg32", 2): [4, 12, 17], ("b", "tg32", 2): [5, 10, 18], ("c", "tg32", 2): [6, 11, 16],
    }  # fmt: skip


def test_interrupt_keeps_whole_rounds() -> None:
    tests = peers_arms.parse_tests([], [32])
    Clock.turns = 0
    taken = peers.measure([Clock("a"), Clock("b", stop_at=6)], tests, [1], range(9), lambda _: None)
    assert {key[0]: len(samples) for key, samples in taken.items()} == {"a": 2, "b": 2}
    Clock.turns = 0
    with pytest.raises(KeyboardInterrupt):
        peers.measure([Clock("a"), Clock("b", stop_at=2)], tests, [1], range(9), lambda _: None)


def test_rounds_are_added() -> None:
    old, new = a_run(), a_run(date="2026-01-03")
    new["rows"][2].update(samples_ts=[1.0], skip_rate=0.4)
    both = peers.added(old, new)
    assert both["date"] == "2026-01-03"
    assert both["rows"][0]["samples_ts"] == [10, 20, 30, 10, 20, 30]
    assert both["rows"][2]["samples_ts"] == [22, 33, 49.5, 1.0]
    assert both["rows"][2]["skip_rate"] == pytest.approx((3 * 0.2 + 0.4) / 4)
    with pytest.raises(peers_arms.ArmError, match=r"--add found commit '123456789' in the file, expected 'x'"):
        peers.added(old, a_run(commit="x"))
    other = deepcopy(new)
    other["rows"][0]["test"] = "tg64"
    with pytest.raises(peers_arms.ArmError, match=r"found other tests"):
        peers.added(old, other)


def test_what_replaces_what() -> None:
    runs = [a_run(), a_run(instructions="AVX-512"), a_run(model="n.gguf")]
    assert [peers.earlier(runs, run) for run in runs] == [0, 1, 2]
    assert peers.earlier(runs, a_run(cpu="another", date="")) is None
    assert peers.earlier(runs, a_run(commit="x")) == 0


def test_quartiles_and_ratios() -> None:
    assert peers_page.quartiles([4.0]) == (4, 4, 4)
    assert peers_page.quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == (2, 3, 4)
    assert peers_page.ratios([2, 9], [1, 3]) == [2, 3]
    with pytest.raises(ValueError, match=r"argument 2 is longer"):
        peers_page.ratios([1], [1, 2])


def test_table() -> None:
    """Medians and quartiles of the samples; ratios are those of the rounds, not of the medians."""
    lines = peers_page.table([a_run(), a_run(model="n.gguf", instructions="AVX-512", rows=a_run()["rows"][:2])]).split(
        "\n"
    )
    assert lines[0] == "### AVX2: a processor, 2 cores"
    assert lines[2].startswith("3 rounds, 2026-01-02, pyskip at 123456789.")
    rates = "20.0 (15.0 to 25.0) | 30.0 (25.0 to 37.5) | 33.0 (27.5 to 41.2), 20% skipped | 40.0 (30.0 to 65.0)"
    assert f"| m | tg32 | 1 | {rates} |" in lines
    pairs = "fast / ik_llama.cpp | fast / upstream | upstream / ik_llama.cpp | fast, 0.2 / fast"
    assert f"| model | test | threads | {pairs} |" in lines
    ratios = "0.75 (0.62 to 0.88) | 1.50 (1.50 to 1.75) | 0.50 (0.42 to 0.50) | 1.10 (1.10 to 1.10)"
    assert f"| m | tg32 | 1 | {ratios} |" in lines
    assert "### AVX-512: a processor, 2 cores" in lines
    assert "| n | tg32 | 1 | 20.0 (15.0 to 25.0) | 30.0 (25.0 to 37.5) | - | - |" in lines
    assert "- `ik_llama.cpp`: b, `f`" in lines


def test_page(tmp_path: Path) -> None:
    """The tables go between the marks, again and again the same, and nothing else moves."""
    first, last = peers_page.MARKS
    page, data, plot = tmp_path / "page.md", tmp_path / "peers.json", tmp_path / "peers.svg"
    page.write_text(f"# A\n\n{first}\nold\n{last}\n\n## B\n")
    data.write_text(json.dumps({"runs": [a_run()]}))
    args = ["--json", str(data), "--page", str(page), "--plot", str(plot)]
    pytest.importorskip("matplotlib")
    assert peers_page.main(args) == 0
    assert page.read_text() == f"# A\n\n{first}\n\n{peers_page.section([a_run()])}\n{last}\n\n## B\n"
    drawn = plot.read_bytes()
    assert peers_page.main(args) == 0
    assert plot.read_bytes() == drawn
    assert b"AVX2, tg32, 1 threads" in drawn
    for broken in ("# A\n", f"{last}\n{first}\n", f"{first}{first}{last}"):
        with pytest.raises(ValueError, match=r"found no place for the tables"):
            peers_page.marked(broken, "x")


def test_end_to_end(run: Run, tiny: Path, tmp_path: Path) -> None:
    """On a tiny model beside a program that poses as llama-bench; then two more rounds, and what cannot be added."""
    peer, output = program(tmp_path / "llama-bench", LLAMA_BENCH), tmp_path / "peers.json"
    common: tuple[str | Path, ...] = (
        tiny,
        "--llama-bench",
        peer,
        "--kernels",
        "upstream",
        "--skip",
        "static:1,4",
        "-p",
        "16",
        "-n",
        "4",
    )
    common = (*common, "-t", "1", "-o", output)
    first = run(*common, "--rounds", "1")
    assert (first.returncode, first.stdout) == (0, ""), first.stderr
    second = run(*common, "--rounds", "2", "--add")
    assert second.returncode == 0, second.stderr
    (found,) = json.loads(output.read_text())["runs"]
    assert [arm["name"] for arm in found["arms"]] == ["pyskip upstream", "pyskip upstream, static:1,4", "llama.cpp"]
    assert (found["model"], found["model_bytes"]) == (tiny.name, tiny.stat().st_size)
    rows = {(row["arm"], row["test"]): row for row in found["rows"]}
    assert len(rows) == 6
    assert all(len(row["samples_ts"]) == 3 and min(row["samples_ts"]) > 0 for row in rows.values())
    assert rows["llama.cpp", "tg4"]["samples_ts"] == pytest.approx([200] * 3)
    assert rows["pyskip upstream", "tg4"]["skip_rate"] == 0
    assert rows["pyskip upstream, static:1,4", "tg4"]["skip_rate"] == pytest.approx(2 / 6, abs=1e-4)
    other = run(*common, "--rounds", "1", "--add", "-n", "5")
    assert other.returncode == 1
    assert other.stderr.splitlines()[-1].startswith("peers: --add found other tests in the file, expected")


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (("-p", "0", "-n", "0"), "peers: -p 0 -n 0 leaves no test, expected one: give at least one size"),
        (("--skip", "cosine:limit=3", "-p", "8", "-n", "4"), "peers: pyskip upstream: "),
        (("--ik", "/no/such/program", "-p", "8", "-n", "4"), "peers: ik_llama.cpp: /no/such/program cannot be run"),
        (("--python", "/no/such/python"), "peers: /no/such/python: cannot be run (No such file or directory)"),
    ],
)
def test_errors(args: tuple[str, ...], found: str, run: Run, tiny: Path) -> None:
    done = run(tiny, "--kernels", "upstream", "-t", "1", "--rounds", "1", *args)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last[: len(found)]) == (1, found)
    assert "Traceback" not in done.stderr


def test_the_page_is_what_was_measured() -> None:
    data = ROOT / "docs" / "results" / "peers.json"
    if not data.exists():
        pytest.skip("nothing was measured yet")
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert peers_page.marked(page, peers_page.section(json.loads(data.read_text())["runs"])) == page
    assert os.path.getsize(data.with_suffix(".svg")) > 0
