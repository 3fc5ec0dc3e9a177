"""benchmarks/pace.py on a made-up run: when the rate was back, when the operating point was, and the plot."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "pace", raising=False)
    return importlib.import_module("pace")


def made_up(bench: ModuleType) -> list[object]:
    """100 tokens/s; beside a hog, from 5 to 15, 80 for two seconds and then 95; the point is back at 0 at 16."""
    tokens, at = [], 0.0
    while at < 20:
        tps, point = (100, 0.0) if at < 5 else (80, 0.0) if at < 7 else (95, 0.3) if at < 16 else (100, 0.0)
        at += 1 / tps
        tokens.append(bench.Token(at, 1 / tps, point, point / 2))
    return tokens


def test_verdict(bench: ModuleType) -> None:
    tokens = made_up(bench)
    found = bench.verdict(tokens, 100.0, 0.0, 5.0, 15.0)
    assert found["shared_tps"] == pytest.approx(80, abs=0.5)
    assert found["settled_tps"] == pytest.approx(95)
    assert (found["settled_point"], found["settled_skipped"]) == (pytest.approx(0.3), pytest.approx(0.15))
    assert found["settled_held"] == 1
    assert 2.5 < found["seconds_until_back"] < 3  # the window of a second must lie in the faster part by two thirds
    assert found["seconds_until_floor"] == pytest.approx(1, abs=0.05)
    never = bench.verdict(tokens, 200.0, -1.0, 5.0, 15.0)
    assert never["seconds_until_back"] is None
    assert never["seconds_until_floor"] is None


def test_plot(bench: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = {"hog_from": 5.0, "hog_to": 15.0, "target_tps": 100.0, "max_skip": 0.4}
    bench.plot({**result, "series": bench.series(made_up(bench))}, tmp_path / "pace.svg")
    assert "a hog runs" in (tmp_path / "pace.svg").read_text()
