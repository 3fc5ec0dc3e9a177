"""The server's program, and the command line that `pyskip serve` runs it with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyskip.binding.library import LIB_DIR
from pyskip.errors import PyskipError

__all__ = ["ServedModel", "command", "program"]


@dataclass(frozen=True)
class ServedModel:
    """A model file, and what it is loaded with."""

    path: Path
    n_ctx: int  # of one request
    chat_template: Path | None = None


def program() -> Path:
    """Raises PyskipError if this build has none."""
    path = LIB_DIR / "pyskip-server"
    if not path.is_file():
        raise PyskipError(
            f"this build of pyskip has no server (no {path}): run `make serve` in its source tree, or pip"
        )
    return path


def command(models: Mapping[str, ServedModel], flags: Sequence[str]) -> list[str]:
    """The command line for these models by name; `flags` are pyskip-server's own and llama-server's. The file
    descriptors that it names must be inherited."""
    if len(models) == 1:
        ((name, model),) = models.items()
        return [str(program()), "--model", str(model.path), "--alias", name, *_flags(model), *flags]
    return [str(program()), "--models-preset", _preset(models), "--default-model", next(iter(models)), *flags]


def _flags(model: ServedModel) -> list[str]:
    return [item for key, value in _options(model).items() for item in (f"--{key}", value)]


def _options(model: ServedModel) -> dict[str, str]:
    """A pool for as many requests as there are slots, each of which may fill a context."""
    options = {"kv-unified-per-slot": str(model.n_ctx)}
    if model.chat_template is not None:
        options["chat-template-file"] = str(model.chat_template)
    return options


def _preset(models: Mapping[str, ServedModel]) -> str:
    """A file for llama-server's router, in memory: it goes with the process that reads it."""
    lines: list[str] = []
    for name, model in models.items():
        own = {"model": str(model.path), "load-on-startup": "true", **_options(model)}
        lines += [f"[{name}]", *(f"{key} = {value}" for key, value in own.items())]
    file = os.memfd_create("pyskip-models", 0)
    os.write(file, "\n".join([*lines, ""]).encode())
    return f"/proc/self/fd/{file}"
