"""A policy in C: asked what pyskip.h says, and its word counts."""

from __future__ import annotations

import ctypes
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import open_llm

import pyskip
from pyskip import Custom, PolicyError

SOURCE = """
#include "pyskip.h"

bool odd(const struct pyskip_decision * d, void * data) { return d->il % 2 == 1 && d->index >= 0; }

struct cosine { float threshold; int32_t cold_start, cold_end, warmup; };

/* The paper's policy with run=1. */
bool cosine(const struct pyskip_decision * d, void * data) {
    const struct cosine * c = data;
    if (d->index < 0 || d->index < c->warmup || d->il < c->cold_start || d->il >= d->n_layer - c->cold_end) {
        return false;
    }
    return d->il_sim == d->il - 1 && d->il_sim >= c->cold_start && d->sim >= c->threshold;
}
"""


class Settings(ctypes.Structure):
    _fields_ = (
        ("threshold", ctypes.c_float),
        ("cold_start", ctypes.c_int32),
        ("cold_end", ctypes.c_int32),
        ("warmup", ctypes.c_int32),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("custom")
    (folder / "policy.c").write_text(SOURCE)
    flags = ["-std=c11", "-shared", "-fPIC", "-Wall", "-Werror", "-I", pyskip.get_include()]
    subprocess.run(["cc", *flags, str(folder / "policy.c"), "-o", str(folder / "policy.so")], check=True)
    return folder / "policy.so"


@pytest.fixture(scope="module")
def llm(tiny: Path) -> pyskip.Llama:
    return open_llm(tiny, 128, logits_all=True)


def test_it_decides(llm: pyskip.Llama, library: Path) -> None:
    llm.skip = Custom.load(library, "odd")
    llm.reset_skip_stats()
    llm.create_completion("Hello", max_tokens=8, temperature=0)
    stats = llm.skip_stats()
    n_odd = sum(il % 2 for il in llm.skippable_layers)
    assert n_odd >= 2
    assert stats.rate == pytest.approx(n_odd / 6)
    assert [rate > 0 for rate in stats.per_layer] == [il % 2 == 1 for il in range(6)]
    assert sum(stats.prompt_skipped) == 0
    assert stats.skip == "custom:odd"


def trace_of(llm: pyskip.Llama, skip: str | pyskip.Policy, n_batch: int) -> tuple[np.ndarray, pyskip.SkipTrace]:
    """Logits of the last of 24 tokens, of which the first 8 are prompt, and the decisions."""
    llm.reset()
    llm.engine.clear()
    llm.skip = skip
    llm.start_trace(64)
    llm.mark_generated(8)
    tokens = list(range(2, 26))
    for i in range(0, 24, n_batch):
        llm.eval(tokens[i : i + n_batch])
    return np.array(llm.scores[23]), llm.take_trace()


def test_the_papers_policy_in_c_is_the_papers_policy(llm: pyskip.Llama, library: Path) -> None:
    _, open_trace = trace_of(llm, "cosine:threshold=2,cold_start=0,cold_end=0,warmup=0", 24)
    threshold = float(np.float32(np.nanmedian(open_trace.similarity)))
    built_in = f"cosine:threshold={threshold!r},run=1,cold_start=1,cold_end=1,warmup=2"
    own = Custom.load(library, "cosine", Settings(threshold, 1, 1, 2))
    logits, trace = trace_of(llm, built_in, 24)
    own_logits, own_trace = trace_of(llm, own, 24)
    assert 0 < trace.skipped.mean() < 1
    assert np.array_equal(trace.skipped, own_trace.skipped)
    assert np.array_equal(logits, own_logits)
    _, single = trace_of(llm, own, 1)
    assert np.array_equal(own_trace.skipped, single.skipped)


def test_what_it_is_asked(llm: pyskip.Llama) -> None:
    """A function in Python serves, slowly: ctypes makes it one of C."""

    class Decision(ctypes.Structure):
        _fields_ = (
            *((name, ctypes.c_int32) for name in ("il", "n_layer", "seq_id", "pos", "index", "il_sim")),
            ("sim", ctypes.c_float),
        )

    asked = []

    def decide(decision: ctypes._Pointer[Decision], data: int) -> bool:
        d = decision.contents
        asked.append((d.il, d.n_layer, d.seq_id, d.pos, d.index, d.il_sim, d.sim, data))
        return bool(d.il == 2)

    function = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(Decision), ctypes.c_void_p)(decide)

    trace_of(llm, Custom(function, 77, "probe"), 1)
    assert {a[1] for a in asked} == {6}
    assert {a[2] for a in asked} == {0}
    assert {a[7] for a in asked} == {77}
    for pos in range(24):
        layers = [a for a in asked if a[3] == pos]
        assert [a[0] for a in layers] == list(llm.skippable_layers)
        assert {a[4] for a in layers} == {pos - 8 if pos >= 8 else -1}
        before = dict(zip((a[0] for a in layers), (a[5] for a in layers), strict=True))
        assert before == {0: -1, 1: 0, 2: 1, 3: 1, 4: 3, 5: 4}
        assert [math.isnan(a[6]) for a in layers] == [True] + 5 * [False]
    assert trace_of(llm, "off", 24)[1].skipped.size == 0


def test_what_is_no_policy(llm: pyskip.Llama, library: Path) -> None:
    for wrong in (None, 0, -1, 2**64, True, "decide", 1.5):
        with pytest.raises(PolicyError, match="custom"):
            Custom(wrong)
    with pytest.raises(PolicyError, match="data is a float"):
        Custom(1, 1.5)
    with pytest.raises(PolicyError, match="has no function nobody"):
        Custom.load(library, "nobody")
    with pytest.raises(PolicyError, match=r"missing\.so"):
        Custom.load(library.with_name("missing.so"))
    with pytest.raises(PolicyError, match="expected off"):
        llm.skip = "custom:odd"  # a specification is a stranger's word, code is not
