"""Leads through a calibration: text, sums, fits, operating points, file. Called by `pyskip calibrate`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..errors import PolicyError, ProfileError
from ..gguf_info import inspect
from ..llama import Llama
from ..profile import Point, Profile, path_beside
from . import curve
from .fit import fit_gate, fit_sensitivity, fit_stand_in
from .gather import LayerSums, gather
from .head import Head
from .text import CalibrationText, Tokens, read_text, sample_text
from .write import LayerFit, Provenance, quantise, write_profile

__all__ = ["Calibration", "Settings", "calibrate"]

N_WINDOW = 512
WARMUP = 16
N_FIT, N_FIT_SAMPLED, ALL = 26, 160, 1 << 30

Progress = Callable[[str, int, int, str], None]  # stage, done, total, what to show


@dataclass(frozen=True)
class Settings:
    """What `pyskip calibrate` may be asked for.

    rank: of the stand-ins, at most n_embd (the default: one matrix of full rank).
    n_fit, n_curve: windows of 512 tokens to fit on, and to measure on. n_fit None: N_FIT; to distill, all of a text or
        N_FIT_SAMPLED of the model's own.
    distill: seconds of end-to-end training instead of the closed form; 0: none. width: neurons of the stand-ins then.
    """

    text: tuple[Path, ...] = ()
    rank: int | None = None
    quantisation: str = "Q4_0"
    n_fit: int | None = None
    n_curve: int = 5
    seed: int = 1
    distill: float = 0.0
    width: int | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Calibration:
    """What was made. fits: R² of stand-ins (output energy explained) and of gates, by layer."""

    profile: Path
    rank: int
    n_tokens: int
    seconds: float
    curve: tuple[Point, ...]
    recommended: Point
    stand_in_r2: dict[int, float] = field(default_factory=dict)
    gate_r2: dict[int, float] = field(default_factory=dict)


def calibrate(
    model: str | os.PathLike[str], settings: Settings, progress: Progress, n_threads: int | None = None
) -> Calibration:
    """Make the model's profile and write it. Raises PyskipError (text), PolicyError (model), ProfileError (target)."""
    start = time.monotonic()
    target = settings.output or path_beside(model)
    _check_target(target)
    llm = Llama(
        model,
        n_ctx=N_WINDOW,
        n_batch=N_WINDOW,
        n_ubatch=N_WINDOW,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        verbose=False,
    )
    try:
        if not llm.skippable_layers:
            raise PolicyError(f"{model}: no layer can be skipped")
        with tempfile.TemporaryDirectory(prefix="pyskip-") as folder:
            return Run(llm, settings, progress, Path(folder) / "draft.skip.gguf").run(target, start)
    finally:
        llm.close()


def _check_target(target: Path) -> None:
    """An unwritable target is better known before the work than after it."""
    if not os.access(target.parent, os.W_OK) or target.is_dir():
        raise ProfileError(f"{target}: cannot be written: name another file with -o")


