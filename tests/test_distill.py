"""Distillation: without its extra one line, and with it the pieces that can be checked without training."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import pyskip
from pyskip.calibration.calibrate import Settings, calibrate

Progress = Callable[[str, int, int, str], None]


def test_without_the_extra_one_line(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "pyskip.calibration.distill", raising=False)
    text = tmp_path / "t.txt"
    text.write_text(" ".join(str(i * i) for i in range(1000)))
    settings = Settings(text=(text,), distill=1.0, output=tmp_path / "p.skip.gguf")
    with pytest.raises(pyskip.PyskipError, match=r"torch is not installed.*pip install 'pyskip\[distill\]'"):
        calibrate(tiny, settings, lambda *_: None)
    assert not (tmp_path / "p.skip.gguf").exists()


@pytest.fixture(scope="module")
def distill() -> Any:
    pytest.importorskip("torch", reason="needs pyskip[distill]")
    pytest.importorskip("transformers", reason="needs pyskip[distill]")
    from pyskip.calibration import distill as module

    return module


def test_training_sees_the_quantisation_that_is_written(distill: Any) -> None:
    torch = distill.torch
    w = torch.randn(64, 96, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    seen = distill.fake_q4_0(w)
    kind = gguf.GGMLQuantizationType.Q4_0
    expected = gguf.dequantize(gguf.quantize(w.detach().numpy(), kind), kind)
    np.testing.assert_allclose(seen.detach().numpy(), expected, atol=1e-6)
    seen.sum().backward()
    assert (w.grad == 1).all()


def test_the_mean_of_exponential_draws_is_found_again(distill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = distill.torch
    rng = np.random.default_rng(2)
    f = np.concatenate([rng.standard_normal((20000, 6)), np.ones((20000, 1))], 1)
    true = np.array([0.5, -0.3, 0.8, 0.0, 0.2, -0.6, -3.0])
    h = np.exp(f @ true) * rng.standard_normal(20000) ** 2  # as one drawn label's squared slope
    drawn_back = distill.fit_log_mean(torch.tensor(f).float(), torch.tensor(h).float(), torch.zeros(7)).numpy()
    monkeypatch.setattr(distill, "GATE_PRIOR", 1e-3)
    w = distill.fit_log_mean(torch.tensor(f).float(), torch.tensor(h).float(), torch.zeros(7)).numpy()
    np.testing.assert_allclose(w, true, atol=0.06)
    assert np.linalg.norm(drawn_back[:-1]) < 0.8 * np.linalg.norm(w[:-1])


def test_a_written_profile_computes_what_was_trained(distill: Any, demo: Path, demo_f32: Path, tmp_path: Path) -> None:
    """The torch model and the native one, both in f32, with the same stand-ins, on the same window."""
    torch = distill.torch
    window = np.random.default_rng(3).integers(300, 40000, 512).astype(np.int32)
    made = distill.Distiller(str(demo), [window] * 2, width=32, seed=1, warmup=16, progress=lambda *_: None)
    made.fit_local(1, 20)
    made.fit_gates(1)
    decided: list[Any] = []
    with torch.no_grad():
        block = made.conditional(made.thresholds[0.25], decided)
        logits = made.logits(torch.from_numpy(window.astype(np.int64))[None], block)[0].numpy()

    from dataclasses import replace

    from raw import Raw
    from test_profile_files import CURVE, PROVENANCE

    from pyskip.calibration.write import write_profile
    from pyskip.models.profile import Profile

    path = tmp_path / "p.skip.gguf"
    points = [replace(CURVE[0], threshold=made.thresholds[0.25])]
    write_profile(path, made.layers(), points, 0, replace(PROVENANCE, stand_in="gated", warmup=16), "F32")
    with Raw(demo_f32, exact=True) as raw:
        raw.skip.set_policy(pyskip.Profiled(hold=False), Profile(path))
        raw.skip.set_generated_from(0, 0)
        native = raw.decode([(int(t), i, 0) for i, t in enumerate(window)])
        skipped = raw.skip.take_trace(512).skipped[16:]
    assert (skipped == torch.stack(decided).numpy().T.astype(bool)).mean() > 0.99
    difference = native[16:] - logits[16:]
    assert np.sqrt((difference**2).mean()) < 0.02 * logits.std()
