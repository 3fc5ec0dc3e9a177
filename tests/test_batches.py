"""Invariant 4: what happens to a token depends on the token, its position and its sequence, never on its batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from raw import Raw, Token

SPEC = "cosine:threshold=0.974,run=2,warmup=8"


def tokens_of(seed: int, n: int, seq: int) -> list[Token]:
    rng = np.random.default_rng(seed)
    return [(int(t), pos, seq) for pos, t in enumerate(rng.integers(300, 40000, n))]


def check(found: Raw, expected: Raw, a: np.ndarray, b: np.ndarray) -> None:
    """Same decisions but for ties, and the same logits if no tie went the other way."""
    f, e = found.skip.take_trace(4096), expected.skip.take_trace(4096)
    f_at = {(int(s), int(p)): i for i, (s, p) in enumerate(zip(f.seq_ids, f.positions, strict=True))}
    order = [f_at[int(s), int(p)] for s, p in zip(e.seq_ids, e.positions, strict=True)]
    assert len(order) == len(f_at) == len(a)
    assert e.skipped[:, 4:-4].mean() > 0.1
    differ = np.argwhere(f.skipped[order] != e.skipped)
    for i, il in differ:
        # the test that decided it differently was the last one before
        tested = [k for k in range(il) if np.isfinite(e.similarity[i, k])]
        assert abs(e.similarity[i, tested[-1]] - 0.974) < 1e-5
    if len(differ) == 0:
        np.testing.assert_allclose(a[order], b, atol=1e-3)


@pytest.mark.parametrize("spec", [SPEC, "static:5,14,25"])
def test_one_batch_equals_single_steps(demo_f32: Path, spec: str) -> None:
    tokens = tokens_of(1, 256, 0)
    with Raw(demo_f32, spec, exact=True) as batch, Raw(demo_f32, spec, exact=True) as steps:
        batch.skip.set_generated_from(0, 0)
        steps.skip.set_generated_from(0, 0)
        a, b = batch.decode(tokens), steps.step(tokens)
        if spec == SPEC:
            check(batch, steps, a, b)
        else:
            np.testing.assert_allclose(a, b, atol=1e-3)


def test_four_sequences_interleaved(demo_f32: Path) -> None:
    """64 tokens of each of four sequences, as one batch in turn, and one after the other alone. Each is generated from
    another position on."""
    sequences = [tokens_of(10 + seq, 64, seq) for seq in range(4)]
    interleaved = [token for group in zip(*sequences, strict=True) for token in group]
    with Raw(demo_f32, SPEC, exact=True) as batch, Raw(demo_f32, SPEC, exact=True) as alone:
        for raw in (batch, alone):
            raw.skip.set_generated_from(-1, 0)
        a = batch.decode(interleaved)
        b = np.concatenate([alone.step(tokens) for tokens in sequences])
        check(batch, alone, a, b)


def test_mixed_prompt_and_generated_in_one_batch(demo_f32: Path) -> None:
    """One sequence's prompt and another's generated tokens share a batch; the prompt stays dense."""
    prompt, generated = tokens_of(20, 40, 0), tokens_of(21, 40, 1)
    with Raw(demo_f32, "cosine:threshold=-1,run=0,warmup=0", exact=True) as raw, Raw(demo_f32, exact=True) as dense:
        raw.skip.set_generated_from(1, 0)
        logits = raw.decode(prompt + generated)
        trace = raw.skip.take_trace(100)
        assert set(trace.seq_ids.tolist()) == {1}
        np.testing.assert_allclose(logits[:40], dense.decode(prompt), atol=1e-3)
