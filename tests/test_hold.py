"""A rate that is asked for is what is skipped, whatever the text."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import pyskip

N_WINDOW = 256
ROOT = Path(__file__).parents[1]
RUSSIAN = "Погода была ясная, и жители города вышли на улицы, чтобы встретить весну, как делали это каждый год. "
CHINESE = "天气晴朗、城里的人们走上街头、像往年一样迎接春天的到来。孩子们在河边放风筝、老人坐在树下聊天。"


def texts() -> dict[str, str]:
    code = inspect.getsource(argparse)
    prose = (ROOT / "docs" / "calibration.md").read_text("utf-8")
    numbers = " ".join(f"{i * i} {i**3}" for i in range(400))
    return {
        "prose": prose[:4000],
        "code": code[20000:24000],
        "numbers": numbers,
        "scripts": RUSSIAN * 3 + CHINESE * 3 + RUSSIAN * 3,
        "changing": prose[:900] + code[:900] + numbers[:500] + RUSSIAN * 2 + prose[900:1800],
    }


def decided(llm: pyskip.Llama, tokens: list[int], first: int) -> npt.NDArray[np.float64]:
    """The share of blocks skipped by token, [n_tokens - first]."""
    llm.reset()
    llm.engine.clear()
    llm.start_trace(len(tokens))
    llm.mark_generated(first)
    llm.eval(tokens)
    trace = llm.take_trace(len(tokens))
    llm.start_trace(0)
    return np.asarray(trace.skipped.mean(axis=1), np.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "rate"),
    [*((kind, 0.25) for kind in sorted(texts())), ("prose", 0.1), ("changing", 0.1), ("changing", 0.4)],
)
def test_within_two_points_over_any_256_tokens(llm: pyskip.Llama, kind: str, rate: float) -> None:
    llm.skip = rate
    share = decided(llm, llm.tokenize(texts()[kind].encode())[:640], 0)
    assert len(share) > 2 * N_WINDOW
    sums = np.concatenate([[0.0], np.cumsum(share)])
    windows = (sums[N_WINDOW:] - sums[:-N_WINDOW]) / N_WINDOW
    assert np.abs(windows - rate).max() <= 0.02


@pytest.mark.slow
def test_a_fixed_threshold_does_not_hold(llm: pyskip.Llama) -> None:
    rates = []
    for kind in ("numbers", "code"):
        llm.skip = "profile:rate=0.25,hold=0"
        rates.append(decided(llm, llm.tokenize(texts()[kind].encode())[:400], 0).mean())
    assert max(abs(rate - 0.25) for rate in rates) > 0.03


@pytest.mark.slow
def test_a_generation_holds_it_too(llm: pyskip.Llama) -> None:
    llm.skip = 0.25
    tokens = llm.tokenize(b"List every animal that you know, with one sentence about each:")
    generated = [token for token, _ in zip(llm.generate(tokens, temp=0), range(300), strict=False)]  # past its end, too
    assert len(generated) == 300
    assert abs(llm.skip_stats().rate - 0.25) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prose", "code", "numbers"])
def test_prompts_have_a_rate_of_their_own(llm: pyskip.Llama, kind: str) -> None:
    llm.skip = "profile:rate=0.25,prompt=0.2"
    tokens = llm.tokenize(texts()[kind].encode())[:512]
    llm.reset_skip_stats()
    decided(llm, tokens, 480)
    stats = llm.skip_stats()
    assert stats.n_prompt == 480
    # The last layer computes tokens with an output alone. A prompt is decided in pieces of 64 and 128 tokens.
    assert abs(sum(stats.prompt_skipped) / (480 * len(stats.skipped)) - 0.2) < 0.025
    llm.reset_skip_stats()
    decided(llm, tokens[:40], 32)  # all of a short prompt runs
    assert sum(llm.skip_stats().prompt_skipped) == 0


def test_nobody_skips_in_a_dense_prompt(llm: pyskip.Llama) -> None:
    llm.skip = 0.25
    llm.reset_skip_stats()
    decided(llm, llm.tokenize(b"The capital of France is Paris, and that of Italy is Rome."), 12)
    stats = llm.skip_stats()
    assert stats.n_prompt == 12
    assert sum(stats.prompt_skipped) == 0
    for evaluated, skipped in zip(stats.evaluated[:-1], stats.skipped, strict=False):  # the last layer: with an output
        assert evaluated + skipped == stats.n_tokens
