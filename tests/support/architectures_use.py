"""What a user meets with a model of any architecture: an answer, or pyskip's own error. Used by architectures.py."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pyskip
from pyskip.calibration.calibrate import Settings, calibrate
from pyskip.cli.main import run
from pyskip.evaluation import evaluate_text
from pyskip.policy import Profiled
from pyskip.runtime.probe import skippable_layers

Record = dict[str, Any]

WORDS = " ".join(f"word {i * i}" for i in range(500))


def examine_use(path: Path, _: Record) -> Record:
    """Calls what the command line calls. Anything but pyskip's own errors comes out."""
    record: Record = {}
    for name, use in (("info", use_info), ("generate", use_generate), ("eval", use_eval), ("calibrate", use_calibrate)):
        try:
            record[name] = use(path)
        except pyskip.PyskipError as error:
            record[name] = {"refused": str(error)}
    return record


def use_info(path: Path) -> Record:
    return {"layers": skippable_layers(path)}


def use_generate(path: Path, **kwargs: Any) -> Record:
    """Two answers: of a few tokens, and with learned positions of all that there are."""
    n_max = 250 if pyskip.inspect(path).n_positions else 24
    with closing(pyskip.Llama(path, n_ctx=256, n_threads=1, verbose=False, **kwargs)) as llm:
        llm.create_completion("others", max_tokens=4, temperature=0.0)
        answer = llm.create_completion("some words", max_tokens=n_max, temperature=0.0)
        stats = llm.skip_stats()
        return {"n": answer["usage"]["completion_tokens"], "counted": stats.n_tokens, "skipped": sum(stats.skipped)}


def use_eval(path: Path) -> Record:
    with closing(pyskip.Llama(path, n_ctx=32, n_threads=1, verbose=False)) as llm:
        (dense,) = evaluate_text(llm, WORDS, n_ctx=32, chunks=1)
        return {"ppl": dense.ppl}


def use_calibrate(path: Path) -> Record:
    """calibrate -> profile -> generate, on as few tokens as a linear stand-in can be fitted on."""
    with tempfile.TemporaryDirectory() as folder:
        text, target = Path(folder) / "text.txt", Path(folder) / "model.skip.gguf"
        text.write_text(WORDS)
        n_fit = 2 + pyskip.inspect(path).n_embd // 64
        made = calibrate(path, Settings(text=(text,), n_fit=n_fit, n_curve=1, output=target), lambda *_: None, 1)
        skip = Profiled(rate=made.curve[-1].rate, warmup=0)
        return {"n_points": len(made.curve), **use_generate(path, profile=target, skip=skip)}


def examine_command_line(path: Path, found: Record) -> Record:
    """The commands themselves, in this process, which is for nothing else: how each ended, and what it said on stderr.
    chat skips a block if the model can."""
    skip = f"static:{found['layers'][0]}" if "layers" in found else "off"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("text").write_text(WORDS)
        commands = {
            "info": ["info", str(path)],
            "chat": ["chat", str(path), "-n", "4", "-t", "1", "--temp", "0", "--skip", skip],
            "eval": ["eval", str(path), "--text", "text", "-c", "32", "--chunks", "1", "-t", "1"],
            "bench": ["bench", str(path), "-n", "2", "--rounds", "1", "-t", "1"],
        }
        return {name: command_line(arguments, b"some words\n") for name, arguments in commands.items()}


def command_line(arguments: list[str], given: bytes) -> Record:
    """Takes stdin, stdout and stderr of the process for good."""
    Path("in").write_bytes(given)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    for fd, file in enumerate((os.open("in", os.O_RDONLY), os.open("out", flags), os.open("err", flags))):
        os.dup2(file, fd)
        os.close(file)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 without what the last one had read
    status = run(arguments)
    sys.stdout.flush()
    return {"exit": status, "n_out": Path("out").stat().st_size, "said": Path("err").read_text("utf-8", "replace")}
