"""Calibration: native sums against NumPy, fits on data whose answer is known. The command: test_calibrate.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import make_profile
from raw import Raw

import pyskip
from pyskip.calibration.calibrate import Run, Settings
from pyskip.calibration.fit import HARM_SHARE, fit_gate, fit_gated_stand_in, fit_linear_stand_in, fit_token_harm
from pyskip.calibration.gather import Kind, LayerSums, gather
from pyskip.calibration.harm import N_MASK, Observed, layer_harm, observe, token_harm
from pyskip.calibration.neurons import Neurons
from pyskip.calibration.text import CalibrationText
from pyskip.models.profile import Profile


def sums_of(xn: np.ndarray, size: np.ndarray, target: np.ndarray) -> LayerSums:
    f = np.concatenate([xn, np.log(size)[:, None], np.ones((len(xn), 1))], 1)
    return LayerSums((f.T @ f).astype(np.float32), (f.T @ target).astype(np.float32), float((target**2).sum()), len(xn))


def test_a_linear_block_is_found_again() -> None:
    rng = np.random.default_rng(1)
    xn, size = rng.standard_normal((4000, 32)), np.exp(rng.standard_normal(4000))
    left, right, bias = rng.standard_normal((32, 5)), rng.standard_normal((5, 32)), rng.standard_normal(32)
    y = xn @ left @ right + bias
    for rank in (32, 8, 5):
        layer = fit_linear_stand_in(sums_of(xn, size, y), rank)
        assert layer is not None
        matrices = layer.matrices
        assert (matrices.get("skip_down") is None) == (rank == 32)
        product = matrices["skip_up"] if rank == 32 else matrices["skip_up"] @ matrices["skip_down"]
        # the bias counts as a direction of the outputs too, so 5 + 1 need 6
        assert layer.explained > (0.9 if rank == 5 else 0.999)
        if rank > 5:
            np.testing.assert_allclose(product, (left @ right).T, atol=0.05)
            np.testing.assert_allclose(layer.bias, bias, atol=0.05)


def test_of_rank_0_the_mean_is_left() -> None:
    rng = np.random.default_rng(1)
    y = rng.standard_normal((400, 32)) + 3 * np.arange(32)
    layer = fit_linear_stand_in(sums_of(rng.standard_normal((400, 32)), np.ones(400), y), 0)
    assert layer is not None
    assert layer.matrices == {}
    np.testing.assert_allclose(layer.bias, y.mean(0), rtol=1e-4)
    assert layer.explained == pytest.approx(1 - ((y - y.mean(0)) ** 2).sum() / (y**2).sum(), rel=1e-3)


def test_few_tokens_make_no_stand_in() -> None:
    rng = np.random.default_rng(1)
    xn = rng.standard_normal((40, 32))
    assert fit_linear_stand_in(sums_of(xn, np.ones(40), xn), 32) is None


def test_a_gate_is_found_again() -> None:
    rng = np.random.default_rng(2)
    xn, size = rng.standard_normal((3000, 16)), np.exp(rng.standard_normal(3000))
    true = rng.standard_normal(16)
    noise = 0.1 * rng.standard_normal(3000)
    fitted = fit_gate(sums_of(xn, size, (xn @ true + 0.7 * np.log(size) - 2 + noise)[:, None]))
    np.testing.assert_allclose(fitted.gate, [*true, 0.7, -2], atol=0.05)
    assert 0.98 < fitted.r2 < 1
    assert fitted.log_x == pytest.approx(np.log(size).mean(), abs=1e-6)


def test_a_gated_stand_in_makes_up_for_the_neurons_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of neurons of which the kept ones tell the others; of one token the bias tells all."""
    rng = np.random.default_rng(5)
    hidden, bias = rng.standard_normal((2000, 8)), rng.standard_normal(24)
    left_out = hidden @ rng.standard_normal((8, 4))
    own, others = rng.standard_normal((24, 8)), rng.standard_normal((24, 4))
    y = hidden @ own.T + left_out @ others.T + bias
    f = np.concatenate([hidden, np.ones((2000, 1))], 1)

    def fit(rows: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        sums = LayerSums(rows.T @ rows, rows.T @ outputs, float((outputs**2).sum()), len(rows))
        fitted = fit_gated_stand_in(sums, own.astype(np.float32))
        return fitted.matrices["skip_down"], fitted.bias, fitted.explained

    down, found, explained = fit(f, y)
    without = y - hidden @ own.T - bias  # what the kept ones alone miss
    alone = 1 - (without**2).sum() / (y**2).sum()
    assert 0.95 > explained > alone + 0.2  # few tokens are not believed everything
    np.testing.assert_allclose(found, bias, atol=0.3)
    monkeypatch.setattr("pyskip.calibration.fit.N_PRIOR", 0)
    assert fit(f, y)[2] > 0.95
    monkeypatch.setattr("pyskip.calibration.fit.GATED_RIDGE", 1e-2)
    down, found, explained = fit(f, y)
    assert explained > 0.99
    np.testing.assert_allclose(f @ np.c_[down, found].T, y, atol=0.1 * np.abs(y).max())
    down, found, _ = fit(f[:1], y[:1])
    np.testing.assert_allclose(down, own, atol=1e-5)
    np.testing.assert_allclose(down @ hidden[0] + found, y[0], atol=1e-5)


def test_harm_is_explained_by_layer() -> None:
    """Divergences as the model assumes them: dear layers and cheap ones stand out, one hardly seen stays average."""
    rng = np.random.default_rng(3)
    u = np.array([0.0, 1.0, 0.0, -0.7, 0.0, 0.0])
    scores = 0.3 * rng.standard_normal((9000, 6)) - 2
    skipped = rng.random(scores.shape) < 0.4
    skipped[2:, 5] = False
    mean = (np.exp(2 * (scores + u)) * skipped).sum(1)
    kld = (mean * rng.gamma(2, 0.5, mean.shape)).astype(np.float32)
    seen = Observed(kld, np.where(skipped, scores, np.inf).astype(np.float32))
    found, expected = layer_harm(seen)
    assert np.abs(np.log(expected[skipped.any(1)] / mean[skipped.any(1)])).mean() < 0.1
    assert (expected[~skipped.any(1)] == 0).all()
    assert found[1] - found[0] == pytest.approx(1.0, abs=0.2)
    assert found[3] - found[0] == pytest.approx(-0.7, abs=0.25)
    assert abs(found[5]) < 0.3


def test_without_harm_nothing_is_explained() -> None:
    """A model whose logits no skip moves, and one of which no block is liked."""
    for score in (-1.0, np.inf):
        found, expected = layer_harm(Observed(np.zeros(20, np.float32), np.full((20, 3), score, np.float32)))
        assert (found == 0).all()
        assert (expected == 0).all()


def test_what_a_token_minds() -> None:
    """Over both masks together, against what was expected; of one that skipped nothing nothing is known."""
    kld = np.array([[[1, 0, 8], [3, 0, 8]], [[2, 1, 0], [2, 1, 0]]], np.float32)
    expected = np.array([[[2, 0, 1], [2, 0, 1]], [[1, 1, 2], [1, 1, 0]]], np.float64)
    found = token_harm(Observed(kld.ravel(), np.empty((12, 0), np.float32)), expected.ravel(), 2)
    assert np.isnan(found[0, 1])
    assert found[0, 0] == pytest.approx(0, abs=0.01)
    assert found[0, 2] == pytest.approx(np.log(8), abs=0.1)
    assert found[1] == pytest.approx([np.log(2), 0, np.log(0.1 / 2.1)], abs=0.5)
    assert np.isfinite(found[1, 2])  # a divergence of 0 is no endless certainty


def test_a_gate_heeds_what_a_token_minds() -> None:
    """A part of what the input tells, such that on average no block becomes dearer; of noise nothing."""
    rng = np.random.default_rng(4)
    xn, size = rng.standard_normal((3000, 16)), np.exp(rng.standard_normal(3000))
    true, noise = 0.3 * rng.standard_normal(16), rng.standard_normal(3000)
    harm = xn @ true + noise + 1.5
    found = fit_token_harm(sums_of(xn, size, harm[:, None]))
    np.testing.assert_allclose(found[:16], 0.5 * HARM_SHARE * true, atol=0.02)
    f = np.concatenate([xn, np.log(size)[:, None], np.ones((3000, 1))], 1)
    assert np.exp(2 * f @ found).mean() == pytest.approx(1, abs=0.02)
    assert np.abs(fit_token_harm(sums_of(xn, size, noise[:, None]))).max() < 0.01


def test_harm_is_observed(tiny: Path, tmp_path: Path) -> None:
    """Where nothing was skipped nothing differs; where blocks were, scores are finite and the divergence is not 0."""
    path = tmp_path / "p.skip.gguf"
    make_profile.make_profile(tiny, path, stand_in="gated", rank=32, kind="f32")
    windows = [np.random.default_rng(i).integers(3, 320, 40).astype(np.int32) for i in range(2)]
    llm = pyskip.Llama(tiny, n_ctx=64, verbose=False)
    profile = Profile(path)
    seen = observe(llm, profile, windows, 1, lambda *_: None)
    llm.close()
    n = 40 - profile.warmup
    assert seen.kld.shape == (2 * N_MASK * n,)
    skipped = np.isfinite(seen.scores)
    assert 0.05 < skipped.mean() < 0.3  # RATE of LIKED
    for begin in range(0, len(skipped), n):  # each window under each mask
        first = np.flatnonzero(skipped[begin : begin + n].any(1))[0]
        assert (seen.kld[begin : begin + first] < 1e-6).all()
        assert seen.kld[begin + first] > 1e-6


def test_the_strongest_neurons(tiny: Path) -> None:
    w = {t.name: np.array(t.data) for t in gguf.GGUFReader(tiny).tensors}
    gate, up, down = (w[f"blk.1.ffn_{n}.weight"] for n in ("gate", "up", "down"))
    squares = np.zeros(len(gate), np.float32)
    chosen = [7, 3, 11]
    squares[chosen] = [30, 20, 10]
    squares /= (down**2).sum(0)
    found = Neurons(tiny).strongest(1, squares, 3)
    assert found is not None
    np.testing.assert_array_equal(found[0], np.concatenate([gate[chosen], up[chosen]]))
    np.testing.assert_array_equal(found[1], down[:, chosen])
    assert Neurons(tiny).strongest(1, squares, len(squares)) is None
    assert Neurons(tiny).strongest(99, squares, 3) is None


@pytest.mark.parametrize("stand_in", [None, "linear", "gated"])
def test_native_sums_equal_numpy(tiny: Path, tmp_path: Path, stand_in: str | None) -> None:
    profile = None
    w: dict[str, np.ndarray] = {}
    if stand_in:
        path = tmp_path / "p.skip.gguf"
        make_profile.make_profile(tiny, path, stand_in=stand_in, rank=32, kind="f32")
        profile = Profile(path)
        w = {t.name: np.array(t.data) for t in gguf.GGUFReader(path).tensors}
    norms = {t.name: np.array(t.data) for t in gguf.GGUFReader(tiny).tensors if "ffn_norm" in t.name}
    windows = [np.random.default_rng(i).integers(3, 320, 40).astype(np.int32) for i in range(3)]
    found: dict[int, LayerSums] = {}
    llm = pyskip.Llama(tiny, n_ctx=64, verbose=False)

    def keep(il: int, sums: LayerSums) -> None:
        found[il] = LayerSums(sums.gram.copy(), sums.cross.copy(), sums.energy, sums.n_tokens)

    kind = Kind.ERRORS if stand_in else Kind.OUTPUTS
    gather(llm, windows, kind, keep, warmup=4, profile=profile, progress=lambda *_: None)
    llm.close()
    assert sorted(found) == [0, 1, 2, 3, 4]  # of the last layer only tokens with an output are computed

    with Raw(tiny, taps=("ffn_inp-", "ffn_out-")) as raw:
        rows: dict[int, list[tuple[np.ndarray, ...]]] = {il: [] for il in found}
        for window in windows:
            raw.clear()
            raw.decode([(int(t), i, 0) for i, t in enumerate(window)])
            for il, kept in rows.items():
                s, out = (raw.tapped[f"{n}-{il}"].reshape(40, -1)[4:] for n in ("ffn_inp", "ffn_out"))
                kept.append(
                    (s / np.sqrt((s * s).mean(1, keepdims=True) + 1e-5) * norms[f"blk.{il}.ffn_norm.weight"], s, out)
                )
    for il, kept in rows.items():
        xn, x, y = (np.concatenate(part).astype(np.float64) for part in zip(*kept, strict=True))
        target = y
        if stand_in:
            blk = f"blk.{il}."
            if stand_in == "gated":
                g, u = np.split(xn @ w[blk + "skip_gate_up.weight"].T, 2, axis=1)
                y_ = (g / (1 + np.exp(-g)) * u) @ w[blk + "skip_down.weight"].T
            else:
                y_ = xn @ w[blk + "skip_down.weight"].T @ w[blk + "skip_up.weight"].T
            miss = np.linalg.norm(y - y_ - w[blk + "skip.bias"], axis=1)
            target = np.log(miss)[:, None]
        expected = sums_of(xn, np.linalg.norm(x, axis=1), target)
        assert found[il].n_tokens == 3 * 36
        np.testing.assert_allclose(found[il].gram, expected.gram, rtol=1e-3, atol=1e-3 * np.abs(expected.gram).max())
        np.testing.assert_allclose(found[il].cross, expected.cross, rtol=1e-3, atol=1e-3 * np.abs(expected.cross).max())
        assert found[il].energy == pytest.approx(expected.energy, rel=1e-3)


@pytest.mark.parametrize(("activation", "is_normed"), [("silu", False), ("gelu", True), ("relu", True)])
def test_native_sums_of_neurons_equal_numpy(tiny: Path, tmp_path: Path, activation: str, is_normed: bool) -> None:
    """Neurons: the squares of silu(gate) * up, and of the input. Hidden: what a stand-in's skip_down reads, with its
    own activation; a token that the stand-in misses little of counts most."""
    path = tmp_path / "p.skip.gguf"
    make_profile.make_profile(
        tiny, path, stand_in="gated", rank=32, kind="f32", activation=activation, hidden_norm=is_normed
    )
    window = np.random.default_rng(1).integers(3, 320, 40).astype(np.int32)
    llm = pyskip.Llama(tiny, n_ctx=64, verbose=False)

    def gathered(kind: Kind, profile: Profile | None = None, targets: Sequence[np.ndarray] = ()) -> LayerSums:
        found: list[LayerSums] = []

        def keep(il: int, sums: LayerSums) -> None:
            if il == 2:
                found.append(
                    LayerSums(sums.gram.copy(), sums.cross.copy(), sums.energy, sums.n_tokens, sums.activation)
                )

        gather(llm, [window], kind, keep, warmup=4, profile=profile, targets=targets, progress=lambda *_: None)
        return found[0]

    neurons = gathered(Kind.NEURONS)
    hidden = gathered(Kind.HIDDEN, Profile(path))
    errors = gathered(Kind.ERRORS, Profile(path))
    targets = np.random.default_rng(2).standard_normal(40).astype(np.float32)
    targets[[1, 9]] = np.nan
    given = gathered(Kind.GIVEN, targets=[targets])
    with pytest.raises(pyskip.PolicyError, match="those of a profile"):
        gathered(Kind.HIDDEN)
    llm.close()

    w = {t.name: np.array(t.data) for p in (tiny, path) for t in gguf.GGUFReader(p).tensors}
    with Raw(tiny, taps=("ffn_inp-", "ffn_out-")) as raw:
        raw.decode([(int(t), i, 0) for i, t in enumerate(window)])
        x, y = (raw.tapped[f"{n}-2"].reshape(40, -1)[4:].astype(np.float64) for n in ("ffn_inp", "ffn_out"))
    xn = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * w["blk.2.ffn_norm.weight"]

    acts = {
        "silu": lambda g: g / (1 + np.exp(-g)),
        "gelu": lambda g: 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))),
        "relu": lambda g: np.maximum(g, 0),
    }

    def glu(gate: np.ndarray, up: np.ndarray, activation: str) -> np.ndarray:
        return np.asarray(acts[activation](xn @ gate.T) * (xn @ up.T))

    block = glu(w["blk.2.ffn_gate.weight"], w["blk.2.ffn_up.weight"], "silu")
    assert neurons.activation == "silu"
    squares, inputs = np.split(neurons.cross[0], [len(neurons.cross[0]) - xn.shape[1]])
    np.testing.assert_allclose(squares, (block**2).sum(0), rtol=1e-2, atol=1e-3 * (block**2).sum(0).max())
    np.testing.assert_allclose(inputs, (xn**2).sum(0), rtol=1e-3)
    gate, up = np.split(w["blk.2.skip_gate_up.weight"], 2)
    read = glu(gate, up, activation)
    if is_normed:
        read /= np.sqrt((read**2).mean(1, keepdims=True))
    missed = y - read @ w["blk.2.skip_down.weight"].T - w["blk.2.skip.bias"]
    weight = 1 / np.linalg.norm(missed, axis=1, keepdims=True)
    own, y = weight * np.c_[read, np.ones(36)], weight * y
    np.testing.assert_allclose(hidden.gram, own.T @ own, rtol=1e-2, atol=2e-3 * np.abs(own.T @ own).max())
    np.testing.assert_allclose(hidden.cross, own.T @ y, rtol=1e-2, atol=2e-3 * np.abs(own.T @ y).max())
    assert hidden.energy == pytest.approx(float((y**2).sum()), rel=1e-2)
    assert hidden.n_tokens == 36
    f = np.c_[xn, np.log(np.linalg.norm(x, axis=1)), np.ones(36)]
    np.testing.assert_allclose(errors.gram, f.T @ f, rtol=1e-2, atol=2e-3 * np.abs(f.T @ f).max())
    counted = np.isfinite(targets[4:])
    f, targets = f[counted], targets[4:][counted]
    np.testing.assert_allclose(given.gram, f.T @ f, rtol=1e-2, atol=2e-3 * np.abs(f.T @ f).max())
    np.testing.assert_allclose(given.cross[:, 0], targets @ f, rtol=1e-2, atol=1e-2 * np.abs(f).max())
    assert given.energy == pytest.approx(float((targets**2).sum()), rel=1e-4)
    assert given.n_tokens == 35


