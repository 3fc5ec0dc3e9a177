"""What pyskip answers on a processor, and whether that is what it answers on another."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from environment import ROOT, WORK, Failure, run

__all__ = ["HEADER", "Answer", "ask", "model_in_f32", "row"]

SCRIPT = ROOT / "tests" / "wheel" / "answer.py"
N_GEN = 32
TOLERANCE = 1e-2
HEADER = "| processor | back end | seconds | largest difference of a logit, f32 | skip rate |"


@dataclass(frozen=True)
class Answer:
    """What answer.py wrote."""

    back_end: str
    text: str
    tokens: list[int]
    exact: npt.NDArray[np.float32]  # logits with f32 weights
    rate: float
    seconds: float


def model_in_f32(python: Path | str, env: dict[str, str]) -> Path:
    path = WORK / "demo-f32.gguf"
    run([python, SCRIPT, "--make", path], env)
    return path


def ask(command: list[str | Path], env: dict[str, str], f32: Path, n_gen: int = N_GEN) -> Answer:
    """The command starts a Python that has pyskip."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answer.npz"
        start = time.perf_counter()
        run([*command, SCRIPT, out, "--n-gen", str(n_gen), "--exact", f32], env, timeout=3600)
        seconds = time.perf_counter() - start
        with np.load(out) as a:
            back_end, text, tokens, rate = str(a["back_end"]), str(a["text"]), a["tokens"].tolist(), float(a["rate"])
            return Answer(back_end, text, tokens, a["exact"], rate, seconds)


def row(where: str, answer: Answer, like: Answer, expected: str) -> str:
    """A line of the table. Raises Failure if the answer is another one, or of another back end than expected."""
    if answer.back_end != expected:
        raise Failure(f"{where}: {answer.back_end or 'no back end'} was loaded, expected {expected}")
    if answer.tokens != like.tokens:
        raise Failure(f"{where}: {answer.text!r} was answered, expected {like.text!r} as natively")
    apart = float(np.abs(answer.exact - like.exact).max())
    if not apart < TOLERANCE:
        raise Failure(f"{where}: a logit is {apart:.1e} from the native one, expected less than {TOLERANCE}")
    return f"| {where} | {answer.back_end} | {answer.seconds:.0f} s | {apart:.1e} | {answer.rate:.4f} |"
