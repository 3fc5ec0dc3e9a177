"""What to calibrate on: the user's files, or text that the model writes itself, so that no data set is needed."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DecodeError, PyskipError
from ..runtime.batch import BatchContext
from ..runtime.generation import chat_tokens
from ..runtime.llama import Llama
from .prompts import PROMPTS, many_prompts

__all__ = ["CalibrationText", "Progress", "Tokens", "read_files", "read_text", "sample_text", "starts_of"]

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
    n_tokens: int  # of those to fit on


def _split(windows: list[Tokens], n_fit: int, n_held: int, source: str, sha256: str) -> CalibrationText:
    fitted = tuple(windows[n_held : n_held + n_fit])
    return CalibrationText(fitted, tuple(windows[:n_held]), source, sha256, sum(map(len, fitted)))


def starts_of(llm: Llama, seed: int) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """What the model's own text begins with: nothing, or one of the prompts; and the tokens that end an answer."""
    starts = _Starts(llm, np.random.default_rng(seed), many_prompts(seed))
    ends = tuple(token for token in range(llm.n_vocab()) if llm.engine.is_eog(token))
    return tuple(starts.empty), tuple(map(tuple, starts.prompts)), ends


def read_files(llm: Llama, paths: Sequence[Path]) -> tuple[list[Tokens], str]:
    """The tokens of each, and the sha256 of all of them. Raises PyskipError for one that is not UTF-8."""
    pieces: list[Tokens] = []
    digest = hashlib.sha256()
    for path in paths:
        raw = path.read_bytes()
        try:
            raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
            raise PyskipError(f"{path}: line {line} is not UTF-8: convert it, for instance with iconv") from None
        digest.update(raw)
        pieces.append(np.array(llm.tokenize(raw, add_bos=False, special=False) if raw else [], np.int32))
    return pieces, digest.hexdigest()


def read_text(llm: Llama, paths: Sequence[Path], n_window: int, n_fit: int, n_held: int, seed: int) -> CalibrationText:
    """Windows of n_window tokens out of the files, drawn without repetition, of each file in turn: a file is a kind of
    text, and what is fitted or measured is of all kinds, whatever their sizes.

    Raises PyskipError for a file that is not UTF-8 and for fewer than two windows in all.
    """
    pieces, digest = read_files(llm, paths)
    rng, kinds = np.random.default_rng(seed), list[list[Tokens]]()
    for tokens in pieces:
        cut = [tokens[i : i + n_window] for i in range(0, len(tokens) - n_window + 1, n_window)]
        kinds.append([cut[i] for i in rng.permutation(len(cut))])
    windows = [window for turn in itertools.zip_longest(*kinds) for window in turn if window is not None]
    if len(windows) < 2:
        raise PyskipError(
            f"{', '.join(map(str, paths))}: {len(windows)} windows of {n_window} tokens, expected at least 2 "
            "(40 or more are wise): give more text, or none to use the model's own"
        )
    n_held = min(n_held, max(1, len(windows) // 4))
    source = ", ".join(path.name for path in paths)
    return _split(windows, n_fit, n_held, source, digest)


def sample_text(
    llm: Llama, n_window: int, n_fit: int, n_held: int, seed: int, progress: Progress, seconds: float | None = None
) -> CalibrationText:
    """Windows that the model writes at temperature 1: every fourth from nothing, the others as answers to PROMPTS, the
    next as soon as one is answered.

    seconds: for as long, whatever n_fit, but N_SEQ windows at least.
    """
    rng, begin = np.random.default_rng(seed), time.monotonic()
    windows: list[Tokens] = []
    n_round = 1 if seconds else -(-(n_fit + n_held) // N_SEQ)
    n_seq = N_SEQ if seconds else -(-(n_fit + n_held) // n_round)
    starts = _Starts(llm, rng)
    with BatchContext(llm, n_seq, n_window, n_seq) as context:
        i = 0
        while i < n_round:
            context.clear()
            windows += _sample(context, starts, llm.engine.is_eog, n_seq, n_window, rng, lambda done: progress(
                "sample", i * n_window + done, n_round * n_window, ""))  # noqa: B023  # fmt: skip
            i += 1
            if seconds:
                n_round = max(i, int(seconds * i / (time.monotonic() - begin)))
    n_fit = len(windows) - n_held if seconds else n_fit
    order = rng.permutation(len(windows))
    digest = hashlib.sha256(np.concatenate(windows).tobytes()).hexdigest()
    return _split([windows[i] for i in order], n_fit, n_held, f"sampled from the model, seed {seed}", digest)


class _Starts:
    """What a sequence begins with, and goes on with where the model has said all that it wants to."""

    def __init__(self, llm: Llama, rng: np.random.Generator, prompts: Sequence[str] = PROMPTS) -> None:
        empty = llm.token_eos() if llm.token_bos() < 0 or not llm.engine.adds_bos else llm.token_bos()
        self.empty = [empty if empty >= 0 else 0]
        self.prompts = [self._tokens(llm, prompts[i]) for i in rng.permutation(len(prompts))]
        self._next = 0

    def _tokens(self, llm: Llama, prompt: str) -> list[int]:
        """By the chat template; a model without one, or whose template wants something else, goes on from the text."""
        with suppress(DecodeError):
            if llm.metadata.get("tokenizer.chat_template"):
                return chat_tokens(llm, [{"role": "user", "content": prompt}])
        return [*self.empty, *llm.tokenize(f"{prompt}\n\n".encode(), add_bos=False, special=False)]

    def take(self, s: int) -> list[int]:
        """For sequence s."""
        if s % 4 == 0:
            return list(self.empty)
        self._next += 1
        return list(self.prompts[self._next % len(self.prompts)])


def _sample(
    context: BatchContext,
    starts: _Starts,
    is_eog: Callable[[int], bool],
    n_seq: int,
    n_window: int,
    rng: np.random.Generator,
    progress: Callable[[int], None],
) -> list[Tokens]:
    tokens = np.zeros((n_seq, n_window), np.int32)
    given = [starts.take(s) for s in range(n_seq)]  # what is still to come of a start, by sequence
    wanted = np.ones(n_seq, bool)
    for s in range(n_seq):
        tokens[s, 0] = given[s].pop(0)
    for pos in range(n_window - 1):
        logits = context.decode(tokens[:, pos].tolist(), [pos] * n_seq, range(n_seq), wanted)
        drawn = _draw(logits, rng)
        for s in range(n_seq):
            if given[s]:
                tokens[s, pos + 1] = given[s].pop(0)
                continue
            tokens[s, pos + 1] = drawn[s]
            if is_eog(int(drawn[s])):
                given[s] = starts.take(s)
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
