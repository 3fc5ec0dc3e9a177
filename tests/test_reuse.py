"""What is in the cache is used again only where this policy, LoRA and control vector would compute the same."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import llama_cpp
import make_profile
import numpy as np
import pytest

import pyskip
from pyskip.runtime.reuse import CacheLog, Origin

PROMPT = [1, 5, 6, 7, 8, 9, 10, 11]


def load(path: Path, **kwargs: object) -> pyskip.Llama:
    return pyskip.Llama(path, **{"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **kwargs})  # type: ignore[arg-type]


@pytest.fixture
def small(tiny: Path) -> Iterator[pyskip.Llama]:
    with closing(load(tiny)) as llm:
        yield llm


def take(llm: pyskip.Llama, prompt: list[int] = PROMPT, n: int = 6) -> list[int]:
    return [token for token, _ in zip(llm.generate(prompt, temp=0), range(n), strict=False)]


def evaluated(llm: pyskip.Llama, prompt: list[int] = PROMPT) -> int:
    """Tokens of the prompt that are decoded; what comes of it is as in a new Llama."""
    generator = llm.generate(prompt, temp=0)
    next(generator)
    generator.close()
    return len(prompt) - int(llm.engine.n_cached)


def test_equal_prompt_under_another_policy(tiny: Path, small: pyskip.Llama) -> None:
    take(small, n=1)  # the cache is the prompt, and its logits are there
    small.skip = "static:0,1,2"
    with closing(load(tiny, skip="static:0,1,2")) as fresh:
        expected = take(fresh)
    assert take(small) == expected
    assert small.skip_stats().prompt_skipped[:3] == (len(PROMPT),) * 3
    small.skip = "off"
    with closing(load(tiny)) as fresh:
        assert take(small) == take(fresh)
    assert evaluated(small, [*PROMPT, 12]) == 1


def test_prefix_under_another_policy(small: pyskip.Llama) -> None:
    take(small)
    small.skip = "static:1"
    assert evaluated(small, [*PROMPT, 20, 21]) == len(PROMPT) + 2
    assert evaluated(small, [*PROMPT, 20, 22]) == 1
    small.skip = "cosine:threshold=0.9,warmup=0,cold_start=1,cold_end=1"  # dense in prompts, as off
    assert evaluated(small, [*PROMPT, 20, 22]) == len(PROMPT) + 2
    small.skip = "off"
    assert evaluated(small, [*PROMPT, 20, 22, 23]) == 1


def test_a_conversation_keeps_what_was_generated(small: pyskip.Llama) -> None:
    small.skip = "cosine:threshold=-1,run=1,cold_start=1,cold_end=1,warmup=0"
    answer = take(small, n=4)
    small.skip = "off"
    assert evaluated(small, [*PROMPT, *answer[:3], 30]) == 1
    small.reset()
    small.skip = "cosine:threshold=-1,run=1,cold_start=1,cold_end=1,warmup=0"
    answer = take(small, n=4)
    assert (
        evaluated(small, [*PROMPT, *answer[:3]]) == 1
    )  # its last token was generated, and the next one is of a prompt


def test_prefill(tiny: Path, tmp_path: Path) -> None:
    profile = tmp_path / "tiny.skip.gguf"
    make_profile.make_profile(tiny, profile)
    with closing(load(tiny, profile=profile, skip="profile:error=1e6,warmup=0")) as llm:
        take(llm)
        llm.skip = "profile:error=1e6,warmup=0,prefill=1"
        llm.reset_skip_stats()
        assert evaluated(llm) == len(PROMPT)
        assert sum(llm.skip_stats().prompt_skipped) > 0


def test_control_vector(tiny: Path, small: pyskip.Llama) -> None:
    dense = take(small)
    take(small, n=1)
    n_embd = small.n_embd()
    rng = np.random.default_rng(1)
    data = (ctypes.c_float * (n_embd * 5))(*rng.normal(size=n_embd * 5).astype(np.float32).tolist())
    assert llama_cpp.llama_set_adapter_cvec(small.ctx, data, len(data), n_embd, 1, 5) == 0
    assert evaluated(small) == len(PROMPT)
    assert llama_cpp.llama_set_adapter_cvec(small.ctx, None, 0, n_embd, 0, 0) == 0
    assert take(small) == dense


def test_lora_scale_is_no_dead_attribute(small: pyskip.Llama) -> None:
    assert small.lora_scale == 1.0
    take(small)
    llama_cpp.llama_set_adapters_lora(small.ctx, None, 0, None)
    assert evaluated(small) == len(PROMPT)


def test_log() -> None:
    log, dense, pruned = CacheLog(), Origin(0, True, ""), Origin(0, True, "static:1")
    generated = Origin(0, False, "cosine")
    log.note(0, dense)
    log.note(4, generated)
    assert log.usable(6, dense) == 6
    assert log.usable(6, pruned) == 0
    assert log.has_logits(4, dense)
    assert not log.has_logits(6, dense)
    log.note(2, pruned)
    assert log.usable(6, dense) == 2
    assert log.usable(6, pruned) == 0
    assert log.usable(6, Origin(1, True, "")) == 0
    log.clear()
    assert log.usable(6, pruned) == 6


def test_a_prompt_that_a_rate_decided_is_used_by_nobody(tiny: Path, tmp_path: Path) -> None:
    """What a held rate skips in a prompt depends on where the prompt ends."""
    profile = tmp_path / "tiny.skip.gguf"
    make_profile.make_profile(tiny, profile)
    with closing(load(tiny, profile=profile, skip="profile:prefill=1,warmup=0")) as llm:
        for skip in ("profile:prefill=1,warmup=0", "off"):
            llm.skip = "profile:prefill=1,warmup=0"
            llm.eval(PROMPT)
            llm.skip = skip
            assert evaluated(llm, [*PROMPT, 12]) == len(PROMPT) + 1
            llm.reset()
