"""What distillation has learnt so far, as a file: to go on from, and to measure and write the profile from.

Matrices are Q4_0 once training sees them so: that is what the profile will hold, and training goes on from it without a
step in what the model computes. Before that they are float16.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from ...errors import PyskipError
from ...replace import replacing

__all__ = ["State", "load_state", "model_digest", "save_state", "to_float"]

VERSION = 1
ENDS = 4 << 20  # bytes of either end of a model that tell it from another


@dataclass(frozen=True)
class State:
    """gate_up: [n_layer, 2*width, n_embd], down: [n_layer, n_embd, width], float16 or, as uint8, rows of Q4_0 blocks.
    gate: [n_layer, n_embd + 2]; bias: [n_layer, n_embd]. By rate: thresholds, and the shifts of train.py."""

    model: str  # model_digest
    activation: str
    hidden_norm: bool
    width: int
    warmup: int
    seconds: float  # spent, or when it is finished all that it was given
    share: float  # of the joint stage that is done
    n_tokens: int  # that were trained on, again and again
    source: str
    sha256: str
    gate: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    gate_up: npt.NDArray[Any]
    down: npt.NDArray[Any]
    rates: npt.NDArray[np.float64]
    thresholds: npt.NDArray[np.float64]
    shifts: npt.NDArray[np.float64]
    version: int = VERSION

    def is_finished(self, seconds: float) -> bool:
        """Whether so much training in all asks for no more of it."""
        return self.share >= 1 and self.seconds >= seconds - 1


def model_digest(path: str | os.PathLike[str]) -> str:
    """Of the file's size and both its ends."""
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(ENDS))
        file.seek(max(0, size - ENDS))
        digest.update(file.read(ENDS))
    return digest.hexdigest()


def save_state(path: Path, state: State) -> None:
    """In place of the file that was there, or not at all. Raises OSError."""
    with replacing(path) as part, open(part, "wb") as file:
        np.savez(file, **{f.name: np.asarray(getattr(state, f.name)) for f in fields(state)})  # type: ignore[arg-type]


def load_state(path: Path, model: str | os.PathLike[str]) -> State:
    """Raises PyskipError if it is none, or of another model."""
    again = "name another --state, or delete it to train anew"
    try:
        with np.load(path) as file:
            values = {f.name: file[f.name] for f in fields(State)}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise PyskipError(f"{path}: no state of distillation ({error}): {again}") from error
    made = {name: value.item() if value.ndim == 0 else value for name, value in values.items()}
    state = State(**made)
    if state.version != VERSION or state.model != model_digest(model):
        raise PyskipError(f"{path}: found the state of another model than {model}, or of another version: {again}")
    return state


def to_float(matrix: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Of State.gate_up and State.down."""
    if matrix.dtype != np.uint8:
        return matrix.astype(np.float32)
    rows = gguf.dequantize(matrix.reshape(-1, matrix.shape[-1]), gguf.GGMLQuantizationType.Q4_0)
    return rows.reshape(*matrix.shape[:-1], -1).astype(np.float32, copy=False)
