"""What the tests of `pyskip eval` share: texts and items of their own, and figures by single steps."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from raw import Raw

from pyskip.evaluation.tasks import TaskItem

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Floats = npt.NDArray[np.float64]

WORDS = {
    "who": ["baker", "sailor", "teacher", "farmer", "painter", "doctor", "child", "king", "shepherd", "clerk"],
    "how": ["slowly", "gladly", "twice", "again", "alone", "early", "barely", "often"],
    "did": ["carried", "lost", "found", "painted", "sold", "counted", "forgot", "washed", "repaired"],
    "what": ["bread", "boat", "lamp", "letter", "coin", "basket", "window", "horse", "map", "violin"],
    "where": ["harbour", "market", "garden", "bridge", "school", "mountain", "river", "kitchen"],
}


def story(n_sentences: int) -> str:
    rng = np.random.default_rng(3)
    picks = ({key: rng.choice(words) for key, words in WORDS.items()} for _ in range(n_sentences))
    return "".join(
        f"The {p['who']} {p['how']} {p['did']} a {p['what']} near the {p['where']}, {i + 2} days later.\n"
        for i, p in enumerate(picks)
    )


def log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))


def single_steps(path: Path, spec: str, sequences: list[list[int]]) -> list[Floats]:
    """Log-probabilities [n, n_vocab] after each token of each sequence, one token a batch."""
    with Raw(path, spec, exact=True) as raw:
        raw.skip.set_generated_from(-1, 0)
        return [
            log_softmax(raw.step([(token, pos, seq) for pos, token in enumerate(tokens)]))
            for seq, tokens in enumerate(sequences)
        ]


def continuation(context: str, answer: str) -> TaskItem:
    return TaskItem("items.jsonl, line 1", context, (answer,), None)


def refused(done: subprocess.CompletedProcess[str], status: int, said: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"pyskip: [^\n]+\n", done.stderr)
    assert said in done.stderr
