"""What to calibrate on: the user's files, or text that the model writes itself, so that no data set is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DecodeError, PyskipError
from ..runtime.batch import BatchContext
from ..runtime.generation import chat_tokens
from ..runtime.llama import Llama

__all__ = ["CalibrationText", "Tokens", "read_text", "sample_text"]

N_SEQ = 20  # sequences that are sampled side by side at most
TOP = 1000  # likeliest tokens that are sampled from
TOP_P = 0.97

Tokens = npt.NDArray[np.int32]
Progress = Callable[[str, int, int, str], None]  # stage, done, total, what to show


@dataclass(frozen=True)
class CalibrationText:
    """Windows of tokens, shuffled: those to fit on and those to measure on, which are never fitted."""

    fitted: tuple[Tokens, ...]
    held_out: tuple[Tokens, ...]
    source: str  # for people
    sha256: str

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.fitted))


def _split(windows: list[Tokens], n_fit: int, n_held: int, source: str, sha256: str) -> CalibrationText:
    return CalibrationText(tuple(windows[n_held : n_held + n_fit]), tuple(windows[:n_held]), source, sha256)


def read_text(llm: Llama, paths: Sequence[Path], n_window: int, n_fit: int, n_held: int, seed: int) -> CalibrationText:
    """Windows of n_window tokens out of the files, drawn without repetition.

    Raises PyskipError for a file that is not UTF-8 and for fewer than two windows in all.
    """
    windows: list[Tokens] = []
    digest = hashlib.sha256()
    for path in paths:
        raw = path.read_bytes()
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
            raise PyskipError(f"{path}: line {line} is not UTF-8: convert it, for instance with iconv") from None
        digest.update(raw)
        tokens = np.array(llm.tokenize(raw, add_bos=False, special=False) if raw else [], np.int32)
        windows += [tokens[i : i + n_window] for i in range(0, len(tokens) - n_window + 1, n_window)]
    if len(windows) < 2:
        raise PyskipError(
            f"{', '.join(map(str, paths))}: {len(windows)} windows of {n_window} tokens, expected at least 2 "
            "(40 or more are wise): give more text, or none to use the model's own"
        )
    order = np.random.default_rng(seed).permutation(len(windows))
    n_held = min(n_held, max(1, len(windows) // 4))
    source = ", ".join(path.name for path in paths)
    return _split([windows[i] for i in order], n_fit, n_held, source, digest.hexdigest())


def sample_text(llm: Llama, n_window: int, n_fit: int, n_held: int, seed: int, progress: Progress) -> CalibrationText:
    """Windows that the model writes at temperature 1: half from nothing, half as a user's turn that it then answers."""
    rng = np.random.default_rng(seed)
    starts = _starts(llm)
    windows: list[Tokens] = []
    n_round = -(-(n_fit + n_held) // N_SEQ)
    n_seq = -(-(n_fit + n_held) // n_round)
    with BatchContext(llm, n_seq, n_window, n_seq) as context:
        for i in range(n_round):
            context.clear()
            prefixes = [starts[s % len(starts)] for s in range(n_seq)]
            windows += _sample(context, prefixes, n_window, rng, lambda done, i=i: progress(  # type: ignore[misc]
                "sample", i * n_window + done, n_round * n_window, ""))  # fmt: skip
    order = rng.permutation(len(windows))
    digest = hashlib.sha256(np.concatenate(windows).tobytes()).hexdigest()
    return _split([windows[i] for i in order], n_fit, n_held, f"sampled from the model, seed {seed}", digest)


def _starts(llm: Llama) -> list[list[int]]:
    empty = llm.token_eos() if llm.token_bos() < 0 or not llm.engine.adds_bos else llm.token_bos()
    starts = [[empty if empty >= 0 else 0]]
    try:
        a, b = (chat_tokens(llm, [{"role": "user", "content": text}]) for text in ("A", "The"))
    except DecodeError:
        return starts
    n_same = next((i for i, (s, t) in enumerate(zip(a, b, strict=False)) if s != t), 0)
    return [*starts, a[:n_same]] if n_same else starts


def _sample(
    context: BatchContext,
    prefixes: list[list[int]],
    n_window: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
) -> list[Tokens]:
    n_seq = len(prefixes)
    tokens = np.zeros((n_seq, n_window), np.int32)
    known = np.zeros((n_seq, n_window), bool)
    for s, prefix in enumerate(prefixes):
        n = min(len(prefix), n_window)
        tokens[s, :n], known[s, :n] = prefix[:n], True
    wanted = np.ones(n_seq, bool)
    for pos in range(n_window - 1):
        logits = context.decode(tokens[:, pos].tolist(), [pos] * n_seq, range(n_seq), wanted)
        drawn = _draw(logits, rng)
        tokens[:, pos + 1] = np.where(known[:, pos + 1], tokens[:, pos + 1], drawn)
        progress(pos + 2)
    return list(tokens)


def _draw(logits: npt.NDArray[np.float32], rng: np.random.Generator) -> Tokens:
    n_top = min(TOP, logits.shape[1])
    top = np.argpartition(logits, -n_top, axis=1)[:, -n_top:]
    p = np.take_along_axis(logits, top, 1)
    order = np.argsort(-p, axis=1)
    top, p = np.take_along_axis(top, order, 1), np.take_along_axis(p, order, 1)
    p = np.exp(p - p[:, :1])
    p /= p.sum(axis=1, keepdims=True)
    below = np.cumsum(p, axis=1)
    p[below - p > TOP_P] = 0
    below = np.cumsum(p, axis=1)
    chosen = (below < rng.random((len(p), 1)) * below[:, -1:]).sum(axis=1).clip(max=n_top - 1)
    return np.take_along_axis(top, chosen[:, None], 1)[:, 0].astype(np.int32)
