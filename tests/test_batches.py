"""Invariant 4: what happens to a token depends on the token, its position and its sequence, never on its batch."""

from __future__ import annotations

from pathlib import Path

import llama_cpp
import make_profile
import numpy as np
import pytest
from raw import Raw, Token

from pyskip import PolicyError, parse_skip
from pyskip.models.profile import Profile

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


@pytest.fixture(scope="module")
def profile(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """Random gates and stand-ins, f32 like the model, whose scores differ between batches by float noise only. The last
    layer has none, as in profiles that are calibrated: rows are packed there, and no gate decides."""
    path = tmp_path_factory.mktemp("profile") / "tiny.skip.gguf"
    make_profile.make_profile(tiny, path, stand_in="gated", rank=32, kind="f32", last_is_dense=True)
    return Profile(path)


def tiny_tokens(seed: int, n: int, seq: int) -> list[Token]:
    return [(token % 320, pos, seq) for token, pos, seq in tokens_of(seed, n, seq)]


def check_same(found: Raw, expected: Raw, seq: int = -1) -> None:
    f, e = found.skip.take_trace(4096, seq), expected.skip.take_trace(4096, seq)
    np.testing.assert_array_equal(f.positions, e.positions)
    np.testing.assert_array_equal(f.skipped, e.skipped)
    np.testing.assert_array_equal(f.attention, e.attention)
    np.testing.assert_allclose(f.similarity, e.similarity, atol=1e-4)


def test_a_rate_that_holds_is_the_same_in_one_batch_and_in_single_steps(tiny: Path, profile: Profile) -> None:
    tokens = tiny_tokens(30, 200, 0)
    with Raw(tiny, exact=True) as batch, Raw(tiny, exact=True) as steps:
        for raw in (batch, steps):
            raw.skip.set_policy(parse_skip(HELD), profile)
            raw.skip.set_generated_from(0, 20)
        a = batch.decode(tokens)
        b = np.concatenate([steps.decode(tokens[:21]), steps.step(tokens[21:])])
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert abs(steps.skip.stats(parse_skip(HELD)).rate - 0.3) < 0.02
        check_same(batch, steps)


def test_a_prompts_rate_is_the_same_in_one_batch_and_in_pieces(tiny: Path, profile: Profile) -> None:
    tokens = tiny_tokens(33, 300, 0)
    spec = parse_skip("profile:rate=0.3,prompt=0.3,warmup=4")
    with Raw(tiny, exact=True) as batch, Raw(tiny, exact=True) as pieces:
        for raw in (batch, pieces):
            raw.skip.set_policy(spec, profile)
            raw.skip.set_generated_from(0, 280)
        a = batch.decode(tokens)
        b = np.concatenate([pieces.decode(tokens[i : i + 37]) for i in range(0, 300, 37)])
        np.testing.assert_allclose(a, b, atol=1e-4)
        whole, parts = batch.skip.stats(spec), pieces.skip.stats(spec)
        assert whole.prompt_skipped == parts.prompt_skipped
        assert abs(sum(whole.prompt_skipped) / (280 * 6) - 0.3) < 0.02
        check_same(batch, pieces)


def test_what_is_taken_back_is_decided_again_as_before(tiny: Path, profile: Profile) -> None:
    tokens = tiny_tokens(31, 200, 0)
    with Raw(tiny, exact=True) as raw, Raw(tiny, exact=True) as once:
        for each in (raw, once):
            each.skip.set_policy(parse_skip(HELD), profile)
            each.skip.set_generated_from(0, 0)
        once.decode(tokens)
        expected = once.skip.take_trace(4096).skipped
        raw.decode(tokens[:150])
        raw.decode([(7, pos, 0) for pos in range(150, 170)])  # another end
        for pos in (150, 41, 3):
            llama_cpp.llama_memory_seq_rm(raw.memory, 0, pos, -1)
            raw.skip.take_trace(4096)
            raw.decode(tokens[pos:])
            np.testing.assert_array_equal(raw.skip.take_trace(4096).skipped, expected[pos:])
        llama_cpp.llama_memory_seq_cp(raw.memory, 0, 1, -1, -1)  # a copy goes on as the original
        raw.decode([(50 + i, 200 + i, seq) for i in range(20) for seq in (0, 1)])
        np.testing.assert_array_equal(raw.skip.take_trace(99, 0).skipped, raw.skip.take_trace(99, 1).skipped)


MIXED = (
    "off",
    "static:1,3",
    "cosine:threshold=0.9,run=1,cold_start=1,cold_end=1,warmup=4",
    HELD,
    "profile:rate=0.4,hold=0,warmup=4",
    "random:rate=0.3,warmup=4",
    "random:rate=0.4,warmup=4,stand_in=1",
    "profile:rate=0.1,prompt=0.3",
    "static:1,attn=2",
    "adaskip:n=4",
    "prompt:rate=0.4",
)


def test_policies_mixed_in_one_batch_decide_as_each_alone(tiny: Path, profile: Profile) -> None:
    """Sequences, each under a policy of its own, prompt and generated tokens side by side."""
    sequences = [tiny_tokens(40 + seq, 96, seq) for seq in range(len(MIXED))]
    with Raw(tiny, exact=True, n_seq=len(MIXED), n_ctx=2048) as mixed:
        for seq, spec in enumerate(MIXED):
            mixed.skip.set_policy(parse_skip(spec), profile, seq)
            mixed.skip.set_generated_from(seq, 80 if "prompt" in spec else 32)
        interleaved = [token for group in zip(*sequences, strict=True) for token in group]
        logits = np.concatenate([mixed.decode(interleaved[i : i + 448]) for i in range(0, len(interleaved), 448)])
        for seq, spec in enumerate(MIXED):
            policy = parse_skip(spec)
            with Raw(tiny, exact=True, n_seq=len(MIXED)) as alone:
                alone.skip.set_policy(policy, profile)
                alone.skip.set_generated_from(seq, 80 if "prompt" in spec else 32)
                expected = alone.decode(sequences[seq])
                np.testing.assert_allclose(logits[seq :: len(MIXED)], expected, atol=1e-4, err_msg=spec)
                found, of_one = mixed.skip.stats(policy, seq), alone.skip.stats(policy)
                assert found == of_one
                n_skipped = sum(found.skipped) + sum(found.prompt_skipped) + sum(found.attention_skipped)
                assert n_skipped > 0 or spec == "off"
                check_same(mixed, alone, seq)


def test_two_profiles_in_one_context_are_refused(tiny: Path, profile: Profile) -> None:
    with Raw(tiny) as raw:
        raw.skip.set_policy(parse_skip(HELD), profile, 1)
        raw.skip.set_policy(parse_skip(HELD), Profile(profile.path), 1)  # its own may be replaced
        with pytest.raises(PolicyError, match="another profile"):
            raw.skip.set_policy(parse_skip(HELD), profile, 2)


def test_what_nobody_needs_is_not_in_the_graph(tiny: Path, profile: Profile) -> None:
    """Gates are in a graph only if a token of its batch may use them."""
    with Raw(tiny, taps=("pyskip_gate-",)) as raw:

        def has_gates(tokens: list[Token]) -> bool:
            raw.tapped.clear()
            raw.decode(tokens)
            return bool(raw.tapped)

        raw.skip.set_policy(parse_skip(HELD), profile, 1)
        raw.skip.set_generated_from(1, 20)
        prompt, off = tiny_tokens(60, 20, 1), tiny_tokens(61, 20, 0)
        assert not has_gates(prompt + off)
        assert has_gates([(5, 20, 1), (5, 20, 0)])
        assert not has_gates([(5, 21, 0)])
        assert has_gates([(5, 21, 1)])
        raw.skip.set_policy(parse_skip("static:1"), None, 1)
        assert not has_gates([(5, 22, 1)])
        assert raw.skip.stats(parse_skip(HELD), 0).n_tokens == 0  # of a policy that is off nothing is counted
