"""Profiles at run time: gates and stand-ins against NumPy, and the invariants of every policy under a profile."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from conftest import make_profile, make_random
from raw import Raw, Token

import pyskip
from pyskip.binding.kernels import kernels_chosen
from pyskip.evaluation import ffn_bytes_saved
from pyskip.models.profile import Profile, path_beside
from pyskip.policy import Profiled

KINDS = [("linear", None), ("linear", 24), ("gated", 32), ("none", None)]


def tokens_of(seed: int, n: int, n_vocab: int, seq: int = 0) -> list[Token]:
    rng = np.random.default_rng(seed)
    return [(int(t), pos, seq) for pos, t in enumerate(rng.integers(3, n_vocab, n))]


def weights(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def norm_weights(model: Path) -> dict[str, npt.NDArray[np.float32]]:
    return {t.name: np.array(t.data) for t in gguf.GGUFReader(model).tensors if "ffn_norm" in t.name}


def stand_in(w: dict[str, npt.NDArray[np.float32]], il: int, xn: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    def get(name: str) -> npt.NDArray[np.float32]:
        return w[f"blk.{il}.{name}.weight"]

    out = np.zeros_like(xn)
    if f"blk.{il}.skip_gate_up.weight" in w:
        g, u = np.split(xn @ get("skip_gate_up").T, 2, axis=1)
        out = (g / (1 + np.exp(-g)) * u) @ get("skip_down").T
    elif f"blk.{il}.skip_down.weight" in w:
        out = xn @ get("skip_down").T @ get("skip_up").T
    elif f"blk.{il}.skip_up.weight" in w:
        out = xn @ get("skip_up").T
    return np.asarray(out + w[f"blk.{il}.skip.bias"], np.float32)


@pytest.fixture(scope="module")
def profiles(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int | None], Path]:
    folder = tmp_path_factory.mktemp("profiles")
    made = {}
    for kind, rank in KINDS:
        made[kind, rank] = folder / f"{kind}-{rank}.skip.gguf"
        make_profile.make_profile(tiny, made[kind, rank], stand_in=kind, rank=rank, kind="f32")
    return made


@pytest.mark.parametrize("kernels", ["fast", "upstream"])
@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_k", "q3_k", "q2_k"])
def test_quantised_stand_ins_equal_numpy(tmp_path: Path, kind: str, kernels: str) -> None:
    """Packed for pyskip's kernels or plain, up to the quantisation of activations; in a batch and in single steps."""
    model, path = tmp_path / "m.gguf", tmp_path / "m.skip.gguf"
    make_random.make(model, replace(make_random.SHAPES["tiny"], n_embd=256))
    width = 256 if kind.endswith("k") else 288
    make_profile.make_profile(model, path, stand_in="gated", rank=width, kind=kind)
    assert gguf.GGMLQuantizationType[kind.upper()] in {t.tensor_type for t in gguf.GGUFReader(path).tensors}
    w, norms, missed, size = weights(path), norm_weights(model), 0.0, 0.0
    with kernels_chosen(kernels):
        profile = Profile(path)
    with Raw(model, taps=("ffn_inp-", "l_out-"), exact=True) as raw:
        raw.skip.set_policy(Profiled(rate=0.5, hold=False), profile)
        raw.skip.set_generated_from(0, 0)
        for part in (tokens_of(3, 21, 320), [(5, 21, 0)]):
            raw.decode(part)
            skipped = raw.skip.take_trace(4096).skipped
            for il in range(raw.skip.n_layer):
                x, z = (raw.tapped[f"{name}-{il}"].reshape(len(part), -1) for name in ("ffn_inp", "l_out"))
                xn = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * norms[f"blk.{il}.ffn_norm.weight"]
                expected, rows = stand_in(w, il, xn), skipped[:, il]
                missed += float(((z - x - expected)[rows] ** 2).sum())
                size += float((expected[rows] ** 2).sum())
    assert size > 0
    assert missed < 1e-3 * size


