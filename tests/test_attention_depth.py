"""benchmarks/attention_depth.py: what bytes and operations allow, by hand, and a run of a few tokens."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, make_random, open_llm


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("attention_depth")


def test_what_skipping_saves(bench: ModuleType, tiny: Path) -> None:
    shape = make_random.SHAPES["tiny"]
    d, kv = shape.n_embd, shape.n_embd // shape.n_head * shape.n_head_kv
    layer = 2 * d * d + 2 * d * kv + 3 * d * shape.n_ff + 2 * d  # weights, norms among them
    weights = shape.n_layer * layer + shape.n_vocab * d + d
    by_bytes, by_operations = bench.work_of(str(tiny), 100)
    assert by_bytes.all == 4 * weights + shape.n_layer * 100 * 2 * kv * 2  # f32 weights, an f16 cache
    assert by_bytes.attention[2] == 4 * 2 * d * d + 100 * 2 * kv * 2  # Q, output, and what it reads of the cache
    assert by_bytes.ffn[2] == 4 * (3 * d * shape.n_ff + d)
    assert by_operations.attention[2] == 2 * d * d + 100 * 2 * d
    saved = by_bytes.attention[1] + by_bytes.ffn[3]
    assert by_bytes.allowed((1,), (3,)) == pytest.approx(by_bytes.all / (by_bytes.all - saved))


def test_arms_in_turns(bench: ModuleType, tiny: Path) -> None:
    llm = open_llm(tiny, 64)
    rows = bench.measure(llm, str(tiny), 20, 2, 4)
    llm.close()
    assert [row.skip for row in rows] == ["off", "static:attn=1+3+5", "static:1,3,5", "static:1,3,5,attn=1+3+5"]
    assert rows[0].speedup == rows[0].allowed_by_bytes == 1.0
    assert all(row.tps > 0 and row.speedup > 0 for row in rows)
    assert rows[3].allowed_by_bytes > rows[1].allowed_by_bytes > 1.0
