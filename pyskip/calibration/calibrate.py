"""Leads through a calibration: text, sums, fits, operating points, file. Called by `pyskip calibrate`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import QK_K

from ..errors import PolicyError, ProfileError, PyskipError
from ..models.gguf_info import inspect
from ..models.profile import Point, Profile, path_beside
from ..runtime.llama import Llama
from . import curve
from .distill.text import save_text
from .distilled import DistilSettings, distil, layers_of, text_for
from .fit import GateFit, attention_rank, fit_gate, fit_gated_stand_in, fit_linear_stand_in, fit_token_harm
from .gather import Kind, LayerSums, gather
from .harm import layer_harm, observe, token_harm
from .neurons import Neurons, fitted_width
from .sublayer import Sublayer
from .text import CalibrationText, Progress, Tokens, read_text, sample_text
from .write import LayerFit, Provenance, Quantised, quantise, write_profile

__all__ = ["Calibration", "Settings", "calibrate", "open_model", "write_tokens"]

N_WINDOW = 512  # tokens; the model's own context if that is less
WARMUP = 16
N_FIT = 32
N_CURVE = 4
N_CHOOSE = 4  # windows that neurons are chosen on
SAMPLE_SHARE = 0.3  # of the time; the passes over what is written, and measuring, take the rest
DRAFT_POINT = Point(0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

F32 = npt.NDArray[np.float32]
Gather = Callable[..., None]  # as gather()


@dataclass(frozen=True)
class Settings:
    """What `pyskip calibrate` may be asked for.

    rank: of linear stand-ins, at most n_embd (the default: one matrix of full rank), which otherwise serve only blocks
        that are no activation(gate) * up; 0: the mean of what a block adds.
    width: neurons of gated ones.
    quantisation: of stand-ins; None: Q4_0, of closed-form gated ones Q2_K where rows are whole blocks of it: twice the
        neurons for the same bytes are worth more.
    n_fit, n_curve: windows of N_WINDOW tokens to fit on, and to measure on. n_fit None: N_FIT; n_curve None: N_CURVE,
        or one of each file if there are more. To distill, all of a text is trained on, and n_fit counts windows of the
        model's own (None: none beside a text, without one 160, on a GPU two thousand).
    attention: gates and stand-ins of attention, too, in closed form.
    minutes: that the closed form may take in all, about; then there is as much of the model's own text as fits.
    n_harm: of those to fit on, windows that the harm is measured on; 0: gates predict the error alone.
    distill: seconds of end-to-end training instead of the closed form, earlier runs counted in; 0: none.
    state: the file that training is saved in and gone on from; by default beside the profile.
    """

    text: tuple[Path, ...] = ()
    rank: int | None = None
    quantisation: str | None = None
    n_fit: int | None = None
    n_curve: int | None = None
    attention: bool = False
    minutes: float | None = None
    n_harm: int = 12
    seed: int = 1
    distill: float = 0.0
    width: int | None = None
    state: Path | None = None
    output: Path | None = None

    @property
    def n_measured(self) -> int:
        """Windows to measure on."""
        return self.n_curve or max(N_CURVE, len(self.text))


@dataclass(frozen=True)
class Calibration:
    """What was made. R² of stand-ins (output energy explained) and of gates, by layer. attention_curve: with the FFNs
    computed; empty if it was not asked for."""

    profile: Path
    rank: int
    n_tokens: int
    seconds: float
    curve: tuple[Point, ...]
    recommended: Point
    stand_in_r2: dict[int, float] = field(default_factory=dict)
    gate_r2: dict[int, float] = field(default_factory=dict)
    attention_curve: tuple[Point, ...] = ()
    attention_stand_in_r2: dict[int, float] = field(default_factory=dict)
    attention_gate_r2: dict[int, float] = field(default_factory=dict)


@dataclass
class Fitted:
    """Of a kind of sublayer, by layer, and of all layers."""

    layers: list[LayerFit | None]
    stand_in_r2: dict[int, float] = field(default_factory=dict)
    gate_r2: dict[int, float] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=lambda: [DRAFT_POINT])

    def set_stand_in(self, il: int, matrices: dict[str, F32 | Quantised], bias: F32) -> None:
        """With a gate that is not fitted yet."""
        self.layers[il] = LayerFit(np.zeros(len(bias) + 2, np.float32), bias, matrices)

    def set_gate(self, il: int, gate: F32, offset: float) -> None:
        """offset: what is added to its score."""
        layer = self.layers[il]
        assert layer is not None
        self.layers[il] = replace(layer, gate=np.append(gate[:-1], gate[-1] + np.float32(offset)))


def calibrate(
    model: str | os.PathLike[str],
    settings: Settings,
    progress: Progress,
    n_threads: int | None = None,
    gather: Gather = gather,
) -> Calibration:
    """Make the model's profile and write it. gather: of the closed form, here or elsewhere. Raises PyskipError (text),
    PolicyError (model), ProfileError (target)."""
    start = time.monotonic()
    target = settings.output or path_beside(model)
    _check_target(target)
    with open_model(model, n_threads) as llm:
        llm.engine.check_decoder()
        if not llm.skippable_layers:
            raise PolicyError(f"{model}: no layer can be skipped")
        with tempfile.TemporaryDirectory(prefix="pyskip-") as folder:
            return Run(llm, settings, progress, Path(folder) / "draft.skip.gguf", gather).run(target, start)


def write_tokens(model: str | os.PathLike[str], settings: Settings, path: Path, n_threads: int | None = None) -> int:
    """The text as tokens, and what the model's own text begins with, to be trained on elsewhere (distill/__main__.py).
    Returns how many. Raises PyskipError."""
    s = settings
    with open_model(model, n_threads) as llm:
        wanted = DistilSettings(s.distill, s.text, s.n_fit, s.n_measured, s.width, s.seed, state_beside(path))
        text, _ = text_for(llm, wanted, lambda *_: None, away=True)
    try:
        save_text(path, text)
    except OSError as error:
        raise PyskipError(f"{path}: cannot be written ({error.strerror}): make room or name another file") from error
    return text.n_tokens


def state_beside(target: Path) -> Path:
    return target.with_name(target.name.removesuffix(".gguf").removesuffix(".skip") + ".distill.npz")


@contextmanager
def open_model(model: str | os.PathLike[str], n_threads: int | None) -> Iterator[Llama]:
    n_window = min(N_WINDOW, inspect(model).n_ctx_train or N_WINDOW)
    llm = Llama(
        model,
        n_ctx=n_window,
        n_batch=n_window,
        n_ubatch=n_window,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        verbose=False,
    )
    try:
        yield llm
    finally:
        llm.close()


def _check_target(target: Path) -> None:
    """An unwritable target is better known before the work than after it."""
    if not os.access(target.parent, os.W_OK) or target.is_dir():
        raise ProfileError(f"{target}: cannot be written: name another file with -o")


class Run:
    def __init__(
        self, llm: Llama, settings: Settings, progress: Progress, draft: Path, gather: Gather = gather
    ) -> None:
        self.llm, self.settings, self.progress, self.draft, self.gather = llm, settings, progress, draft, gather
        self.n_embd, self.n_layer = llm.n_embd(), llm.engine.skip.n_layer
        self.info = llm.engine.info
        self.rank = self.n_embd if settings.rank is None else min(settings.rank, self.n_embd)
        self.stand_in = "gated" if settings.distill else "none" if self.rank == 0 else "linear"
        self.quantisation = settings.quantisation or "Q4_0"
        self.activation, self.hidden_norm = "silu", False
        self.ffn, self.attention = Fitted([None] * self.n_layer), Fitted([None] * self.n_layer)
        self.text: CalibrationText

    def run(self, target: Path, start: float) -> Calibration:
        if self.settings.distill:
            self._distill(target)
            method = "distilled"
        else:
            self.text = self._text()
            self.fit()
            method = "closed form"
        self._measure()
        self._write(target, curve.recommend(self.ffn.curve), method)
        profile = Profile(target)
        return Calibration(
            target, profile.rank, self.text.n_tokens, time.monotonic() - start, profile.curve, profile.recommended,
            self.ffn.stand_in_r2, self.ffn.gate_r2,
            profile.attention_curve, self.attention.stand_in_r2, self.attention.gate_r2,
        )  # fmt: skip

    def _stage(self, name: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(name, done, total, "")

    def _text(self) -> CalibrationText:
        s = self.settings
        if s.text:
            return read_text(self.llm, s.text, self.llm.n_ctx(), s.n_fit or N_FIT, s.n_measured, s.seed)
        n_fit = s.n_fit or N_FIT
        seconds = 60 * s.minutes * SAMPLE_SHARE if s.minutes else None
        return sample_text(self.llm, self.llm.n_ctx(), n_fit, s.n_measured, s.seed, self.progress, seconds)

    # Closed form

    def fit(self) -> None:
        """Stand-ins, gates and sensitivities from self.text, into self.ffn and self.attention."""
        if self.settings.rank is None:
            self._fit_gated()
        if not any(self.ffn.layers):
            self._fit_linear(Sublayer.FFN, self.rank)
        self._fit_gates(Sublayer.FFN)
        if self.settings.attention:
            self._fit_linear(Sublayer.ATTENTION, attention_rank(self.n_embd))
            self._fit_gates(Sublayer.ATTENTION)

    def _of(self, sublayer: Sublayer) -> Fitted:
        return self.ffn if sublayer is Sublayer.FFN else self.attention

    def _gather(
        self,
        windows: Sequence[Tokens],
        kind: Kind,
        visit: Callable[[int, LayerSums], None],
        stage: str,
        sublayer: Sublayer = Sublayer.FFN,
        targets: Sequence[F32] = (),
    ) -> None:
        profile = self._draft() if kind in (Kind.HIDDEN, Kind.ERRORS) else None
        self.gather(
            self.llm, windows, kind, visit, warmup=WARMUP, sublayer=sublayer, profile=profile,
            targets=targets, progress=self._stage(sublayer.named(stage)),
        )  # fmt: skip

    def _fit_gated(self) -> None:
        """The strongest of each block's own neurons, and a skip_down that makes up for the rest."""
        neurons = Neurons(self.llm.model_path)
        own: dict[int, F32] = {}  # the down of those that were chosen
        quantisation = self.settings.quantisation or ("Q4_0" if self.n_embd % QK_K else "Q2_K")
        width = self.settings.width or fitted_width(self.info.n_ff, self.n_embd, self.n_layer, quantisation)

        def choose(il: int, sums: LayerSums) -> None:
            squares, inputs = np.split(sums.cross[0], [-self.n_embd])
            found = neurons.strongest(il, squares, width)
            activation = sums.activation or self.activation
            if found is not None and (not own or activation == self.activation):  # one for all layers
                self.activation = activation
                gate_up, own[il] = found
                stored = {
                    "skip_gate_up": quantise(gate_up, quantisation, inputs / np.float32(sums.n_tokens)),
                    "skip_down": quantise(own[il], quantisation),
                }
                self.ffn.set_stand_in(il, {**stored}, np.zeros(self.n_embd, np.float32))

        def fit(il: int, sums: LayerSums) -> None:
            fitted, layer = fit_gated_stand_in(sums, own.pop(il), is_normed=self.hidden_norm), self.ffn.layers[il]
            assert layer is not None
            self.ffn.stand_in_r2[il] = fitted.explained
            stored = quantise(fitted.matrices["skip_down"], quantisation, fitted.importance)
            self.ffn.layers[il] = replace(layer, bias=fitted.bias, matrices={**layer.matrices, "skip_down": stored})

        self._gather(self.text.fitted[:N_CHOOSE], Kind.NEURONS, choose, "neurons")
        if own:
            self.stand_in, self.rank, self.hidden_norm = "gated", width, neurons.has_post_norm()
            self._gather(self.text.fitted, Kind.HIDDEN, fit, "stand-ins")

    def _fit_linear(self, sublayer: Sublayer, rank: int) -> None:
        found = self._of(sublayer)

        def fit(il: int, sums: LayerSums) -> None:
            fitted = fit_linear_stand_in(sums, rank)
            if fitted is not None:
                found.stand_in_r2[il] = fitted.explained
                stored = {name: quantise(matrix, self.quantisation) for name, matrix in fitted.matrices.items()}
                found.set_stand_in(il, {**stored}, fitted.bias)

        self._gather(self.text.fitted, Kind.OUTPUTS, fit, "stand-ins", sublayer)
        if not any(found.layers):
            raise PolicyError(
                f"{self.llm.model_path}: {self.text.n_tokens} tokens are too few to fit {self.n_embd} x {self.n_embd} "
                f"values on, or no {sublayer.named('input')} can be told: give more text"
            )

    def _fit_gates(self, sublayer: Sublayer) -> None:
        """Each gate predicts its stand-in's error, against the usual size of the stream that the next block gets, and
        what such an error does to the next tokens."""
        found, fits = self._of(sublayer), dict[int, GateFit]()
        self._gather(
            self.text.fitted, Kind.ERRORS, lambda il, sums: fits.update({il: fit_gate(sums)}), "gates", sublayer
        )
        for il, fitted in fits.items():
            found.gate_r2[il] = fitted.r2
            found.set_gate(il, fitted.gate, -fits.get(il + 1, fitted).log_x)
        if not self.settings.n_harm:
            return
        self._fit_harm(sublayer)

    def _fit_harm(self, sublayer: Sublayer) -> None:
        """What an error does: in which layer, and to which token."""
        found, show = self._of(sublayer), self._stage(sublayer.named("harm"))
        windows = self.text.fitted[-self.settings.n_harm :]
        seen = observe(self.llm, self._draft(), windows, self.settings.seed, show, sublayer)
        u, expected = layer_harm(seen)
        targets = [np.append(np.full(WARMUP, np.nan, np.float32), t) for t in token_harm(seen, expected, len(windows))]

        def add(il: int, sums: LayerSums) -> None:
            layer = found.layers[il]
            if layer is not None:
                found.set_gate(il, layer.gate + fit_token_harm(sums), float(u[il]))

        self._gather(windows, Kind.GIVEN, add, "harm by token", sublayer, targets)

    # Distilled

    def _distill(self, target: Path) -> None:
        s = self.settings
        settings = DistilSettings(
            s.distill, s.text, s.n_fit, s.n_measured, s.width, s.seed, s.state or state_beside(target)
        )  # fmt: skip
        state, held = distil(self.llm, settings, self.progress)
        self.ffn.layers, self.activation = layers_of(state, self.quantisation), state.activation
        self.hidden_norm, self.rank = state.hidden_norm, state.width
        self.text = CalibrationText((), held, state.source, state.sha256, state.n_tokens)

    # Operating points

    def _measure(self) -> None:
        """The curves of what is fitted, each with all of the other sublayers computed."""
        held, profile = self.text.held_out, self._draft()
        halves = [window[: len(window) // 2] for window in held]  # of every kind of text, at half of the cost
        self.llm.profile = self.draft
        for sublayer in Sublayer:
            if not any(self._of(sublayer).layers):
                continue
            thresholds, show = (self._stage(sublayer.named(stage)) for stage in ("thresholds", "curve"))
            found = curve.find_thresholds(self.llm, profile, sublayer, halves, curve.RATES, thresholds)
            points = curve.measure(self.llm, profile, sublayer, held, found, show)
            if not points:
                raise PolicyError(
                    f"{self.llm.model_path}: no {sublayer.named('threshold')} skips anything: give more text"
                )
            self._of(sublayer).curve = points

    def _draft(self) -> Profile:
        """What is fitted so far."""
        self._write(self.draft, 0, "draft")
        return Profile(self.draft)

    def _write(self, path: Path, recommended: int, method: str) -> None:
        from .. import __version__

        provenance = Provenance(
            model=self.info.name or Path(self.llm.model_path).name,
            fingerprint=self.info.fingerprint,
            stand_in=self.stand_in,
            method=method,
            text=self.text.source,
            text_sha256=self.text.sha256,
            n_tokens=self.text.n_tokens,
            warmup=WARMUP,
            made_by=f"pyskip {__version__}",
            activation=self.activation,
            hidden_norm=self.hidden_norm,
        )
        write_profile(
            path, self.ffn.layers, self.ffn.curve, recommended, provenance, self.quantisation,
            attention=self.attention.layers, attention_curve=self.attention.curve,
        )  # fmt: skip
