"""Calibration of attention: the native sums  against NumPy, the whole command."""

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
from test_calibration import sums_of

import pyskip
from pyskip.calibration.calibrate import Settings, calibrate
from pyskip.calibration.gather import Kind, LayerSums, gather
from pyskip.calibration.harm import N_MASK, observe
from pyskip.calibration.sublayer import Sublayer
from pyskip.models.profile import Profile

Cli = Callable[..., subprocess.CompletedProcess[str]]

WINDOWS = [np.random.default_rng(i).integers(3, 320, 40).astype(np.int32) for i in range(3)]


@pytest.fixture(scope="module")
def profile(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    path = tmp_path_factory.mktemp("attention") / "both.skip.gguf"
    make_profile.make_profile(tiny, path, stand_in="gated", rank=32, kind="f32", attention=True)
    return Profile(path)


@pytest.mark.parametrize("kind", [Kind.OUTPUTS, Kind.ERRORS])
def test_native_sums_equal_numpy(tiny_llm: pyskip.Llama, tiny: Path, profile: Profile, kind: Kind) -> None:
    found: dict[int, LayerSums] = {}

    def keep(il: int, sums: LayerSums) -> None:
        found[il] = LayerSums(sums.gram.copy(), sums.cross.copy(), sums.energy, sums.n_tokens)

    given = profile if kind is Kind.ERRORS else None
    attention = Sublayer.ATTENTION
    gather(tiny_llm, WINDOWS, kind, keep, warmup=4, sublayer=attention, profile=given, progress=lambda *_: None)
    assert sorted(found) == [0, 1, 2, 3, 4]  # the last layer passes on tokens with an output only
    w = {t.name: np.array(t.data) for path in (tiny, profile.path) for t in gguf.GGUFReader(path).tensors}
    rows: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {il: [] for il in range(1, 5)}
    with Raw(tiny, taps=("ffn_inp-", "l_out-")) as raw:
        for window in WINDOWS:
            raw.clear()
            raw.decode([(int(t), i, 0) for i, t in enumerate(window)])
            for il, kept in rows.items():
                names = f"l_out-{il - 1}", f"ffn_inp-{il}"
                entering, leaving = (raw.tapped[name].reshape(40, -1)[4:] for name in names)
                kept.append((entering, leaving))
    for il, kept in rows.items():
        x, z = (np.concatenate(part).astype(np.float64) for part in zip(*kept, strict=True))
        xn = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * w[f"blk.{il}.attn_norm.weight"]
        target = z - x
        if kind is Kind.ERRORS:
            skip = f"blk.{il}.attn_skip"
            y = xn @ w[f"{skip}_down.weight"].T @ w[f"{skip}_up.weight"].T + w[f"{skip}.bias"]
            target = np.log(np.linalg.norm(target - y, axis=1))[:, None]
        expected = sums_of(xn, np.linalg.norm(x, axis=1), target)
        assert found[il].n_tokens == 3 * 36
        np.testing.assert_allclose(found[il].gram, expected.gram, rtol=1e-3, atol=1e-3 * np.abs(expected.gram).max())
        np.testing.assert_allclose(found[il].cross, expected.cross, rtol=1e-3, atol=2e-3 * np.abs(expected.cross).max())
        assert found[il].energy == pytest.approx(expected.energy, rel=2e-3)


def test_attention_has_no_neurons(tiny_llm: pyskip.Llama, profile: Profile) -> None:
    for kind, given in ((Kind.NEURONS, None), (Kind.HIDDEN, profile)):
        with pytest.raises(pyskip.PolicyError, match="attention has no neurons"):
            gather(
                tiny_llm, WINDOWS, kind, lambda *_: None, warmup=4, sublayer=Sublayer.ATTENTION, profile=given,
                progress=lambda *_: None,
            )  # fmt: skip


def test_harm_is_observed(tiny_llm: pyskip.Llama, profile: Profile) -> None:
    """Where no attention was skipped nothing differs, since no FFN is."""
    seen = observe(tiny_llm, profile, WINDOWS[:2], 1, lambda *_: None, Sublayer.ATTENTION)
    n = 40 - profile.warmup
    skipped = np.isfinite(seen.scores)
    assert skipped.shape == (2 * N_MASK * n, 6)
    assert 0.05 < skipped[:, :5].mean() < 0.3  # RATE of LIKED
    assert not skipped[:, 5].any()
    for begin in range(0, len(skipped), n):
        first = np.flatnonzero(skipped[begin : begin + n].any(1))[0]
        assert (seen.kld[begin : begin + first] < 1e-6).all()
        assert seen.kld[begin + first] > 1e-6


@pytest.mark.slow
def test_calibrate_and_use(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """A rate of attention that the curve promises is what a text skips; FFNs alone are as without --attention."""
    text, out = tmp_path / "t.txt", tmp_path / "own.skip.gguf"
    text.write_text(" ".join(str(i * i) for i in range(3000)))
    settings = Settings(text=(text,), n_fit=6, n_curve=2, output=out, attention=True)
    made = calibrate(tiny, settings, lambda *_: None)
    alone = calibrate(tiny, Settings(text=(text,), n_fit=6, n_curve=2, output=tmp_path / "ffn.gguf"), lambda *_: None)
    assert sorted(made.attention_stand_in_r2) == sorted(made.attention_gate_r2) == [0, 1, 2, 3, 4]
    assert all(r2 > 0 for r2 in made.attention_stand_in_r2.values())
    assert (made.curve, alone.attention_curve) == (alone.curve, ())
    rates = [p.rate for p in made.attention_curve]
    assert rates == sorted(rates)
    assert rates[-1] > 0.3
    assert all(p.ppl_ratio > 0 and p.ffn_bytes_saved == 0 and p.ideal_speedup > 0.9 for p in made.attention_curve)
    assert Profile(out).attention_rank == 32

    spec = f"profile:rate=0.2,attn={rates[2]:.3f}"
    result = cli("eval", str(tiny), "--text", str(text), "--profile", str(out), "--skip", spec, "--json", "-c", "512")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["results"][1]
    assert found["attention_skip_rate"] == pytest.approx(rates[2], abs=0.02)
    result = cli("generate", str(tiny), "-p", "1 4", "-n", "60", "--profile", str(out), "--skip", spec, "--json")
    assert json.loads(result.stdout)["skip"]["attention_rate"] == pytest.approx(rates[2], abs=0.06)
    beside = tmp_path / "model.gguf"
    beside.symlink_to(tiny)
    out.rename(tmp_path / "model.skip.gguf")
    told = json.loads(cli("info", str(beside), "--json").stdout)["profile"]
    assert [point["rate"] for point in told["attention_curve"]] == rates
    assert "attn rate" in cli("info", str(beside)).stdout


@pytest.mark.parametrize(
    "flags", [("--distill", "5", "--attention"), ("--static", "2", "--attention"), ("--static", "2", "--distill", "5")]
)
def test_flags_that_exclude_each_other(cli: Cli, tiny: Path, flags: tuple[str, ...]) -> None:
    result = cli("calibrate", str(tiny), *flags)
    assert result.returncode == 2
    assert "--attention" in result.stderr
