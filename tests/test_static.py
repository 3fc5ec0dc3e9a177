"""Invariant 2: `static:L` equals unpatched llama.cpp on a model whose layer-L ffn_down is zero, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Logits, zero_layers

import pyskip


@pytest.mark.parametrize("step", [(), ("--step",)], ids=["batch", "step"])
def test_static_equals_zeroed_ffn_down(run_logits: Logits, demo: Path, tmp_path: Path, step: tuple[str, ...]) -> None:
    zeroed = tmp_path / "zeroed.gguf"
    zero_layers.zero_layers(demo, zeroed, [5, 14, 25])
    few = ("--prompts", "5", *step)
    expected = run_logits("reference", zeroed, *few)
    found = run_logits("pyskip", demo, *few, "--skip", "static:5,14,25")
    np.testing.assert_array_equal(found["digests"], expected["digests"])
    dense = run_logits("pyskip", demo, *few)
    assert not np.array_equal(found["digests"], dense["digests"])


def test_first_and_last_layer(run_logits: Logits, tiny: Path, tmp_path: Path) -> None:
    """In the last layer the rows are gathered, and may be none."""
    zeroed = tmp_path / "zeroed.gguf"
    zero_layers.zero_layers(tiny, zeroed, [0, 3, 5])
    expected = run_logits("reference", zeroed, "--prompts", "5")
    found = run_logits("pyskip", tiny, "--prompts", "5", "--skip", "static:0,3,5")
    np.testing.assert_array_equal(found["digests"], expected["digests"])


def test_every_layer(tiny: Path) -> None:
    llm = pyskip.Llama(tiny, skip="static:0,1,2,3,4,5", verbose=False)
    llm.create_completion("w1 w2", max_tokens=8, temperature=0)
    stats = llm.skip_stats()
    assert stats.rate == 1.0
    assert stats.per_layer == (1.0,) * 6
    assert sum(stats.prompt_evaluated) == 0
