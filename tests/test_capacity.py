"""The simulation of a replica (benchmarks/queueing.py) against what queueing theory says in closed form, and the
program that feeds it (benchmarks/capacity.py)."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_random

sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    from queueing import Arrival, Service, arrivals, quantile, simulate
finally:
    sys.path.remove(str(ROOT / "benchmarks"))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_slot_is_an_m_d_1_queue(load: float) -> None:
    """All requests alike, in one slot: the mean wait is the Pollaczek-Khinchine formula's."""
    service = Service([0.0, 0.1], 0.0)  # 10 tokens at 0.1 s; the first comes with the prompt
    seconds = 0.9
    requests = arrivals(load / seconds, 40_000, [(1, 10)], seed=1)
    waits = [outcome.first for outcome in simulate(service, requests)]
    assert mean(waits) == pytest.approx(load * seconds / (2 * (1 - load)), rel=0.05)


def test_slots_that_do_not_hinder_each_other_are_an_m_m_k_queue() -> None:
    """Steps that take the same however many are busy, answers of exponential lengths: Erlang's C formula."""
    import random

    n_slots, seconds, load, rng = 4, 1.0, 0.8, random.Random(2)
    service = Service([0.0, *[0.01] * n_slots], 0.0)
    requests = [
        Arrival(arrival.at, 1, 1 + round(rng.expovariate(1 / seconds) / 0.01))
        for arrival in arrivals(load * n_slots / seconds, 20_000, [(1, 1)], seed=3)
    ]
    waits = [outcome.first for outcome in simulate(service, requests)]
    offered = load * n_slots
    blocked = offered**n_slots / math.factorial(n_slots) / (1 - load)
    erlang_c = blocked / (sum(offered**k / math.factorial(k) for k in range(n_slots)) + blocked)
    assert mean([wait > 0.02 for wait in waits]) == pytest.approx(erlang_c, rel=0.1)
    assert mean(waits) == pytest.approx(erlang_c * seconds / (n_slots * (1 - load)), rel=0.15)


def test_a_step_is_shared() -> None:
    """Two that come together: prompts of one batch, then steps of two streams; the third waits for a slot."""
    service = Service([0.0, 1.0, 1.5], 0.01, n_batch=100)
    outcomes = simulate(service, [Arrival(0.0, 10, 3), Arrival(0.0, 20, 2), Arrival(0.0, 10, 1)])
    found = [seconds for outcome in outcomes for seconds in (outcome.first, outcome.whole)]
    assert found == pytest.approx([0.3, 0.3 + 1.5 + 1.1, 0.3, 0.3 + 1.5, 0.3 + 1.5 + 1.1, 0.3 + 1.5 + 1.1])


def test_a_long_prompt_takes_turns_with_tokens_and_short_prompts() -> None:
    service = Service([0.0, 0.1, 0.1, 0.1], 0.01, n_batch=100)
    outcomes = simulate(service, [Arrival(0.0, 1000, 2), Arrival(0.5, 50, 11)])
    assert outcomes[1].first < 1.51  # with the next step, not behind the thousand
    assert outcomes[0].first == pytest.approx(10.5 + 0.1 * 9)


def test_quantiles() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile([0, 10], 0.95) == pytest.approx(9.5)
    assert quantile([5], 0.95) == 5


@pytest.mark.slow
@pytest.mark.loopback
def test_it_measures_and_predicts(tmp_path: Path) -> None:
    """Whole, on a tiny model: what comes of it, not how well it agrees, which takes a quiet machine."""
    model, out = tmp_path / "model.gguf", tmp_path / "capacity.json"
    make_random.make(model, dataclasses.replace(make_random.SHAPES["tiny"], n_ctx=8192))
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "capacity.py"),
        str(model),
        "--loads",
        "0.3",
        "--requests",
        "12",
    ]
    done = subprocess.run(
        [*command, "-t", "1", "--slots", "2", "-o", str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert len(document["service"]["step_seconds"]) == 3
    assert all(seconds > 0 for seconds in document["service"]["step_seconds"][1:])
    (row,) = document["rows"]
    assert row["n"] == 12
    for side in ("measured", "predicted"):
        assert 0 < row[side]["p50"] <= row[side]["p95"]
    assert "0.3" in done.stdout
