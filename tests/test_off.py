"""Invariant 1: with the policy off, logits are those of unpatched llama.cpp, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Logits


@pytest.mark.parametrize("threads", ["1", "2"])
def test_off_equals_unpatched(run_logits: Logits, demo: Path, threads: str) -> None:
    expected = run_logits("reference", demo, "--threads", threads)
    found = run_logits("pyskip", demo, "--threads", threads)
    assert expected["tokens"].shape == (20, 64)
    assert len(np.unique(expected["digests"])) > 20 * 64  # the logits do differ from token to token
    np.testing.assert_array_equal(found["digests"], expected["digests"])


def test_never_skipping_equals_unpatched(run_logits: Logits, demo: Path) -> None:
    """Invariant 3: a conditional graph whose test never passes computes what upstream's own does."""
    expected = run_logits("reference", demo, "--prompts", "4")
    found = run_logits(
        "pyskip", demo, "--prompts", "4", "--skip", "cosine:threshold=2,cold_start=0,cold_end=0,warmup=0"
    )
    np.testing.assert_array_equal(found["digests"], expected["digests"])
