"""Attention under a profile: gates and stand-ins against NumPy, invariants, rates that hold, files that are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from conftest import make_profile
from raw import Raw
from test_batches import tiny_tokens
from test_profile_files import CURVE, N_EMBD, PROVENANCE, full, layer, refused

import pyskip
from pyskip.calibration.write import LayerFit, Provenance, write_profile
from pyskip.models.profile import Point, Profile
from pyskip.policy import Profiled, Random, parse_skip

F32 = npt.NDArray[np.float32]
ALL = "profile:error=0,attn=0.95,warmup=0"  # its threshold of attention is above every score of those that always skip


@pytest.fixture(scope="module")
def profile(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    path = tmp_path_factory.mktemp("attention") / "both.skip.gguf"
    make_profile.make_profile(tiny, path, stand_in="gated", rank=32, kind="f32", attention=True)
    return Profile(path)


def made(path: Path, model: Path, attention: list[LayerFit | None]) -> Profile:
    """The model's, with these gates of attention and FFNs that never skip."""
    info = pyskip.inspect(model)
    never = np.zeros(info.n_embd + 2, np.float32)
    never[-1] = 99
    bias = np.zeros(info.n_embd, np.float32)
    provenance = Provenance(info.name, info.fingerprint, "none", "made up", "none", "", 0, 4, "test")
    curve = [Point(r, 4 * r - 2, 1.0, 0.0, 0.0, 0.0, 1.0) for r in (0.05, 0.5, 0.95)]
    write_profile(
        path, [LayerFit(never, bias)] * info.n_layer, curve, 0, provenance, "F32",
        attention=attention, attention_curve=curve,
    )  # fmt: skip
    return Profile(path)


def always(n_embd: int, up: F32, bias: F32 | None = None) -> LayerFit:
    gate = np.zeros(n_embd + 2, np.float32)
    gate[-1] = -99
    return LayerFit(gate, np.zeros(n_embd, np.float32) if bias is None else bias, {"skip_up": up})


def weights(path: Path) -> dict[str, F32]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("batched", [True, False])
def test_gates_and_stand_ins_equal_numpy(tiny: Path, profile: Profile, batched: bool) -> None:
    """Scores, decisions and what leaves attention, from what enters it, in a batch and in single steps."""
    w, norms = weights(profile.path), weights(tiny)
    policy = Profiled(error=0.5, attn=0.5)
    threshold = profile.attention_threshold(0.5)
    n_skipped = n_run = 0
    with Raw(tiny, taps=("ffn_inp-", "l_out-"), exact=True) as raw:
        raw.skip.set_policy(policy, profile)
        raw.skip.set_generated_from(0, 0)
        tokens = tiny_tokens(90, 40, 0)
        for part in [tokens] if batched else [[token] for token in tokens]:
            raw.decode(part)
            trace = raw.skip.take_trace(4096)
            for il in range(1, 5):
                x, z = (raw.tapped[name].reshape(len(part), -1) for name in (f"l_out-{il - 1}", f"ffn_inp-{il}"))
                xn = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * norms[f"blk.{il}.attn_norm.weight"]
                gate = w[f"blk.{il}.attn_skip_gate.weight"]
                score = xn @ gate[:-2] + gate[-2] * np.log(np.linalg.norm(x, axis=1)) + gate[-1]
                np.testing.assert_allclose(trace.attention_similarity[:, il], score, rtol=1e-3, atol=1e-4)
                warm = np.array([pos for _, pos, _ in part]) >= profile.warmup
                skipped = warm & (trace.attention_similarity[:, il] < threshold)
                np.testing.assert_array_equal(trace.attention[:, il], skipped)
                y = xn @ w[f"blk.{il}.attn_skip_down.weight"].T @ w[f"blk.{il}.attn_skip_up.weight"].T
                expected = x + y + w[f"blk.{il}.attn_skip.bias"]
                np.testing.assert_allclose(z[skipped], expected[skipped], rtol=1e-3, atol=1e-3 * np.abs(expected).max())
                n_skipped, n_run = n_skipped + int(skipped.sum()), n_run + int((~skipped).sum())
            assert not trace.attention[:, 5].any()  # the last layer's always runs
            assert np.isnan(trace.attention_similarity[:, 5]).all()
    assert min(n_skipped, n_run) > 30


