"""Attention that is skipped: K and V are whole, and everything else is as if `attn_output` were zero."""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from conftest import Logits, zero_layers
from raw import Raw
from test_batches import tiny_tokens

import pyskip
from pyskip import PolicyError, parse_skip

FLASH = pytest.mark.parametrize("flash", [(), ("--flash-attn",)], ids=["scores", "flash"])


@FLASH
@pytest.mark.parametrize("step", [(), ("--step",)], ids=["batch", "step"])
def test_static_attention_equals_zeroed_attn_output(
    run_logits: Logits, demo: Path, tmp_path: Path, step: tuple[str, ...], flash: tuple[str, ...]
) -> None:
    zeroed = tmp_path / "zeroed.gguf"
    zero_layers.zero_layers(demo, zeroed, [5, 14], [5, 12, 13])
    few = ("--prompts", "5", *step, *flash)
    expected = run_logits("reference", zeroed, *few)
    found = run_logits("pyskip", demo, *few, "--skip", "static:5,14,attn=5+12+13")
    np.testing.assert_array_equal(found["digests"], expected["digests"])
    ffn_only = run_logits("pyskip", demo, *few, "--skip", "static:5,14")
    assert not np.array_equal(found["digests"], ffn_only["digests"])


@FLASH
def test_first_and_last_layer(run_logits: Logits, tiny: Path, tmp_path: Path, flash: tuple[str, ...]) -> None:
    """In the last layer the rows are gathered, and may be none."""
    zeroed = tmp_path / "zeroed.gguf"
    zero_layers.zero_layers(tiny, zeroed, [], [0, 3, 5])
    expected = run_logits("reference", zeroed, "--prompts", "5", *flash)
    found = run_logits("pyskip", tiny, "--prompts", "5", *flash, "--skip", "static:attn=0+3+5")
    np.testing.assert_array_equal(found["digests"], expected["digests"])


def cache_of(raw: Raw, n_tokens: int, n_layer: int, n_bytes: int) -> npt.NDArray[np.uint8]:
    """The K and V of sequence 0, [2, n_layer, n_tokens, n_bytes of a row], as llama.cpp writes them at the end of a
    state: of each layer type and size of a row, and the rows."""
    data = (ctypes.c_uint8 * int(llama_cpp.llama_state_seq_get_size(raw.ctx, 0)))()
    assert llama_cpp.llama_state_seq_get_data(raw.ctx, data, len(data), 0) == len(data)
    whole: npt.NDArray[np.uint8] = np.frombuffer(bytes(data), np.uint8)
    both = whole[-2 * n_layer * (12 + n_tokens * n_bytes) :].reshape(2, n_layer, -1)
    assert (both[:, :, 4:12].copy().view(np.int64) == n_bytes).all()
    rows: npt.NDArray[np.uint8] = both[:, :, 12:].reshape(2, n_layer, n_tokens, n_bytes)
    return rows


def test_k_and_v_of_skipped_attention_are_those_of_dense(tiny: Path) -> None:
    """Bit for bit in the first skipped layer, whose input is the same; written for every token in those after it."""
    tokens = tiny_tokens(70, 40, 0)
    caches = []
    for spec in ("off", "static:attn=2+4"):
        with Raw(tiny, spec) as raw:
            raw.decode(tokens[:30])
            raw.step(tokens[30:])
            caches.append(cache_of(raw, 40, 6, 64))
    dense, skipped = caches
    np.testing.assert_array_equal(skipped[:, :3], dense[:, :3])
    assert (skipped[:, 3:] != dense[:, 3:]).any(axis=-1).all()  # what comes after has another input
    assert skipped.any(axis=-1).all()


@pytest.mark.parametrize("spec", ["static:attn=1+4", "static:1,attn=1+2"])
def test_one_batch_equals_single_steps(tiny: Path, spec: str) -> None:
    tokens = tiny_tokens(71, 120, 0)
    with Raw(tiny, spec, exact=True) as batch, Raw(tiny, spec, exact=True) as steps, Raw(tiny, exact=True) as dense:
        a, b = batch.decode(tokens), steps.step(tokens)
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert np.abs(a - dense.decode(tokens)).max() > 0.1


def test_what_is_counted_and_traced(tiny: Path) -> None:
    llm = pyskip.Llama(tiny, skip="static:2,attn=1+5", n_ctx=64, verbose=False)
    llm.start_trace(8)
    llm.create_completion("w1 w2", max_tokens=8, temperature=0)
    stats = llm.skip_stats()
    assert stats.attention_per_layer == (0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    assert stats.attention_rate == pytest.approx(2 / 6)
    assert stats.per_layer == (0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    for evaluated, skipped, n in (
        (stats.attention_evaluated, stats.attention_skipped, stats.n_tokens),
        (stats.prompt_attention_evaluated, stats.prompt_attention_skipped, stats.n_prompt),
    ):
        assert [e + s for e, s in zip(evaluated, skipped, strict=True)] == [n] * 6
    trace = llm.take_trace()
    assert trace.attention[:, [1, 5]].all()
    assert trace.attention.sum() == 2 * len(trace) > 0
    llm.skip = "static:2"
    llm.reset_skip_stats()
    llm.create_completion("w1 w3", max_tokens=4, temperature=0)
    assert llm.skip_stats().attention_rate == 0.0
    assert sum(llm.skip_stats().attention_evaluated) == 6 * llm.skip_stats().n_tokens
    llm.close()


def test_policies_mixed_in_one_batch(tiny: Path) -> None:
    """Attention that one sequence skips is computed for the others."""
    specs = ("off", "static:attn=1+3", "static:2,attn=3", "cosine:threshold=0.9,cold_start=1,cold_end=1,warmup=4")
    sequences = [tiny_tokens(72 + seq, 64, seq) for seq in range(4)]
    with Raw(tiny, exact=True) as mixed:
        for seq, spec in enumerate(specs):
            mixed.skip.set_policy(parse_skip(spec), None, seq)
            mixed.skip.set_generated_from(seq, 20)
        logits = mixed.decode([token for group in zip(*sequences, strict=True) for token in group])
        for seq, spec in enumerate(specs):
            with Raw(tiny, spec, exact=True) as alone:
                alone.skip.set_generated_from(seq, 20)
                np.testing.assert_allclose(logits[seq::4], alone.decode(sequences[seq]), atol=1e-4, err_msg=spec)
                assert mixed.skip.stats(parse_skip(spec), seq) == alone.skip.stats(parse_skip(spec))


def test_layers_that_are_not_there(tiny: Path) -> None:
    with Raw(tiny) as raw:
        assert raw.skip.skippable_attention() == tuple(range(6))
        with pytest.raises(PolicyError, match="names layer 6"):
            raw.set_policy("static:attn=6")
