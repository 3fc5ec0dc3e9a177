"""The GGUF files of a repository: which of them make one model, and which model suits this machine. Used by hub.py."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["Model", "RepoFile", "choose", "find", "fits", "models_in", "nearest", "size_text"]

PIECE = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
QUANTISATION = re.compile(r"(?<![a-z0-9])((?:i?q|tq)(\d)(?:_[a-z0-9]+)*|mxfp(4)|(?:bf|fp?)(16|32))(?![a-z0-9])", re.I)
# Projectors, statistics, profiles, vocabularies
NO_MODEL = re.compile(r"mmproj|^imatrix|[._-]imatrix\.gguf$|\.skip\.gguf$|^ggml-vocab", re.IGNORECASE)
# Drafters, heads that draft, adapters, encoders: unless all that is there is called so, as a model named Eagle may be
BESIDE_MODEL = re.compile(
    r"(?<![a-z0-9])(draft(er)?|speculator|assistant|mtp|nextn|eagle-?[123]?|medusa|dflash|imatrix|lora|adapter|vocab|tokenizer|"
    r"vision|audio|encoder|projector|clip|vae|vocoder)(?![a-z0-9])",
    re.IGNORECASE,
)
PREFERRED_BITS = (4, 5, 6, 8, 16, 32, 3, 2, 1)  # decoding reads every byte; below 4 bits a small model suffers


@dataclass(frozen=True)
class RepoFile:
    """Where it lies in the repository, its size in bytes, and its sha256 if the Hub tells."""

    path: str
    size: int
    sha256: str | None = None


@dataclass(frozen=True)
class Model:
    """One GGUF file, or all pieces of one, in order."""

    files: tuple[RepoFile, ...]

    @property
    def path(self) -> str:
        """What llama.cpp is given: it finds the other pieces beside the first."""
        return self.files[0].path

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def quantisation(self) -> str:
        """As the file's name has it, "" if it has none."""
        found = self._quantisation()
        return found[1].upper() if found else ""

    @property
    def bits(self) -> int:
        """Of a weight, roughly; 0 if the name does not tell."""
        found = self._quantisation()
        return int(next(bits for bits in found.groups()[1:] if bits)) if found else 0

    def _quantisation(self) -> re.Match[str] | None:
        return max(QUANTISATION.finditer(PurePosixPath(self.path).name), key=re.Match.start, default=None)


def models_in(files: Iterable[RepoFile]) -> list[Model]:
    """The models among the files. Those that lack a piece are left out, and what is no model."""
    single: list[Model] = []
    pieces: dict[tuple[str, int], dict[int, RepoFile]] = {}
    for file in files:
        if not file.path.lower().endswith(".gguf") or NO_MODEL.search(PurePosixPath(file.path).name):
            continue
        match = PIECE.fullmatch(file.path)
        if match:
            pieces.setdefault((match[1], int(match[3])), {})[int(match[2])] = file
        else:
            single.append(Model((file,)))
    whole = [
        Model(tuple(parts[i] for i in range(1, n + 1)))
        for (_, n), parts in pieces.items()
        if all(i in parts for i in range(1, n + 1))
    ]
    models = sorted(single + whole, key=lambda model: model.path)
    return [model for model in models if not BESIDE_MODEL.search(PurePosixPath(model.path).name)] or models


def find(models: Iterable[Model], asked: str) -> list[Model]:
    """The models that `asked` names: a path in the repository, a file's name, or a quantisation such as Q4_K_M."""
    models, word = list(models), asked.lower()
    ways = (
        lambda model: asked in (file.path for file in model.files),
        lambda model: word in (PurePosixPath(file.path).name.lower() for file in model.files),
        lambda model: word == model.quantisation.lower(),
    )
    return next((found for way in ways if (found := [model for model in models if way(model)])), [])


def fits(size: int, memory: int | None) -> bool:
    """Whether a model of that size leaves room for its context and for other programs."""
    return memory is None or size * 1.1 + 2**28 <= memory


def choose(models: Iterable[Model], memory: int | None) -> tuple[Model, str]:
    """The model that suits a machine with so many bytes of memory, and why."""
    models = list(models)
    fitting = [model for model in models if fits(model.size, memory)]
    if not fitting:
        model, why = min(models, key=lambda model: model.size), "the smallest, though it does not fit"
    else:
        model = min(fitting, key=_rank)
        larger = any(_rank(other) < _rank(model) for other in models)
        why = "the best of those that fit" if larger else "fits"
    name = model.quantisation or PurePosixPath(model.path).name
    of = f", of {len(models)} models there" if len(models) > 1 else ""
    have = "" if memory is None else f" into {size_text(memory)} of memory"
    return model, f"{name} ({size_text(model.size)}){of}: {why}{have}"


def _rank(model: Model) -> tuple[int, bool, int, str]:
    bits = PREFERRED_BITS.index(model.bits) if model.bits in PREFERRED_BITS else len(PREFERRED_BITS)
    return bits, not model.quantisation.endswith("K_M"), -model.size, model.path


def nearest(word: str, words: Iterable[str]) -> str:
    """What to say after a name that was not found: ": did you mean A or B?", or nothing."""
    by_lower = {w.lower(): w for w in words}
    close = difflib.get_close_matches(word.lower(), by_lower, n=2, cutoff=0.6)
    return f": did you mean {' or '.join(by_lower[w] for w in close)}?" if close else ""


def size_text(n: int) -> str:
    """Bytes as the Hub shows them: 105 MB, 2.49 GB."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB" if n >= 1e6 else f"{n / 1e3:.0f} kB"