class Run:
    def __init__(self, llm: Llama, settings: Settings, progress: Progress, draft: Path) -> None:
        self.llm, self.settings, self.progress, self.draft = llm, settings, progress, draft
        self.n_embd, self.n_layer = llm.n_embd(), llm._skip_context.n_layer
        self.info = inspect(llm.model_path)
        self.rank = min(settings.rank or self.n_embd, self.n_embd)
        self.layers: list[LayerFit | None] = [None] * self.n_layer
        self.stand_in_r2: dict[int, float] = {}
        self.gate_r2: dict[int, float] = {}
        self.text: CalibrationText

    def run(self, target: Path, start: float) -> Calibration:
        self.text = self._text()
        if self.settings.distill:
            self._distill()
            method = f"distilled, width {self.settings.width}"
        else:
            self.fit()
            method = f"closed form, rank {self.rank}"
        points, recommended = self._points()
        self._write(target, points, recommended, method)
        profile = Profile(target)
        return Calibration(
            target, profile.rank, self.text.n_tokens, time.monotonic() - start, profile.curve, profile.recommended,
            self.stand_in_r2, self.gate_r2,
        )  # fmt: skip

    def _stage(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(name, done, total, "")

    def _text(self) -> CalibrationText:
        s = self.settings
        if s.text:
            n_fit = s.n_fit or (ALL if s.distill else N_FIT)
            return read_text(self.llm, s.text, N_WINDOW, n_fit, s.n_curve, s.seed)
        n_fit = s.n_fit or (N_FIT_SAMPLED if s.distill else N_FIT)
        return sample_text(self.llm, N_WINDOW, n_fit, s.n_curve, s.seed, self.progress)

    # Closed form

    def fit(self) -> None:
        """Stand-ins, gates and sensitivities from self.text, into self.layers."""
        text, llm = self.text, self.llm
        gather(llm, text.fitted, self._fit_stand_in, warmup=WARMUP, progress=self._stage("stand-ins"))
        if not any(self.layers):
            raise PolicyError(
                f"{llm.model_path}: {text.n_tokens} tokens are too few to fit {self.n_embd} x {self.n_embd} values on, "
                "or no block's input can be told: give more text"
            )
        self._use_draft()
        some = text.fitted[: max(1, len(text.fitted) // 2)]
        head = Head.of(llm.model_path, self.settings.seed)
        gather(llm, some, self._fit_gate, warmup=WARMUP, profile=llm.profile, head=head, progress=self._stage("gates"))
        self._use_draft()
        self._weigh_layers(text.fitted[-max(1, len(text.fitted) // 4) :])

    def _fit_stand_in(self, il: int, sums: LayerSums) -> None:
        fitted = fit_stand_in(sums, self.rank)
        if fitted is not None:
            layer, self.stand_in_r2[il] = fitted
            stored = {name: quantise(matrix, self.settings.quantisation) for name, matrix in layer.matrices.items()}
            self.layers[il] = LayerFit(np.zeros(self.n_embd + 2, np.float32), layer.bias, {**stored})

    def _fit_gate(self, il: int, sums: LayerSums) -> None:
        layer = self.layers[il]
        assert layer is not None
        fitted = fit_gate(sums)
        self.layers[il], self.gate_r2[il] = replace(layer, gate=fitted.gate), fitted.r2

    def _weigh_layers(self, windows: Sequence[Tokens]) -> None:
        harm, errors = curve.random_harm(self.llm, windows, self.settings.seed, self._stage("sensitivities"))
        covered = [il for il, layer in enumerate(self.layers) if layer is not None]
        logs = fit_sensitivity(harm, errors[:, covered])
        logs -= np.median(logs)  # so that a threshold stays about the log of a relative error
        for il, log in zip(covered, logs, strict=True):
            layer = self.layers[il]
            assert layer is not None
            gate = layer.gate.copy()
            gate[-1] += log
            self.layers[il] = replace(layer, gate=gate)

    # Distilled

    def _distill(self) -> None:
        from .distill import distill

        self.layers = distill(
            self.llm.model_path, self.text.fitted, seconds=self.settings.distill, width=self.settings.width,
            seed=self.settings.seed, warmup=WARMUP, progress=self.progress,
        )  # fmt: skip

    # Operating points

    def _points(self) -> tuple[list[Point], int]:
        held = self.text.held_out
        self._use_draft()
        thresholds = curve.find_thresholds(
            self.llm, held[: max(1, len(held) // 2)], curve.RATES, self._stage("thresholds")
        )
        points = curve.measure(self.llm, held, thresholds, self._stage("curve"))
        if not points:
            raise PolicyError(f"{self.llm.model_path}: no threshold skips anything: give more text")
        return points, curve.recommend(points)

    def _use_draft(self) -> None:
        """Let the model decide by what is fitted so far."""
        nothing = Point(0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
        self._write(self.draft, [nothing], 0, "draft")
        self.llm.profile = self.draft

    def _write(self, path: Path, points: Sequence[Point], recommended: int, method: str) -> None:
        from .. import __version__

        provenance = Provenance(
            model=self.info.name or Path(self.llm.model_path).name,
            fingerprint=self.info.fingerprint,
            stand_in="gated" if self.settings.distill else "linear",
            method=method,
            text=self.text.source,
            text_sha256=self.text.sha256,
            n_tokens=self.text.n_tokens,
            warmup=WARMUP,
            made_by=f"pyskip {__version__}",
        )
        write_profile(path, self.layers, points, recommended, provenance, self.settings.quantisation)
