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
    from capacity import N_STEPS, PROMPTS, SHORT, rising, table, without_context
    from queueing import Arrival, Service, arrivals, parts, quantile, simulate
finally:
    sys.path.remove(str(ROOT / "benchmarks"))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_slot_is_an_m_d_1_queue(load: float) -> None:
    """All requests alike, in one slot: the mean wait is the Pollaczek-Khinchine formula's."""
    service = Service(1, [(1, 0.1)])  # 10 tokens at 0.1 s; the first comes with the prompt
    seconds = 1.0
    requests = arrivals(load / seconds, 40_000, [(1, 10)], seed=1)
    waits = [outcome.first - 0.1 for outcome in simulate(service, requests)]
    assert mean(waits) == pytest.approx(load * seconds / (2 * (1 - load)), rel=0.05)


def test_slots_that_do_not_hinder_each_other_are_an_m_m_k_queue() -> None:
    """Steps that take the same however many are busy, answers of exponential lengths: Erlang's C formula."""
    import random

    n_slots, seconds, load, rng = 4, 1.0, 0.8, random.Random(2)
    service = Service(n_slots, [(1, 0.01), (1000, 0.01)], has_pool=True)
    requests = [
        Arrival(arrival.at, 1, 1 + round(rng.expovariate(1 / seconds) / 0.01))
        for arrival in arrivals(load * n_slots / seconds, 20_000, [(1, 1)], seed=3)
    ]
    waits = [outcome.first - 0.01 for outcome in simulate(service, requests)]
    offered = load * n_slots
    blocked = offered**n_slots / math.factorial(n_slots) / (1 - load)
    erlang_c = blocked / (sum(offered**k / math.factorial(k) for k in range(n_slots)) + blocked)
    assert mean([wait > 0.02 for wait in waits]) == pytest.approx(erlang_c, rel=0.1)
    assert mean(waits) == pytest.approx(erlang_c * seconds / (n_slots * (1 - load)), rel=0.15)


def test_a_step_is_shared() -> None:
    """Two that come together: ten rows of either prompt, and the rest of the longer one; then steps of two streams. The
    third waits for a slot, and its prompt is computed beside the token of the first: a row of either, and the rest."""
    service = Service(2, [(1, 1.0), (2, 1.5), (10, 3.5), (30, 6.0)], n_batch=100)
    outcomes = simulate(service, [Arrival(0.0, 10, 3), Arrival(0.0, 20, 2), Arrival(0.0, 7, 1)])
    found = [seconds for outcome in outcomes for seconds in (outcome.first, outcome.whole)]
    prompts = service.seconds(20) + 3.5
    mixed = 1.5 + service.seconds(6)
    assert found == pytest.approx(
        [prompts, prompts + 1.5 + mixed, prompts, prompts + 1.5, prompts + 1.5 + mixed, prompts + 1.5 + mixed]
    )


def test_a_longer_context_takes_longer() -> None:
    service = Service(1, [(1, 1.0), (10, 2.0)], per_cell=0.01, beside=0.5)
    (outcome,) = simulate(service, [Arrival(7.0, 10, 3)])
    assert (outcome.first, outcome.whole) == pytest.approx((2.5, 2.5 + 1.11 + 1.12))


def test_rows_that_are_computed_together() -> None:
    """As many of each slot, of neighbours alone."""
    assert parts([(0, 1), (1, 1), (2, 1), (3, 1)], 512) == [4]
    assert parts([(0, 1), (2, 1)], 512) == [1, 1]
    assert parts([(0, 1), (1, 1), (3, 1)], 512) == [2, 1]
    assert parts([(0, 1), (1, 300)], 512) == [2, 299]
    assert parts([(0, 7)], 512) == [7]
    assert parts([(0, 1), (3, 5), (2, 9)], 512) == [1, 5, 9]  # the order in the step counts
    assert parts([(1, 300)], 100) == [100, 100, 100]


def test_a_request_goes_beside_those_that_are_there() -> None:
    """The first ends while the second and the third are there; the fourth takes its place, not the one beyond."""
    service = Service(4, [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)])
    apart = simulate(service, [Arrival(0.0, 1, 2), Arrival(0.0, 1, 9), Arrival(0.0, 1, 9), Arrival(2.5, 1, 4)])
    assert [outcome.whole for outcome in apart] == [2.0, 9.0, 9.0, 4.5]


def test_what_a_step_of_some_rows_takes() -> None:
    service = Service(2, [(2, 1.0), (4, 2.0), (14, 3.0)])
    found = [service.seconds(n) for n in (1, 2, 3, 4, 9, 14, 28)]
    assert found == pytest.approx([1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 6.0])


def test_more_rows_take_no_less() -> None:
    assert rising([(4, 2.0), (1, 1.0), (2, 2.5), (2, 9.0)]) == [(1, 1.0), (2, 2.5), (4, 2.5)]


def test_what_a_context_takes() -> None:
    """The slope between short and long prompts, taken off the steps; noise leaves steps that take time."""
    cells = SHORT + N_STEPS / 2
    per_cell, curve = without_context([(1, 0.010), (2, 0.012)], 0.010 + 1e-5 * (PROMPTS[-1] - SHORT))
    assert per_cell == pytest.approx(1e-5)
    assert [seconds for _, seconds in curve] == pytest.approx([0.010 - 1e-5 * cells, 0.012 - 2e-5 * cells])
    assert without_context([(1, 0.010), (2, 0.012)], 0.002) == (0.0, [(1, 0.010), (2, 0.012)])
    _, curve = without_context([(1, 0.001), (2, 0.0015)], 0.1)
    assert [seconds > 0 for _, seconds in curve] == [True, True]


def test_measured_beside_predicted() -> None:
    rows = [
        {"load": 0.5, "per_second": 2.0, "measured": {"p50": 1.0, "p95": 2.0}, "predicted": {"p50": 1.1, "p95": 1.8}}
    ]
    assert [line.split() for line in table(rows).splitlines()[1:]] == [
        ["0.5", "2.00", "50", "1.000", "s", "1.100", "s", "1.10"],
        ["0.5", "2.00", "95", "2.000", "s", "1.800", "s", "0.90"],
    ]


def test_a_long_prompt_takes_turns_with_tokens_and_short_prompts() -> None:
    service = Service(3, [(1, 0.1), (10, 0.1), (100, 1.0)], n_batch=100, has_pool=True)
    outcomes = simulate(service, [Arrival(0.0, 1000, 2), Arrival(0.5, 50, 11)])
    assert outcomes[1].first == pytest.approx(1.5)  # with the next step, not behind the thousand
    assert outcomes[0].first == pytest.approx(10.59)  # 1000 and 50 rows of prompts, 9 of tokens


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
    assert document["service"]["n_slots"] == 2
    assert [n for n, _ in document["service"]["curve"]][:2] == [1, 2]
    assert len(document["service"]["curve"]) == 6
    assert all(seconds > 0 for _, seconds in document["service"]["curve"])
    (row,) = document["rows"]
    assert row["n"] == 12
    for side in ("measured", "predicted"):
        assert 0 < row[side]["p50"] <= row[side]["p95"]
    assert "0.3" in done.stdout
    plan = subprocess.run([*command[:2], "--plan", str(out)], capture_output=True, text=True, timeout=60)
    assert json.loads(plan.stdout)["replicas"]["1000"] >= 1, plan.stderr