@pytest.mark.parametrize("key", KINDS)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.slow
def test_gates_and_stand_ins_equal_numpy(
    tiny: Path, profiles: dict[tuple[str, int | None], Path], key: tuple[str, int | None], batched: bool
) -> None:
    """Scores, decisions and what leaves each block, from what enters it, in a batch and in single steps."""
    profile, w, norms = Profile(profiles[key]), weights(profiles[key]), norm_weights(tiny)
    tokens = tokens_of(3, 40, 320)
    n_skipped = n_run = 0
    policy = Profiled(rate=0.5, hold=False)
    with Raw(tiny, taps=("ffn_inp-", "l_out-", "ffn_out-"), exact=True) as raw:
        raw.skip.set_policy(policy, profile)
        raw.skip.set_generated_from(0, 0)
        for part in [tokens] if batched else [[token] for token in tokens]:
            raw.decode(part)
            trace = raw.skip.take_trace(4096)
            for il in range(raw.skip.n_layer):
                x = raw.tapped[f"ffn_inp-{il}"].reshape(len(part), -1)
                z = raw.tapped[f"l_out-{il}"].reshape(len(part), -1)
                xn = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * norms[f"blk.{il}.ffn_norm.weight"]
                gate = w[f"blk.{il}.skip_gate.weight"]
                score = xn @ gate[:-2] + gate[-2] * np.log(np.linalg.norm(x, axis=1)) + gate[-1]
                np.testing.assert_allclose(trace.similarity[:, il], score, rtol=1e-3, atol=1e-4)
                warm = np.array([pos for _, pos, _ in part]) >= profile.warmup
                skipped = warm & (trace.similarity[:, il] < profile.threshold(policy))
                np.testing.assert_array_equal(trace.skipped[:, il], skipped)
                expected = x + stand_in(w, il, xn)
                np.testing.assert_allclose(z[skipped], expected[skipped], rtol=1e-3, atol=1e-3 * np.abs(expected).max())
                n_skipped, n_run = n_skipped + int(skipped.sum()), n_run + int((~skipped).sum())
    assert min(n_skipped, n_run) > 40


@pytest.mark.parametrize("key", KINDS)
def test_a_gate_that_never_skips_is_dense(
    tiny: Path, profiles: dict[tuple[str, int | None], Path], key: tuple[str, int | None]
) -> None:
    tokens = tokens_of(4, 30, 320)
    with Raw(tiny) as dense, Raw(tiny) as gated:
        gated.skip.set_policy(Profiled(error=0.0), Profile(profiles[key]))
        gated.skip.set_generated_from(0, 0)
        np.testing.assert_array_equal(gated.step(tokens), dense.step(tokens))
        more = [(t, p + 30, s) for t, p, s in tokens]
        np.testing.assert_array_equal(gated.decode(more), dense.decode(more))
        assert sum(gated.skip.stats(Profiled(error=0.0)).skipped) == 0


@pytest.mark.parametrize("key", KINDS)
def test_one_batch_equals_single_steps(demo_f32: Path, tmp_path: Path, key: tuple[str, int | None]) -> None:
    """Invariant 4, with packed rows on one side and single rows on the other; four sequences in one batch."""
    path = tmp_path / "random.skip.gguf"
    make_profile.make_profile(demo_f32, path, stand_in=key[0], rank=key[1], kind="f32", scale=0.01)
    profile, sequences = Profile(path), [tokens_of(10 + s, 24, 40000, s) for s in range(4)]
    interleaved = [token for group in zip(*sequences, strict=True) for token in group]
    with Raw(demo_f32, exact=True) as batch, Raw(demo_f32, exact=True) as alone:
        for raw in (batch, alone):
            raw.skip.set_policy(Profiled(error=6.0), profile)
            raw.skip.set_generated_from(-1, 0)
        together = batch.decode(interleaved)
        found = batch.skip.take_trace(4096)
        steps = np.concatenate([alone.step(tokens) for tokens in sequences])
        expected = alone.skip.take_trace(4096)
    order = [i * 4 + s for s in range(4) for i in range(24)]
    assert 0.1 < found.skipped.mean() < 0.9
    differ = found.skipped[order] != expected.skipped
    assert np.abs(expected.similarity[differ] - np.log(6.0)).max(initial=0) < 1e-4  # ties alone
    if not differ.any():
        np.testing.assert_allclose(together[order], steps, atol=1e-3, rtol=1e-4)


