"""What a session may do in the middle: change the policy, save and restore, copy and shift sequences, adapters."""

from __future__ import annotations

import ctypes
import pickle
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from conftest import zero_layers
from raw import Raw
from test_batches import tokens_of

import pyskip

SPEC = "cosine:threshold=0.974,run=2,warmup=0"


@pytest.mark.parametrize("spec", [SPEC, "static:3,9,20", "off"])
def test_changing_the_policy_equals_a_fresh_session(demo: Path, spec: str) -> None:
    tokens = tokens_of(2, 80, 0)
    with Raw(demo, "static:7") as changed, Raw(demo) as fresh:
        for raw in (changed, fresh):
            raw.skip.set_generated_from(0, 40)
        changed.set_policy(SPEC)
        changed.step(tokens[:20])  # still prompt
        changed.set_policy("off")
        changed.step(tokens[20:40])
        fresh.step(tokens[:40])
        for raw in (changed, fresh):
            raw.set_policy(spec)
        np.testing.assert_array_equal(changed.step(tokens[40:]), fresh.step(tokens[40:]))


def test_a_refused_policy_leaves_the_old_one(llm: pyskip.Llama) -> None:
    llm.skip = "static:5"
    for bad in ("static:30", "cosine:cold_start=15,cold_end=15", "nonsense"):
        with pytest.raises(pyskip.PolicyError):
            llm.skip = bad
    assert str(llm.skip) == "static:5"
    llm.create_completion("Dogs", max_tokens=4)
    assert llm.skip_stats().per_layer[5] == 1.0


@pytest.mark.parametrize("n_threads", [1, 3, 4])
def test_any_number_of_threads(demo: Path, n_threads: int) -> None:
    tokens = tokens_of(3, 48, 0)
    with Raw(demo, SPEC) as two, Raw(demo, SPEC) as other:
        llama_cpp.llama_set_n_threads(other.ctx, n_threads, n_threads)
        for raw in (two, other):
            raw.skip.set_generated_from(0, 4)
        a = np.concatenate([two.decode(tokens[:30]), two.step(tokens[30:])])
        b = np.concatenate([other.decode(tokens[:30]), other.step(tokens[30:])])
        np.testing.assert_allclose(a, b, atol=1e-4)
        np.testing.assert_array_equal(two.skip.take_trace(99).skipped, other.skip.take_trace(99).skipped)


def test_state_saved_under_one_policy_and_restored_under_another(llm: pyskip.Llama) -> None:
    prompt = llm.tokenize(b"The capital of France is Paris, and the capital of Italy")
    llm.skip = "static:5"
    llm.eval(prompt)
    state = llm.save_state()
    llm.eval([llm.token_nl()] * 3)
    llm.load_state(state)
    llm.skip = "cosine:threshold=-1,run=0,warmup=0"
    llm.mark_generated()
    llm.reset_skip_stats()
    llm.eval(llm.tokenize(b" is", add_bos=False))
    assert llm.skip_stats().n_tokens == 1
    assert sum(llm.skip_stats().skipped) == 30 - 4 - 4 - 1


def test_the_mark_follows_a_sequence(demo: Path) -> None:
    """Copied, shifted and cleared with llama_memory_*: the decisions are those of the original."""
    tokens = tokens_of(4, 30, 0)
    spec = "cosine:threshold=-1,run=0,warmup=5"
    with Raw(demo, spec) as raw:
        raw.skip.set_generated_from(0, 20)
        raw.decode(tokens)
        raw.skip.take_trace(100)
        llama_cpp.llama_memory_seq_cp(raw.memory, 0, 1, -1, -1)
        raw.decode([(500, 30, 1)])
        copied = raw.skip.take_trace(1)
        assert copied.seq_ids[0] == 1
        assert copied.skipped[0].sum() == 21
        llama_cpp.llama_memory_seq_rm(raw.memory, 1, 4, 18)
        llama_cpp.llama_memory_seq_add(raw.memory, 1, 18, -1, -14)  # generated from 6 on now, 30 is 16
        llama_cpp.llama_memory_seq_rm(raw.memory, 1, 10, -1)
        raw.decode([(500, pos, 1) for pos in (10, 11)])
        shifted = raw.skip.take_trace(2)
        assert shifted.skipped.sum(1).tolist() == [0, 21]  # 4th and 5th after the mark: warm-up is 5
        llama_cpp.llama_memory_clear(raw.memory, True)
        raw.decode([(500, 0, 0)])
        assert len(raw.skip.take_trace(1)) == 0


def test_embeddings_stay_dense(demo: Path) -> None:
    kwargs: dict[str, Any] = {"n_ctx": 256, "embedding": True, "verbose": False}
    dense = pyskip.Llama(demo, **kwargs)
    skipping = pyskip.Llama(demo, skip="cosine:threshold=-1,run=0,warmup=0", **kwargs)
    skipping.mark_generated(0)
    a, b = (np.array(llm.embed("The quick brown fox")) for llm in (dense, skipping))
    np.testing.assert_array_equal(a, b)
    dense.close()
    skipping.close()


def test_control_vector(demo: Path, tmp_path: Path) -> None:
    zeroed = tmp_path / "zeroed.gguf"
    zero_layers.zero_layers(demo, zeroed, [5, 6])
    vector = np.random.default_rng(0).standard_normal((29, 576)).astype(np.float32) * 0.05
    data = vector.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    with Raw(demo, "static:5,6") as static, Raw(zeroed) as expected:
        plain = expected.step(tokens_of(5, 10, 0))
        llama_cpp.llama_memory_clear(expected.memory, True)
        for raw in (static, expected):
            assert llama_cpp.llama_set_adapter_cvec(raw.ctx, data, vector.size, 576, 1, 29) == 0
        a, b = static.step(tokens_of(5, 10, 0)), expected.step(tokens_of(5, 10, 0))
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(b, plain)


def make_lora(path: Path, il: int) -> None:
    """An adapter for one layer's ffn_down of the tiny model."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 8.0)
    writer.add_tensor(f"blk.{il}.ffn_down.weight.lora_a", rng.standard_normal((8, 128)).astype(np.float32))
    writer.add_tensor(f"blk.{il}.ffn_down.weight.lora_b", rng.standard_normal((64, 8)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.slow
def test_lora_on_a_skipped_block_is_skipped_with_it(tiny: Path, tmp_path: Path) -> None:
    lora = tmp_path / "lora.gguf"
    make_lora(lora, 2)

    def logits(skip: str, **kwargs: Any) -> npt.NDArray[np.float32]:
        llm = pyskip.Llama(tiny, skip=skip, logits_all=True, verbose=False, **kwargs)
        llm.eval([5, 6, 7, 8])
        result: npt.NDArray[np.float32] = llm.scores[:4].copy()
        llm.close()
        return result

    adapted = {"lora_path": str(lora)}
    np.testing.assert_array_equal(logits("static:2", **adapted), logits("static:2"))
    assert not np.array_equal(logits("static:3", **adapted), logits("static:3"))


def test_pickle_keeps_the_policy(tiny: Path) -> None:
    llm = pyskip.Llama(tiny, skip="static:2", verbose=False)
    copy = pickle.loads(pickle.dumps(llm))
    assert copy.skip == llm.skip
    assert copy.skippable_layers == tuple(range(6))
