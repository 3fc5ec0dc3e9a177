"""The model of a worker process, which is kept for the next piece of work."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from ..errors import PyskipError
from ..models import resolve
from ..runtime.llama import Llama

__all__ = ["WorkerModel", "loaded"]


@dataclass(frozen=True)
class WorkerModel:
    """name: as the command line has it, found by each machine for itself. arguments: of Llama."""

    name: str
    fingerprint: str
    arguments: tuple[tuple[str, Any], ...]


@functools.lru_cache(1)
def loaded(model: WorkerModel) -> Llama:
    """Raises PyskipError if this machine has another model by that name."""
    path = resolve(model.name)
    llm = Llama(path, verbose=False, **dict(model.arguments))
    if llm.engine.info.fingerprint != model.fingerprint:
        raise PyskipError(f"{path}: another model on a worker's machine, expected that of the machine which asks")
    return llm