def test_another_point_in_mid_session_equals_a_fresh_one(
    tiny: Path, profiles: dict[tuple[str, int | None], Path]
) -> None:
    profile = Profile(profiles["linear", None])
    first, then = tokens_of(5, 20, 320), [(7 + i, 20 + i, 0) for i in range(20)]
    with Raw(tiny) as changed, Raw(tiny) as fresh:
        changed.skip.set_policy(Profiled(rate=0.2), profile)
        fresh.skip.set_policy(Profiled(rate=0.2), profile)
        for raw in (changed, fresh):
            raw.skip.set_generated_from(0, 0)
            raw.step(first)
        changed.skip.set_policy(Profiled(error=0.0), profile)
        changed.skip.set_policy(Profiled(rate=0.6), profile)
        fresh.skip.set_policy(Profiled(rate=0.6), profile)
        np.testing.assert_array_equal(changed.step(then), fresh.step(then))


def test_profiles_come_and_go_in_mid_session(tiny: Path, profiles: dict[tuple[str, int | None], Path]) -> None:
    """Every change of graph: off, a profile, another one, cosine, the first again; the context stays sound."""
    with Raw(tiny) as raw, Raw(tiny) as dense:
        raw.skip.set_generated_from(0, 0)
        steps: list[tuple[str | float, tuple[str, int | None] | None]] = [
            ("off", None), (0.5, KINDS[0]), (0.5, KINDS[2]), ("cosine:cold_start=1,cold_end=1,warmup=0", None),
            (0.9, KINDS[1]), ("off", None),
        ]  # fmt: skip
        for i, (skip, key) in enumerate(steps):
            raw.skip.set_policy(pyskip.parse_skip(skip), Profile(profiles[key]) if key else None)
            logits = raw.decode([(token, 9 * i + pos, seq) for token, pos, seq in tokens_of(i, 9, 320)])
            assert np.isfinite(logits).all()
            raw.skip.take_trace(100)
        raw.clear()
        np.testing.assert_array_equal(raw.decode(tokens_of(0, 9, 320)), dense.decode(tokens_of(0, 9, 320)))


def test_evaluated_and_skipped_are_all(tiny: Path, profiles: dict[tuple[str, int | None], Path]) -> None:
    with Raw(tiny) as raw:
        raw.skip.set_policy(Profiled(rate=0.5), Profile(profiles["gated", 32]))
        raw.skip.set_generated_from(0, 10)
        raw.decode(tokens_of(6, 50, 320))
        stats, trace = raw.skip.stats(Profiled(rate=0.5)), raw.skip.take_trace(100)
        assert stats.n_tokens == 40
        assert stats.n_prompt == 10
        assert sum(stats.prompt_skipped) == 0
        assert [e + s for e, s in zip(stats.evaluated, stats.skipped, strict=True)] == [40] * 6
        assert list(stats.skipped) == trace.skipped.sum(0).tolist()


def test_prefill_decides_prompts_too(tiny: Path, profiles: dict[tuple[str, int | None], Path]) -> None:
    with Raw(tiny) as raw:
        raw.skip.set_policy(Profiled(rate=0.9, prefill=True), Profile(profiles["linear", 24]))
        raw.decode(tokens_of(6, 50, 320))
        stats = raw.skip.stats(Profiled())
        assert stats.n_prompt == 50
        assert 0 < sum(stats.prompt_skipped) <= 46 * 6  # 4 of warm-up


