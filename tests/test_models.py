"""The makers in tools/models/: what speed and zeroed-weights tests stand on."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from conftest import ROOT, Logits, make_random, zero_layers

import pyskip

TINY = make_random.SHAPES["tiny"]
NEVER_BUILT = ROOT / "build" / "never-built" / "lib"


def stored(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a GGUF file as it is stored."""
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def logits(path: Path, tokens: list[int]) -> np.ndarray[Any, Any]:
    """[n_tokens, n_vocab], dense."""
    llm = pyskip.Llama(path, n_ctx=128, n_threads=1, logits_all=True, verbose=False)
    try:
        llm.eval(tokens)
        return np.array(llm.scores[: len(tokens)])
    finally:
        llm.close()


def test_a_seed_fixes_every_byte(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_random.make(tmp_path / name, TINY, seed=seed)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    a, c = stored(tmp_path / "a"), stored(tmp_path / "c")
    norms = {name for name in a if "norm" in name}
    assert {name for name in a if np.array_equal(a[name], c[name])} == norms


def test_models_of_one_seed_share_their_tensors(tmp_path: Path) -> None:
    make_random.make(tmp_path / "six", TINY)
    make_random.make(tmp_path / "two", replace(TINY, n_layer=2))
    six, two = stored(tmp_path / "six"), stored(tmp_path / "two")
    assert set(two) < set(six)
    for name, values in two.items():
        np.testing.assert_array_equal(values, six[name])


@pytest.mark.parametrize("kind", sorted(make_random.QUANTS))
def test_every_type_loads_and_stays_sane(tmp_path: Path, kind: str) -> None:
    shape = replace(TINY, n_embd=256, n_ff=512)
    make_random.make(tmp_path / "m.gguf", shape, kind=kind)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types["blk.3.ffn_down.weight"] == kind.upper()
    scores = logits(tmp_path / "m.gguf", list(range(1, 65)))
    assert np.isfinite(scores).all()
    assert 0.1 < scores.std() < 10
    assert np.ptp(scores, axis=0).min() > 0, "the logits do not depend on the token"


def test_rows_that_do_not_divide_into_blocks_stay_f32(tmp_path: Path) -> None:
    make_random.make(tmp_path / "m.gguf", TINY, kind="q4_k")
    assert {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors} == {"F32"}
    assert np.isfinite(logits(tmp_path / "m.gguf", [1, 2, 3])).all()


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_q4_k_blocks_have_the_spread_asked_for(std: float) -> None:
    blocks = make_random.random_q4_k(np.random.default_rng(0), 64, 1024, std)
    values = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_K)
    assert values.shape == (64, 1024)
    assert values.std() == pytest.approx(std, rel=0.02)
    assert abs(values.mean()) < 0.02 * std


@pytest.mark.parametrize("text", ["w1 w2", "Are dogs real?", "Zürich, 東京\n"])
def test_the_tokenizer_takes_any_text(tiny: Path, text: str) -> None:
    llm = pyskip.Llama(tiny, vocab_only=True, verbose=False)
    try:
        tokens = llm.tokenize(text.encode(), add_bos=False)
        assert llm.detokenize(tokens).decode().strip() == text.strip()
        assert 0 not in tokens
    finally:
        llm.close()


def test_zero_layers_changes_these_tensors_alone(tmp_path: Path) -> None:
    """Layer 1 is named and 10 and 11 are not: names are compared whole."""
    make_random.make(tmp_path / "in", replace(TINY, n_layer=12))
    zero_layers.zero_layers(tmp_path / "in", tmp_path / "out", [1, 5])
    before, after = stored(tmp_path / "in"), stored(tmp_path / "out")
    zeroed = {"blk.1.ffn_down.weight", "blk.5.ffn_down.weight"}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == zeroed
    assert not any(after[name].any() for name in zeroed)
    a, b = (np.frombuffer((tmp_path / name).read_bytes(), np.uint8) for name in ("in", "out"))
    assert a.size == b.size
    zero_layers.zero_layers(tmp_path / "in", tmp_path / "attention", [], [1])
    after = stored(tmp_path / "attention")
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"blk.1.attn_output.weight"}
    first = min(t.data_offset for t in gguf.GGUFReader(tmp_path / "in").tensors)
    np.testing.assert_array_equal(a[:first], b[:first])


def test_zero_bytes_are_zero_weights_in_q4_k(tmp_path: Path) -> None:
    make_random.make(tmp_path / "in", replace(TINY, n_embd=256, n_ff=512), kind="q4_k")
    zero_layers.zero_layers(tmp_path / "in", tmp_path / "out", [2])
    blocks = stored(tmp_path / "out")["blk.2.ffn_down.weight"]
    assert not gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_K).any()


@pytest.mark.parametrize(
    ("maker", "args", "message"),
    [
        ("make_random", ["-o", "missing/m.gguf"], "make_random: "),
        ("zero_layers", ["missing.gguf", "out.gguf", "--layers", "1"], "zero_layers: "),
        ("zero_layers", ["{tiny}", "out.gguf", "--layers", "6"], "has no tensor blk.6.ffn_down.weight"),
        ("zero_layers", ["{tiny}", "out.gguf", "--layers", "-1"], "has no tensor blk.-1.ffn_down.weight"),
        ("zero_layers", ["{tiny}", "out.gguf", "--layers", "x"], "zero_layers: "),
    ],
)
def test_a_maker_fails_in_one_line(tiny: Path, tmp_path: Path, maker: str, args: list[str], message: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / "models" / f"{maker}.py"), *[arg.format(tiny=tiny) for arg in args]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.skipif(not (NEVER_BUILT / "libllama.so").exists(), reason="`make bench` builds the never-built library")
def test_never_built_equals_zeroed(run_logits: Logits, tiny: Path, tmp_path: Path) -> None:
    """The arm that skip_cost.py holds `static` against computes what `static` does, so it leaves out the FFN alone."""
    zeroed = tmp_path / "zeroed.gguf"
    zero_layers.zero_layers(tiny, zeroed, [1, 3, 5])
    few = ("--prompts", "5")
    expected = run_logits("reference", zeroed, *few)
    env = {**os.environ, "LLAMA_CPP_LIB_PATH": str(NEVER_BUILT), "PYSKIP_NEVER_BUILT": "1,3,5"}
    out = tmp_path / "out.npz"
    command = [sys.executable, str(ROOT / "tests" / "support" / "logits.py"), "reference", str(tiny), str(out), *few]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        np.testing.assert_array_equal(found["digests"], expected["digests"])
