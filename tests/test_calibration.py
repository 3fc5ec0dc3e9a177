"""Calibration: the native sums against NumPy, the fits on data whose answer is known, and the whole command."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import make_profile
from raw import Raw

import pyskip
from pyskip.calibration.fit import fit_gate, fit_sensitivity, fit_stand_in
from pyskip.calibration.gather import LayerSums, gather
from pyskip.calibration.head import Head
from pyskip.calibration.text import sample_text
from pyskip.profile import Profile, path_beside

Cli = Callable[..., subprocess.CompletedProcess[str]]


def sums_of(xn: np.ndarray, size: np.ndarray, target: np.ndarray) -> LayerSums:
    f = np.concatenate([xn, np.log(size)[:, None], np.ones((len(xn), 1))], 1)
    return LayerSums((f.T @ f).astype(np.float32), (f.T @ target).astype(np.float32), float((target**2).sum()), len(xn))


def test_a_linear_block_is_found_again() -> None:
    rng = np.random.default_rng(1)
    xn, size = rng.standard_normal((4000, 32)), np.exp(rng.standard_normal(4000))
    left, right, bias = rng.standard_normal((32, 5)), rng.standard_normal((5, 32)), rng.standard_normal(32)
    y = xn @ left @ right + bias
    for rank in (32, 8, 5):
        fitted = fit_stand_in(sums_of(xn, size, y), rank)
        assert fitted is not None
        layer, explained = fitted
        matrices = layer.matrices
        assert (matrices.get("skip_down") is None) == (rank == 32)
        product = matrices["skip_up"] if rank == 32 else matrices["skip_up"] @ matrices["skip_down"]
        # the bias counts as a direction of the outputs too, so 5 + 1 need 6
        assert explained > (0.9 if rank == 5 else 0.999)
        if rank > 5:
            np.testing.assert_allclose(product, (left @ right).T, atol=0.05)
            np.testing.assert_allclose(layer.bias, bias, atol=0.05)


def test_few_tokens_make_no_stand_in() -> None:
    rng = np.random.default_rng(1)
    xn = rng.standard_normal((40, 32))
    assert fit_stand_in(sums_of(xn, np.ones(40), xn), 32) is None


def test_a_gate_is_found_again() -> None:
    rng = np.random.default_rng(2)
    xn, size = rng.standard_normal((3000, 16)), np.exp(rng.standard_normal(3000))
    true = rng.standard_normal(16)
    noise = 0.1 * rng.standard_normal(3000)
    fitted = fit_gate(sums_of(xn, size, (xn @ true + 0.7 * np.log(size) - 2 + noise)[:, None]))
    np.testing.assert_allclose(fitted.gate, [*true, 0.7, -2], atol=0.02)
    assert 0.98 < fitted.r2 < 1


def test_sensitivities_are_found_again_and_shrink_where_nothing_is_known() -> None:
    rng = np.random.default_rng(3)
    true = np.array([1.0, 1.0, 9.0, 0.1, 1.0])
    errors = np.exp(0.3 * rng.standard_normal((6000, 5))) * (rng.random((6000, 5)) < 0.3)
    errors[:, 4] = 0
    errors[:2, 4] = 1.0
    harm = 0.01 * errors @ true + 0.002 * rng.standard_normal(6000)
    u = fit_sensitivity(harm, errors)
    assert u[2] - u[0] == pytest.approx(0.5 * np.log(9), abs=0.1)
    assert u[3] < u[0] - 0.6
    assert abs(u[4] - u[0]) < 0.6


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

    gather(llm, windows, keep, warmup=4, profile=profile, progress=lambda *_: None)
    llm.close()
    assert sorted(found) == [0, 1, 2, 3, 4]  # of the last layer only tokens with an output are computed

    with Raw(tiny, taps=("ffn_inp-", "ffn_out-")) as raw:
        rows: dict[int, list[tuple[np.ndarray, ...]]] = {il: [] for il in found}
        for window in windows:
            raw.clear()
            raw.decode([(int(t), i, 0) for i, t in enumerate(window)])
            for il, kept in rows.items():
                x, y = (raw.tapped[f"{n}-{il}"].reshape(40, -1)[4:] for n in ("ffn_inp", "ffn_out"))
                kept.append(
                    (x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * norms[f"blk.{il}.ffn_norm.weight"], x, y)
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
            target = np.log(miss / np.linalg.norm(x, axis=1))[:, None]
        expected = sums_of(xn, np.linalg.norm(x, axis=1), target)
        assert found[il].n_tokens == 3 * 36
        np.testing.assert_allclose(found[il].gram, expected.gram, rtol=1e-3, atol=1e-3 * np.abs(expected.gram).max())
        np.testing.assert_allclose(found[il].cross, expected.cross, rtol=1e-3, atol=1e-3 * np.abs(expected.cross).max())
        assert found[il].energy == pytest.approx(expected.energy, rel=1e-3)


def test_probes_measure_the_divergence_of_the_next_token() -> None:
    """KL(p || p of a shifted stream), computed directly, is half the mean square along the probes, over rms^2."""
    rng = np.random.default_rng(4)
    w, norm = rng.standard_normal((50, 24)).astype(np.float32), rng.uniform(0.5, 2, 24).astype(np.float32)
    head = Head(w, norm, 1)
    for scale in (0.7, 3.0):
        x, d = scale * rng.standard_normal(24), 0.01 * scale * rng.standard_normal(24)

        def log_p(stream: np.ndarray) -> np.ndarray:
            logits = w @ (norm * stream / np.sqrt((stream * stream).mean()))
            return logits - np.log(np.exp(logits).sum())

        rms = np.sqrt((x * x).mean())
        normed = np.tile((norm * x / rms).astype(np.float32), (2000, 1))
        probes = head.probes(np.tile(log_p(x).astype(np.float32), (2000, 1)), normed)
        predicted = 0.5 * float(((probes @ d) ** 2).mean()) / rms**2
        assert predicted == pytest.approx(float((np.exp(log_p(x)) * (log_p(x) - log_p(x + d))).sum()), rel=0.1)


def test_errors_along_probes(tiny: Path, tmp_path: Path) -> None:
    """With probes that are the unit vectors, the error counts as it does without, but for a constant."""
    path = tmp_path / "p.skip.gguf"
    make_profile.make_profile(tiny, path, stand_in="linear", rank=32, kind="f32")
    windows = [np.random.default_rng(i).integers(3, 320, 40).astype(np.int32) for i in range(2)]
    head = Head.of(tiny, 1)
    assert head is not None

    class Units(Head):
        def probes(self, logits: np.ndarray, normed: np.ndarray) -> np.ndarray:
            assert logits.shape == (40, 320)
            assert np.isfinite(normed).all()
            return np.tile(np.eye(64, dtype=np.float32), (40, 1, 1))

    found: list[dict[int, float]] = []
    llm = pyskip.Llama(tiny, n_ctx=64, verbose=False)
    for h in (None, Units(np.ones((320, 64), np.float32), np.ones(64, np.float32), 1), head):
        means: dict[int, float] = {}
        gather(
            llm, windows, lambda il, s, means=means: means.update({il: s.cross[-1, 0] / s.n_tokens}),  # type: ignore[misc]
            warmup=4, profile=Profile(path), head=h, progress=lambda *_: None,
        )  # fmt: skip
        found.append(means)
    llm.close()
    whole, units, real = found
    for il in range(5):
        assert units[il] == pytest.approx(whole[il] - 0.5 * np.log(64), abs=1e-3)
        assert np.isfinite(real[il])
        assert abs(real[il] - units[il]) > 1e-2


def test_a_model_samples_its_own_text(tiny: Path) -> None:
    llm = pyskip.Llama(tiny, n_ctx=64, verbose=False)
    a, b, c = (sample_text(llm, 48, 40, 3, seed, lambda *_: None) for seed in (1, 1, 2))
    llm.close()
    assert len(a.fitted) == 40
    assert len(a.held_out) == 3
    assert {len(w) for w in (*a.fitted, *a.held_out)} == {48}
    assert a.sha256 == b.sha256 != c.sha256
    assert len({w.tobytes() for w in (*a.fitted, *a.held_out)}) == 43  # no window twice


# The command


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrated") / "model.gguf"
    path.symlink_to(tiny)
    return path


def test_calibrate_and_use(cli: Cli, model: Path) -> None:
    """From its own text to a profile that `generate`, `info` and `eval` find by themselves."""
    result = cli("calibrate", str(model), "--fit", "8", "--curve", "2", "--json")
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)
    assert made["profile"] == str(path_beside(model))
    assert made["n_tokens"] == 8 * 512
    rates = [p["rate"] for p in made["curve"]]
    assert rates == sorted(rates)
    assert rates[0] > 0.02
    assert all(
        p["ppl_ratio"] > 0 and p["ffn_bytes_saved"] < p["rate"] and p["ideal_speedup"] >= 0.9 for p in made["curve"]
    )

    result = cli("generate", str(model), "-p", "abc", "-n", "40", "--temp", "1", "--seed", "3", "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["skip"]["spec"] == "profile"
    assert "skipping about" in result.stderr
    result = cli("info", str(model), "--json")
    assert json.loads(result.stdout)["profile"]["curve"] == made["curve"]


def test_the_users_text(cli: Cli, model: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "t.txt", tmp_path / "own.skip.gguf"
    text.write_text(" ".join(str(i * i) for i in range(3000)))
    result = cli(
        "calibrate", str(model), "--text", str(text), "--fit", "6", "--curve", "2", "--rank", "32", "-o", str(out)
    )
    assert result.returncode == 0, result.stderr
    profile = Profile(out)
    assert (profile.rank, profile.stand_in, profile.text) == (32, "linear", "t.txt")
    assert "recommended" in result.stdout


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "expected at least 2"), (b"few words", "expected at least 2"), (b"a\n\xff\n", "line 2 is not UTF-8")],
)
def test_text_that_is_none(cli: Cli, model: Path, tmp_path: Path, content: bytes, match: str) -> None:
    text = tmp_path / "t.txt"
    text.write_bytes(content)
    result = cli("calibrate", str(model), "--text", str(text), "-o", str(tmp_path / "p.skip.gguf"))
    assert result.returncode == 1
    assert match in result.stderr.splitlines()[-1]
    assert not (tmp_path / "p.skip.gguf").exists()


def test_a_target_that_cannot_be_written_is_told_first(cli: Cli, model: Path, tmp_path: Path) -> None:
    result = cli("calibrate", str(model), "-o", str(tmp_path / "no" / "p.skip.gguf"))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("cannot be written: name another file with -o")