def test_all_skipped_without_stand_in_equals_static(tiny: Path, tmp_path: Path) -> None:
    """Which a model with `attn_output` zeroed equals bit for bit (test_attention.py)."""
    nothing = always(64, np.zeros((64, 64), np.float32))
    own = made(tmp_path / "p.skip.gguf", tiny, [None, nothing, None, nothing, None, None])
    tokens = tiny_tokens(91, 40, 0)
    for batched in (True, False):
        with Raw(tiny) as gated, Raw(tiny, "static:attn=1+3") as static, Raw(tiny) as dense:
            gated.skip.set_policy(parse_skip(ALL), own)
            for raw in (gated, static):
                raw.skip.set_generated_from(0, 0)
            a, b, c = (raw.decode(tokens) if batched else raw.step(tokens) for raw in (gated, static, dense))
            np.testing.assert_array_equal(a, b)
            assert np.abs(a - c).max() > 0.1
            assert gated.skip.stats(parse_skip(ALL)).attention_per_layer == (0, 1, 0, 1, 0, 0)


def test_stand_ins_that_are_exact_equal_dense(tiny: Path, tmp_path: Path) -> None:
    """Attention that looks at one token alone is the linear map from xn to the output of its own V."""
    w = weights(tiny)
    n_head, n_kv, size = 4, 2, 16
    assert w["blk.0.attn_v.weight"].shape == (n_kv * size, 64)
    layers: list[LayerFit | None] = []
    for il in range(5):
        v = w[f"blk.{il}.attn_v.weight"].reshape(n_kv, size, 64).repeat(n_head // n_kv, axis=0).reshape(64, 64)
        layers.append(always(64, np.asarray(w[f"blk.{il}.attn_output.weight"] @ v, np.float32)))
    own = made(tmp_path / "p.skip.gguf", tiny, [*layers, None])
    one = [(7 + seq, 0, seq) for seq in range(4)]
    with Raw(tiny, exact=True) as gated, Raw(tiny, exact=True) as dense:
        gated.skip.set_policy(parse_skip(ALL), own)
        gated.skip.set_generated_from(-1, 0)
        np.testing.assert_allclose(gated.decode(one), dense.decode(one), atol=1e-4)
        assert gated.skip.stats(parse_skip(ALL)).attention_per_layer == (1, 1, 1, 1, 1, 0)


def test_a_gate_that_never_skips_is_dense(tiny: Path, profile: Profile) -> None:
    tokens = tiny_tokens(92, 60, 0)
    for policy in (Profiled(error=0.0, attn=1e-6, hold=False), Profiled(rate=0.0, attn=0.0)):
        with Raw(tiny) as dense, Raw(tiny) as gated:
            gated.skip.set_policy(policy, profile)
            gated.skip.set_generated_from(0, 0)
            np.testing.assert_array_equal(gated.step(tokens[:30]), dense.step(tokens[:30]))
            np.testing.assert_array_equal(gated.decode(tokens[30:]), dense.decode(tokens[30:]))
            assert gated.skip.stats(policy).attention_rate == 0.0


@pytest.mark.parametrize("spec", ["profile:rate=0.3,attn=0.3", "profile:rate=0,attn=0.4", "profile:error=1,attn=0.4"])
def test_one_batch_equals_single_steps(tiny: Path, tmp_path: Path, spec: str) -> None:
    """Four sequences in one batch, which spans of held rates cut."""
    path = tmp_path / "mild.skip.gguf"
    make_profile.make_profile(tiny, path, stand_in="gated", rank=32, kind="f32", scale=0.05, attention=True)
    own, sequences = Profile(path), [tiny_tokens(93 + s, 100, s) for s in range(4)]
    with Raw(tiny, exact=True) as batch, Raw(tiny, exact=True) as alone:
        for raw in (batch, alone):
            raw.skip.set_policy(parse_skip(spec), own)
            raw.skip.set_generated_from(-1, 0)
        together = batch.decode([token for group in zip(*sequences, strict=True) for token in group])
        steps = np.concatenate([alone.step(tokens) for tokens in sequences])
        for seq in range(4):
            found, expected = batch.skip.take_trace(4096, seq), alone.skip.take_trace(4096, seq)
            assert 0.1 < found.attention.mean() < 0.9
            np.testing.assert_array_equal(found.attention, expected.attention)
            np.testing.assert_array_equal(found.skipped, expected.skipped)
            np.testing.assert_allclose(found.attention_similarity, expected.attention_similarity, atol=1e-3)
            assert batch.skip.stats(parse_skip(spec), seq) == alone.skip.stats(parse_skip(spec), seq)
    np.testing.assert_allclose(together, steps[[s * 100 + i for i in range(100) for s in range(4)]], atol=1e-3)


def test_another_rate_in_mid_session_equals_a_fresh_one(tiny: Path, profile: Profile) -> None:
    first, then = tiny_tokens(94, 20, 0), [(7 + i, 20 + i, 0) for i in range(20)]
    with Raw(tiny) as changed, Raw(tiny) as fresh:
        for raw in (changed, fresh):
            raw.skip.set_policy(Profiled(rate=0.2, attn=0.2), profile)
            raw.skip.set_generated_from(0, 0)
            raw.step(first)
        for policy in (Profiled(rate=0.2), Random(rate=0.2, attn=0.4), Profiled(rate=0.4, attn=0.5)):
            changed.skip.set_policy(policy, profile)
        fresh.skip.set_policy(Profiled(rate=0.4, attn=0.5), profile)
        np.testing.assert_array_equal(changed.step(then), fresh.step(then))


def test_policies_mixed_in_one_batch(tiny: Path, profile: Profile) -> None:
    """What gates of attention decide for one sequence is not seen by the others, nor in their traces."""
    specs = ("off", "profile:rate=0.4,attn=0.3", "0.3", "static:2,attn=3", "random:rate=0.1,attn=0.5,warmup=2")
    sequences = [tiny_tokens(95 + seq, 64, seq) for seq in range(len(specs))]
    with Raw(tiny, exact=True, n_seq=5) as mixed:
        for seq, spec in enumerate(specs):
            mixed.skip.set_policy(parse_skip(spec), profile, seq)
            mixed.skip.set_generated_from(seq, 20)
        logits = mixed.decode([token for group in zip(*sequences, strict=True) for token in group])
        for seq, spec in enumerate(specs):
            with Raw(tiny, exact=True, n_seq=5) as alone:
                alone.skip.set_policy(parse_skip(spec), profile)
                alone.skip.set_generated_from(seq, 20)
                np.testing.assert_allclose(logits[seq::5], alone.decode(sequences[seq]), atol=1e-3, err_msg=spec)
                assert mixed.skip.stats(parse_skip(spec), seq) == alone.skip.stats(parse_skip(spec))
                found, expected = mixed.skip.take_trace(4096, seq), alone.skip.take_trace(4096)
                np.testing.assert_allclose(
                    found.attention_similarity, expected.attention_similarity, atol=1e-3, err_msg=spec
                )


def test_prompts_run_dense(tiny: Path, profile: Profile) -> None:
    """Also where FFNs of prompts skip."""
    with Raw(tiny, exact=True) as both, Raw(tiny, exact=True) as ffn:
        both.skip.set_policy(parse_skip("profile:rate=0.2,prompt=0.3,attn=0.3"), profile)
        ffn.skip.set_policy(parse_skip("profile:rate=0.2,prompt=0.3"), profile)
        for raw in (both, ffn):
            raw.skip.set_generated_from(0, 100)
        tokens = tiny_tokens(96, 140, 0)
        np.testing.assert_allclose(both.decode(tokens[:100]), ffn.decode(tokens[:100]), atol=1e-4)
        stats = both.skip.stats(parse_skip("0.2"))
        assert sum(stats.prompt_skipped) > 0 == sum(stats.prompt_attention_skipped)
        both.step(tokens[100:])
        assert sum(both.skip.stats(parse_skip("0.2")).attention_skipped) > 0


@pytest.mark.parametrize(("rate", "attn"), [(0.3, 0.2), (0.0, 0.4), (0.4, 0.1)])
def test_both_rates_hold(tiny: Path, profile: Profile, rate: float, attn: float) -> None:
    """Within 2 points over 256 tokens, whatever the curve says of other text."""
    policy = Profiled(rate=rate, attn=attn)
    with Raw(tiny) as raw:
        raw.skip.set_policy(policy, profile)
        raw.skip.set_generated_from(0, 0)
        for begin in (0, 256, 512):
            raw.skip.reset_counters()
            raw.decode([(t, begin + pos, 0) for t, pos, _ in tiny_tokens(97 + begin, 256, 0)])
            stats = raw.skip.stats(policy)
            assert stats.rate == pytest.approx(rate, abs=0.02)
            assert stats.attention_rate == pytest.approx(attn, abs=0.02)
    n = stats.n_tokens
    assert n == 256
    for e, s in zip(stats.attention_evaluated, stats.attention_skipped, strict=True):
        assert e + s == n


def test_a_coin_skips_attention_with_and_without_stand_ins(tiny: Path, profile: Profile) -> None:
    tokens = tiny_tokens(98, 300, 0)
    decided = []
    for policy in (Random(rate=0.0, attn=0.4, warmup=10), Random(rate=0.0, attn=0.4, warmup=10, stand_in=True)):
        with Raw(tiny) as raw:
            raw.skip.set_policy(policy, profile)
            raw.skip.set_generated_from(0, 0)
            raw.decode(tokens)
            trace = raw.skip.take_trace(4096)
            decided.append(trace.attention)
            assert not trace.skipped.any()
            assert not trace.attention[:10].any()
    np.testing.assert_array_equal(decided[0], decided[1])
    assert decided[0][10:, :5].mean() == pytest.approx(0.4, abs=0.04)
    assert not decided[0][:, 5].any()


def test_the_cache_is_whole(tiny: Path, tmp_path: Path) -> None:
    """Tokens after those that skipped see their K and V, which in the first layer are those of a dense run."""
    from test_attention import cache_of

    own = made(tmp_path / "p.skip.gguf", tiny, [None, None, *[always(64, np.eye(64, dtype=np.float32))] * 3, None])
    caches = []
    for policy in (parse_skip("off"), parse_skip(ALL)):
        with Raw(tiny) as raw:
            raw.skip.set_policy(policy, own)
            raw.skip.set_generated_from(0, 0)
            raw.decode(tiny_tokens(99, 30, 0))
            raw.step([(9, 30 + i, 0) for i in range(10)])
            caches.append(cache_of(raw, 40, 6, 64))
    np.testing.assert_array_equal(caches[1][:, :3], caches[0][:, :3])
    assert (caches[1][:, 3:] != caches[0][:, 3:]).any(axis=-1).all()
    assert caches[1].any(axis=-1).all()


# What is refused


def test_a_profile_without_gates_of_attention(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "ffn.skip.gguf"
    make_profile.make_profile(tiny, path)
    own = Profile(path)
    assert (own.attention_rank, own.attention_curve, set(own.attention_gate_bytes)) == (0, (), {0})
    with Raw(tiny) as raw:
        for policy in (Profiled(rate=0.2, attn=0.2), Random(attn=0.2, stand_in=True)):
            with pytest.raises(pyskip.PolicyError, match=r"no gates of attention: leave attn out, or .* --attention"):
                raw.skip.set_policy(policy, own)
        raw.skip.set_policy(Profiled(rate=0.2, attn=0.0), own)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("profile:attn=1.5", "profile attn is 1.5, expected a number from 0 to 1"),
        ("profile:attn=nan", "profile attn is nan"),
        ("random:attn=-1", "random attn is -1.0"),
        ("profile:attn=0.1,attn=0.2", "sets attn twice"),
        ("prompt:attn=0.1", "prompt has no setting"),
    ],
)
def test_specifications_that_are_none(spec: str, match: str) -> None:
    with pytest.raises(pyskip.PolicyError, match=match):
        parse_skip(spec)