def test_random_is_seeded_and_of_its_rate(tiny: Path, profiles: dict[tuple[str, int | None], Path]) -> None:
    def decisions(spec: str, profile: Profile | None) -> npt.NDArray[np.bool_]:
        with Raw(tiny) as raw:
            raw.skip.set_policy(pyskip.parse_skip(spec), profile)
            raw.skip.set_generated_from(0, 0)
            raw.decode(tokens_of(6, 400, 320))
            return raw.skip.take_trace(400).skipped

    alone = decisions("random:rate=0.3,seed=5,warmup=0", None)
    assert abs(alone.mean() - 0.3) < 0.04
    np.testing.assert_array_equal(
        alone, decisions("random:rate=0.3,seed=5,warmup=0,stand_in=1", Profile(profiles["none", None]))
    )
    assert (alone != decisions("random:rate=0.3,seed=6,warmup=0", None)).any()


def test_a_model_finds_the_profile_beside_it(
    tiny: Path, tmp_path: Path, profiles: dict[tuple[str, int | None], Path]
) -> None:
    model = tmp_path / "model.gguf"
    shutil.copy(tiny, model)
    with pytest.raises(pyskip.ProfileError, match=r"needs a profile and .*pyskip calibrate"):
        pyskip.Llama(model, skip=0.25, verbose=False)
    shutil.copy(profiles["linear", None], path_beside(model))
    llm = pyskip.Llama(model, skip=0.25, n_ctx=64, verbose=False)
    assert llm.profile is not None
    assert llm.profile.path == path_beside(model)
    assert str(llm.skip) == "0.25"
    llm.create_completion("abc", max_tokens=30, temperature=0.0)
    assert llm.skip_stats().n_tokens > 0
    with pytest.raises(pyskip.PolicyError, match="beyond the profile's curve"):
        llm.skip = 0.99
    assert str(llm.skip) == "0.25"
    llm.close()


def test_bytes_saved_count_what_is_read_instead(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.skip.gguf"
    make_profile.make_profile(tiny, path, stand_in="linear", rank=32, kind="q8_0")
    block, stand_in, gate = 3 * 64 * 128 * 4, 2 * 64 * 32 * 34 // 32 + 64 * 4, 66 * 4
    llm = pyskip.Llama(tiny, profile=path, n_ctx=64, verbose=False)
    rates = [0.5, 0.0, 1.0, 0.0, 0.25, 0.0]
    expected = (sum(rates) * (block - stand_in) - 6 * gate) / (6 * block)
    assert ffn_bytes_saved(llm, Profiled(rate=0.3), rates) == pytest.approx(expected)
    assert ffn_bytes_saved(llm, pyskip.Random(stand_in=True), rates) == pytest.approx(expected)
    assert ffn_bytes_saved(llm, pyskip.Random(), rates) == pytest.approx(sum(rates) / 6)
    without_gates = expected + gate / block
    assert ffn_bytes_saved(llm, pyskip.Static((0,), stand_in=True), rates) == pytest.approx(without_gates)
    assert ffn_bytes_saved(llm, pyskip.Static((0,)), rates) == pytest.approx(sum(rates) / 6)
    llm.close()


def test_another_models_profile_is_refused(demo: Path, profiles: dict[tuple[str, int | None], Path]) -> None:
    with pytest.raises(pyskip.ProfileError, match=r"pyskip\.model_fingerprint: found .* expected"):
        pyskip.Llama(demo, skip=0.25, profile=profiles["linear", None], n_ctx=64, verbose=False)


def test_thresholds_follow_the_curve(profiles: dict[tuple[str, int | None], Path]) -> None:
    profile = Profile(profiles["none", None])
    assert profile.threshold(Profiled()) == pytest.approx(profile.curve[2].threshold)
    middle = (profile.curve[3].rate + profile.curve[4].rate) / 2
    assert profile.threshold(Profiled(rate=middle)) == pytest.approx(
        (profile.curve[3].threshold + profile.curve[4].threshold) / 2
    )
    assert profile.threshold(Profiled(rate=0.0)) == -np.inf
    assert profile.threshold(Profiled(rate=0.01)) < profile.curve[0].threshold
    assert profile.threshold(Profiled(error=0.12)) == pytest.approx(np.log(0.12))
