"""The server's program, and the command line that `pyskip serve` runs it with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyskip.binding.files import program_file
from pyskip.binding.library import LIB_DIR
from pyskip.errors import PyskipError

__all__ = ["ServedModel", "program", "run"]

TextFile = Callable[[str, str], str]  # name, text -> the path of a new file that the program can read


@dataclass(frozen=True)
class ServedModel:
    """A model file, and what it is loaded with."""

    path: Path
    n_ctx: int  # of one request
    chat_template: str | None = None  # Jinja, or the path of a file of it


def program() -> Path:
    """Raises PyskipError if this build has none."""
    path = program_file(LIB_DIR, "pyskip-server")
    if not path.is_file():
        raise PyskipError(
            f"this build of pyskip has no server (no {path}): run `make serve` in its source tree, or pip"
        )
    return path


def run(models: Mapping[str, ServedModel], flags: Sequence[str]) -> int:
    """Serve these models by name until the program ends; `flags` are pyskip-server's own and llama-server's. Its exit
    status, or none: on Linux it takes this process's place, with the files that it reads in memory."""
    if hasattr(os, "memfd_create"):
        args = _command(models, flags, _in_memory)
        os.execv(args[0], args)
    with tempfile.TemporaryDirectory(prefix="pyskip-") as folder:

        def in_folder(name: str, text: str) -> str:
            path = Path(folder, name)
            path.write_text(text, "utf-8")
            return str(path)

        return _wait_for(_command(models, flags, in_folder))


def _in_memory(name: str, text: str) -> str:
    """It goes with the last process that has it open."""
    if sys.platform != "linux":
        raise NotImplementedError("only Linux has files in memory")
    file = os.memfd_create(f"pyskip-{name}", 0)
    os.write(file, text.encode())
    return f"/proc/self/fd/{file}"


def _wait_for(args: Sequence[str]) -> int:
    """Runs the program, which gets each signal once: on Windows the console sees to that."""
    with subprocess.Popen(args, start_new_session=True) as child:
        if os.name == "posix":
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, _: child.send_signal(number))
        else:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return child.wait()


def _command(models: Mapping[str, ServedModel], flags: Sequence[str], text_file: TextFile) -> list[str]:
    if len(models) == 1:
        ((name, model),) = models.items()
        own = [item for key, value in _options(model, text_file).items() for item in (f"--{key}", value)]
        return [str(program()), "--model", str(model.path), "--alias", name, *own, *flags]
    return [
        str(program()),
        "--models-preset",
        _preset(models, text_file),
        "--default-model",
        next(iter(models)),
        *flags,
    ]


def _options(model: ServedModel, text_file: TextFile) -> dict[str, str]:
    """A pool for as many requests as there are slots, each of which may fill a context."""
    options = {"kv-unified-per-slot": str(model.n_ctx)}
    template = model.chat_template
    if template is not None:
        options["chat-template-file"] = text_file("template", template) if "{" in template else template
    return options


def _preset(models: Mapping[str, ServedModel], text_file: TextFile) -> str:
    """A file for llama-server's router."""
    lines: list[str] = []
    for name, model in models.items():
        own = {"model": str(model.path), "load-on-startup": "true", **_options(model, text_file)}
        lines += [f"[{name}]", *(f"{key} = {value}" for key, value in own.items())]
    return text_file("models", "\n".join([*lines, ""]))