def test_specifications_stand_for_themselves(tiny: Path, profile: Profile) -> None:
    for spec in ("profile:rate=0.25,attn=0.2", "profile:error=0.5,attn=0.2,warmup=3", "profile:attn=0.1,hold=0"):
        assert str(parse_skip(spec)) == spec
        assert parse_skip(str(parse_skip(spec))) == parse_skip(spec)
    assert "attn=0.5" in str(parse_skip("random:attn=0.5"))
    with Raw(tiny) as raw, pytest.raises(pyskip.PolicyError, match=r"attn 0\.99 is beyond the profile's curve"):
        raw.skip.set_policy(Profiled(rate=0.2, attn=0.99), profile)


BROKEN: dict[str, tuple[list[LayerFit | None], list[Point], str]] = {
    "rank": ([layer(skip_up=np.ones((N_EMBD, 8), np.float32))], CURVE, r"blk\.0\.attn_skip_up\.weight: found f32 \[8"),
    "bias alone": ([layer()], CURVE, r"blk\.0\.attn_skip_up\.weight: found none"),
    "gated": ([layer(skip_gate_up=np.ones((64, N_EMBD), np.float32))], CURVE, r"attn_skip_up\.weight: found none"),
    "nan": ([replace(full(), gate=np.full(N_EMBD + 2, np.nan, np.float32))], CURVE, r"attn_skip_gate\.weight: .* not"),
    "gate": ([replace(full(), gate=np.ones(9, np.float32))], CURVE, r"blk\.0\.attn_skip_gate\.weight: found f32 \[9"),
    "bias": ([replace(full(), bias=np.ones(3, np.float32))], CURVE, r"blk\.0\.attn_skip\.bias: found f32 \[3"),
    "last layer": ([full(), None, full()], CURVE, r"tensors: found 15, expected 12 that"),
    "only the last": ([None, None, full()], CURVE, r"blk\.N\.attn_skip_gate\.weight: found none"),
    "no curve": ([full()], [], r"tensors: found 12, expected 9 that"),
    "falling": ([full()], CURVE[::-1], r"pyskip\.attention\.curve\.rate: found a rate that is no higher"),
    "threshold": ([full()], [replace(CURVE[0], threshold=np.nan)], r"pyskip\.attention\.curve\.threshold: found nan"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_tensors_and_curves_that_do_not_fit(tmp_path: Path, name: str) -> None:
    attention, curve, match = BROKEN[name]
    path = tmp_path / "broken.skip.gguf"
    write_profile(
        path, [full(), full(), full()], CURVE, 0, PROVENANCE, "F32", attention=attention, attention_curve=curve
    )
    refused(path, match)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sound.skip.gguf"
    low = layer(skip_down=np.ones((8, N_EMBD), np.float32), skip_up=np.ones((N_EMBD, 8), np.float32))
    write_profile(path, [full()] * 3, CURVE, 1, PROVENANCE, "F32", attention=[None, low], attention_curve=CURVE[:1])
    own = Profile(path)
    assert (own.rank, own.attention_rank, len(own.curve), len(own.attention_curve)) == (N_EMBD, 8, 2, 1)
    assert own.attention_curve[0] == own.curve[0]
    assert own.attention_stand_in_bytes == (0, 4 * N_EMBD * 17, 0)
    assert own.attention_gate_bytes == (0, 4 * (N_EMBD + 2), 0)