@pytest.mark.slow
def test_a_score_is_the_error_against_the_next_blocks_stream(tiny: Path, tmp_path: Path) -> None:
    """Before the harm is added, and on average."""
    windows = tuple(np.random.default_rng(i).integers(3, 320, 256).astype(np.int32) for i in range(3))
    llm = pyskip.Llama(tiny, n_ctx=256, n_batch=256, verbose=False)
    run = Run(llm, Settings(n_harm=0), lambda *_: None, tmp_path / "draft.skip.gguf")
    run.text = CalibrationText(windows, (), "random", "", sum(map(len, windows)))
    run.fit()
    means: dict[int, tuple[np.ndarray, float]] = {}  # of the features, and of the log of the error

    def keep(il: int, sums: LayerSums) -> None:
        means[il] = sums.gram[-1] / sums.n_tokens, float(sums.cross[-1, 0]) / sums.n_tokens

    profile = run._draft()
    gather(llm, windows, Kind.ERRORS, keep, warmup=profile.warmup, profile=profile, progress=lambda *_: None)
    llm.close()
    assert sorted(means) == [0, 1, 2, 3, 4]
    for il, (features, error) in means.items():
        layer = run.ffn.layers[il]
        assert layer is not None
        log_x = means[min(il + 1, 4)][0][-2]  # of the last layer nothing is gathered
        assert layer.gate @ features == pytest.approx(error - log_x, abs=0.05)
