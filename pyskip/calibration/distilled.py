"""What `pyskip calibrate --distill` does besides training (distill/): text by kind, the state, the profile's layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ..errors import PyskipError
from ..runtime.llama import Llama
from .distill.state import State, load_state, to_float
from .distill.text import Starts, Text
from .text import Tokens, read_files, sample_text, starts_of
from .write import F32, LayerFit, Quantised

__all__ = ["DistilSettings", "distil", "layers_of", "read_kinds", "text_for"]

N_SAMPLED = 160  # windows of the model's own text, where no GPU writes it

Progress = Callable[[str, int, int, str], None]  # stage, done, total, what to show


@dataclass(frozen=True)
class DistilSettings:
    """seconds: of training in all, earlier runs counted in. n_fit: windows of the model's own text, beside a text that
    is given, or alone; None: none beside a text, else N_SAMPLED unless a GPU writes it."""

    seconds: float
    text: tuple[Path, ...]
    n_fit: int | None
    n_curve: int
    width: int | None
    seed: int
    state: Path


def read_kinds(
    llm: Llama, paths: Sequence[Path], n_window: int, n_held: int
) -> tuple[dict[str, list[Tokens]], tuple[Tokens, ...], str]:
    """Each file is a kind. Windows to measure on are cut off their beginnings, in turns. Returns both, and the sha256
    of the files.

    Raises PyskipError for a file that is not UTF-8 and for fewer than two windows in all.
    """
    pieces, digest = read_files(llm, paths)
    held: list[Tokens] = []
    while len(held) < n_held:
        able = [i for i, p in enumerate(pieces) if len(p) >= 4 * n_window]
        if not able and held:
            break
        if not able:
            able = [i for i, p in enumerate(pieces) if len(p) >= 2 * n_window]
        if not able:
            raise PyskipError(
                f"{', '.join(map(str, paths))}: {sum(map(len, pieces))} tokens, expected a file of at least "
                f"{2 * n_window} (a million are wise): give more text, or none to use the model's own"
            )
        for i in able[: n_held - len(held)]:
            held.append(pieces[i][:n_window])
            pieces[i] = pieces[i][n_window:]
    names = [f"{i} {path.name}" for i, path in enumerate(paths, 1)]
    return {name: [p] for name, p in zip(names, pieces, strict=True) if len(p) >= n_window}, tuple(held), digest


def text_for(
    llm: Llama, settings: DistilSettings, progress: Progress, *, measure_only: bool = False, away: bool = False
) -> tuple[Text, tuple[Tokens, ...]]:
    """What to train on, and windows to measure on. away: it is trained on elsewhere, where the model's own text is
    written by a GPU."""
    n_window = llm.n_ctx()
    starts = Starts(*starts_of(llm, settings.seed))
    if settings.text:
        kinds, held, digest = read_kinds(llm, settings.text, n_window, settings.n_curve)
        source = ", ".join(path.name for path in settings.text)
        if settings.n_fit and not measure_only:
            own = sample_text(llm, n_window, settings.n_fit, 0, settings.seed, progress)
            kinds, source = kinds | {"own": list(own.fitted)}, f"{source}, and {own.source}"
        return Text(kinds, source, digest, starts), held
    if away:
        return Text({}, f"sampled from the model, seed {settings.seed}", "", starts), ()
    n_fit = 0 if measure_only else settings.n_fit or N_SAMPLED
    text = sample_text(llm, n_window, n_fit, settings.n_curve, settings.seed, progress)
    return Text({"own": text.fitted} if n_fit else {}, text.source, text.sha256, starts), text.held_out


def distil(llm: Llama, settings: DistilSettings, progress: Progress) -> tuple[State, tuple[Tokens, ...]]:
    """The state, trained as long as it says, and windows that it was not trained on."""
    before = load_state(settings.state, llm.model_path) if settings.state.exists() else None
    if before and before.is_finished(settings.seconds):  # then neither torch nor more text is needed
        _, held = text_for(llm, settings, progress, measure_only=True)
        return before, held
    from .distill.train import Plan, train

    plan = replace(Plan.here(settings.seconds), width=settings.width, seed=settings.seed, n_window=llm.n_ctx())
    if settings.text:
        plan = replace(plan, n_own=0)  # what the user gives, and nothing else
    text, held = text_for(llm, settings, progress, measure_only=plan.n_own > 0)
    return train(llm.model_path, text, plan, progress, settings.state), held


def layers_of(state: State, quantisation: str) -> list[LayerFit | None]:
    """In the type that the profile is wanted in; what was trained as Q4_0 is written as it is."""

    def matrix(stored: npt.NDArray[Any]) -> F32 | Quantised:
        if stored.dtype == np.uint8 and quantisation == "Q4_0":
            return Quantised(stored, gguf.GGMLQuantizationType.Q4_0)
        return to_float(stored)

    return [
        LayerFit(gate, bias, {"skip_gate_up": matrix(gate_up), "skip_down": matrix(down)})
        for gate, bias, gate_up, down in zip(state.gate, state.bias, state.gate_up, state.down, strict=True)
    ]
