"""Tokens to train on, by kind, and windows drawn from them. A file of them goes to a machine without pyskip."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...errors import PyskipError
from ...replace import replacing

__all__ = ["Draws", "Starts", "Text", "load_text", "save_text"]

HELD_SHARE = 0.04  # of each kind: windows to measure on, never trained on
MIN_HELD, MAX_HELD = 1, 24  # of each kind

Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Starts:
    """What the model's own text begins with: nothing, or a prompt; and the tokens that end an answer."""

    empty: tuple[int, ...] = ()
    prompts: tuple[tuple[int, ...], ...] = ()
    ends: tuple[int, ...] = ()


@dataclass(frozen=True)
class Text:
    """kinds: by name, token sequences of any length; windows never reach from one into the next."""

    kinds: Mapping[str, Sequence[Tokens]]
    source: str = ""
    sha256: str = ""
    starts: Starts = field(default_factory=Starts)

    @property
    def n_tokens(self) -> int:
        return sum(len(piece) for pieces in self.kinds.values() for piece in pieces)


def save_text(path: Path, text: Text) -> None:
    """Raises OSError."""
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "source": np.array(text.source),
        "sha256": np.array(text.sha256),
        "empty": np.array(text.starts.empty, np.int32),
        "ends": np.array(text.starts.ends, np.int32),
        "prompts": _joined([np.array(p, np.int32) for p in text.starts.prompts]),
        "prompts.sizes": np.array([len(p) for p in text.starts.prompts], np.int32),
    }
    for name, pieces in text.kinds.items():
        arrays[f"kind.{name}"] = _joined(pieces)
        arrays[f"kind.{name}.sizes"] = np.array([len(p) for p in pieces], np.int32)
    with replacing(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def load_text(path: str | os.PathLike[str]) -> Text:
    """Raises PyskipError."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        kinds = {
            name.removeprefix("kind.").removesuffix(".sizes"): _parted(arrays[name.removesuffix(".sizes")], sizes)
            for name, sizes in arrays.items()
            if name.startswith("kind.") and name.endswith(".sizes")
        }
        prompts = tuple(tuple(p.tolist()) for p in _parted(arrays["prompts"], arrays["prompts.sizes"]))
        starts = Starts(tuple(arrays["empty"].tolist()), prompts, tuple(arrays["ends"].tolist()))
        return Text(kinds, str(arrays["source"]), str(arrays["sha256"]), starts)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise PyskipError(f"{path}: no file of tokens ({error}): make it again with --prepare") from error


def _joined(pieces: Sequence[Tokens]) -> Tokens:
    return np.concatenate([np.zeros(0, np.int32), *pieces])


def _parted(joined: Tokens, sizes: npt.NDArray[np.int32]) -> list[Tokens]:
    return list(np.split(joined, np.cumsum(sizes)[:-1])) if len(sizes) else []


class Draws:
    """Windows of n_window tokens: each kind as often as another, from any place in it, but for those held out."""

    def __init__(self, text: Text, n_window: int, seed: int) -> None:
        self.n_window = n_window
        self._rng = np.random.default_rng(seed)
        self._kinds: list[list[Tokens]] = []
        self._turn = 0
        self.held_out: list[Tokens] = []
        for pieces in text.kinds.values():
            self.add(pieces)
        if not self._kinds:
            raise PyskipError(
                f"{text.source}: {text.n_tokens} tokens, expected two windows of {n_window}: give more text"
            )

        if not self.held_out:
            self.held_out = [self._kinds[0][0][:n_window]]  # better than none

    def add(self, pieces: Sequence[Tokens]) -> None:
        """One more kind. Of kinds that have several windows, some are held out."""
        n = self.n_window
        long = [p for p in pieces if len(p) >= n]
        windows = [p[i : i + n] for p in long for i in range(0, len(p) - n + 1, n)]
        n_held = min(MAX_HELD, max(MIN_HELD, int(HELD_SHARE * len(windows)))) if len(windows) > 1 else 0
        if len(long) > n_held + 1:  # whole pieces
            self.held_out += [p[:n] for p in long[:n_held]]
            long = long[n_held:]
        elif n_held:  # the beginning of the first, if it is long
            first = long[0]
            n_held = min(n_held, len(first) // n - 1) if len(long) == 1 else min(n_held, len(first) // n)
            self.held_out += [first[i * n : (i + 1) * n] for i in range(n_held)]
            long = [p for p in (first[n_held * n :], *long[1:]) if len(p) >= n]
        if long:
            self._kinds.append(long)

    def draw(self, n: int) -> npt.NDArray[np.int64]:
        """[n, n_window]"""
        return np.stack([self._one() for _ in range(n)]).astype(np.int64)

    def _one(self) -> Tokens:
        pieces = self._kinds[self._turn % len(self._kinds)]
        self._turn += 1
        sizes = np.array([len(p) for p in pieces], np.float64)
        piece = pieces[int(self._rng.choice(len(pieces), p=sizes / sizes.sum()))]
        begin = int(self._rng.integers(0, len(piece) - self.n_window + 1))
        return piece[begin : begin + self.n_window]
