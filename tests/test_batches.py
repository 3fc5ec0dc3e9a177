"""Invariant 4: what happens to a token depends on the token, its position and its sequence, never on its batch."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from raw import Raw, Token

from pyskip import PolicyError, parse_skip
from pyskip.models.profile import BUNDLED, Profile

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


HELD = "profile:rate=0.3,warmup=4"


def profile_of_demo() -> Profile:
    return Profile(BUNDLED / "smollm2-135m-instruct-q4_1.skip.gguf")


def check_same(found: Raw, expected: Raw, seq: int = -1) -> None:
    """The same decisions. With f32 weights scores differ by float noise only, and these tokens have no tie."""
    f, e = found.skip.take_trace(4096, seq), expected.skip.take_trace(4096, seq)
    f_order, e_order = (np.lexsort((t.positions, t.seq_ids)) for t in (f, e))
    np.testing.assert_array_equal(f.positions[f_order], e.positions[e_order])
    np.testing.assert_array_equal(f.skipped[f_order], e.skipped[e_order])
    np.testing.assert_allclose(f.similarity[f_order], e.similarity[e_order], atol=1e-3)


def test_a_rate_that_holds_is_the_same_in_one_batch_and_in_single_steps(demo_f32: Path) -> None:
    tokens, profile = tokens_of(30, 90, 0), profile_of_demo()
    with Raw(demo_f32, exact=True) as batch, Raw(demo_f32, exact=True) as steps:
        for raw in (batch, steps):
            raw.skip.set_policy(parse_skip(HELD), profile)
            raw.skip.set_generated_from(0, 20)
        a = batch.decode(tokens)
        b = np.concatenate([steps.decode(tokens[:21]), steps.step(tokens[21:])])
        np.testing.assert_allclose(a, b, atol=1e-3)
        assert abs(steps.skip.stats(parse_skip(HELD)).rate - 0.3) < 0.06
        check_same(batch, steps)


def test_what_is_taken_back_is_decided_again_as_before(demo_f32: Path) -> None:
    tokens, profile = tokens_of(31, 100, 0), profile_of_demo()
    with Raw(demo_f32, exact=True) as raw, Raw(demo_f32, exact=True) as once:
        for each in (raw, once):
            each.skip.set_policy(parse_skip(HELD), profile)
            each.skip.set_generated_from(0, 0)
        once.decode(tokens)
        expected = once.skip.take_trace(4096).skipped
        raw.decode(tokens[:80])
        raw.decode([(7, pos, 0) for pos in range(80, 90)])  # another end
        for pos in (80, 41, 3):
            llama_cpp.llama_memory_seq_rm(raw.memory, 0, pos, -1)
            raw.skip.take_trace(4096)
            raw.decode(tokens[pos:])
            np.testing.assert_array_equal(raw.skip.take_trace(4096).skipped, expected[pos:])
        llama_cpp.llama_memory_seq_cp(raw.memory, 0, 1, -1, -1)  # a copy goes on as the original
        raw.decode([(500 + i, 100 + i, seq) for i in range(20) for seq in (0, 1)])
        np.testing.assert_array_equal(raw.skip.take_trace(99, 0).skipped, raw.skip.take_trace(99, 1).skipped)


MIXED = (
    "off",
    "static:5,14,25",
    SPEC,
    HELD,
    "profile:rate=0.4,hold=0,warmup=4",
    "random:rate=0.3,warmup=4",
    "profile:rate=0.1,prompt=0.3",
)


def test_policies_mixed_in_one_batch_decide_as_each_alone(demo_f32: Path) -> None:
    """Seven sequences, the first half of each prompt, each under a policy of its own."""
    profile = profile_of_demo()
    sequences = [tokens_of(40 + seq, 96, seq) for seq in range(len(MIXED))]
    with Raw(demo_f32, exact=True, n_seq=8) as mixed:
        for seq, spec in enumerate(MIXED):
            mixed.skip.set_policy(parse_skip(spec), profile, seq)
            mixed.skip.set_generated_from(seq, 80 if "prompt" in spec else 32)
        interleaved = [token for group in zip(*sequences, strict=True) for token in group]
        logits = np.concatenate([mixed.decode(interleaved[i : i + 448]) for i in range(0, len(interleaved), 448)])
        for seq, spec in enumerate(MIXED):
            with Raw(demo_f32, exact=True, n_seq=8) as alone:
                alone.skip.set_policy(parse_skip(spec), profile)
                alone.skip.set_generated_from(seq, 80 if "prompt" in spec else 32)
                expected = alone.decode(sequences[seq])
                np.testing.assert_allclose(logits[seq :: len(MIXED)], expected, atol=1e-3, err_msg=spec)
                found, of_one = mixed.skip.stats(parse_skip(spec), seq), alone.skip.stats(parse_skip(spec))
                assert (found.n_tokens, found.skipped, found.prompt_skipped) == (
                    of_one.n_tokens,
                    of_one.skipped,
                    of_one.prompt_skipped,
                )
                assert sum(found.skipped) + sum(found.prompt_skipped) > 0 or spec == "off"
                check_same(mixed, alone, seq)


def test_two_profiles_in_one_context_are_refused(demo: Path) -> None:
    with Raw(demo) as raw:
        raw.skip.set_policy(parse_skip(HELD), profile_of_demo(), 1)
        raw.skip.set_policy(parse_skip(HELD), profile_of_demo(), 1)  # its own may be replaced
        with pytest.raises(PolicyError, match="another profile"):
            raw.skip.set_policy(parse_skip(HELD), profile_of_demo(), 2)
