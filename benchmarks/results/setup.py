"""What the steps (steps.py) stand on: inputs, `pyskip eval` with a journal, files that say how they were made."""

from __future__ import annotations

import datetime
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyskip
from pyskip.binding.library import BUILD
from pyskip.errors import PyskipError
from pyskip.models import resolve
from pyskip.system import cpu_name, physical_cores

ROOT = Path(__file__).resolve().parent.parent.parent
PAIRS = 'JSON lines with "context" and "continuation"'
FORMATS = {
    "text": "UTF-8 text",
    "lambada": PAIRS,
    "factoid": PAIRS,
    "arc_easy": 'JSON lines with "query", "choices" and "gold"',
    "cnn": 'JSON lines with "article" and "highlights"',
    "mt_bench": 'JSON lines with "turns"',
}
EXACT = ("lambada", "factoid", "arc_easy")  # accuracies, of short items
FIXED = ("headline", "accuracy", "cos", "calibration")  # steps that do not go by --rates
STEPS = ("headline", "accuracy", "cos", "arms", *FORMATS, "bench", "calibration", "page")
READS = {
    "headline": ("text",),
    "accuracy": EXACT,
    "cos": ("text",),
    "arms": ("text",),
    "bench": ("text",),
    "calibration": ("text", "fit"),
    **{name: (name,) for name in FORMATS},
}
ITEMS = {"lambada": 100, "factoid": 200, "arc_easy": 60, "cnn": 8, "mt_bench": 16}  # by default
RATES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35)


@dataclass(frozen=True)
class Setup:
    model: str
    inputs: dict[str, Path]
    out: Path
    work: Path
    chunks: int
    items: int | None
    rates: tuple[float, ...]
    rounds: int

    @property
    def path(self) -> Path:
        return resolve(self.model)

    def count(self, name: str) -> int:
        """Items of a task at most."""
        return ITEMS[name] if self.items is None else self.items

    def rates_of(self, name: str) -> tuple[float, ...]:
        """The slow steps take every second rate."""
        return self.rates[::2] if name in ("cnn", "mt_bench", "bench") else self.rates

    def load(self, name: str) -> dict[str, Any]:
        """What an earlier step found."""
        path = self.out / f"{name}.json"
        if not path.exists():
            raise PyskipError(f"{path}: no such file, expected what the step {name} writes: run --only {name} first")
        document: dict[str, Any] = json.loads(path.read_text())
        return document


def pyskip_json(*args: str) -> dict[str, Any]:
    """The document that the command line prints."""
    done = subprocess.run([sys.executable, "-m", "pyskip", *args, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(done.returncode)  # it has said why
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def evaluate(
    setup: Setup, journal: str, name: str, n: int | None, skips: Iterable[str], flags: Sequence[str] = ()
) -> dict[str, Any]:
    """`pyskip eval` of n windows or items (None: all): its rows by policy."""
    what = "--text" if name == "text" else "--task"
    command = ["eval", setup.model, what, str(setup.inputs[name]), *flags]
    command += ["--resume", str(setup.work / f"{journal}.jsonl")]
    command += [] if n is None else ["--chunks", str(n)]
    command += [flag for skip in skips for flag in ("--skip", skip)]
    return {row["skip"]: row for row in pyskip_json(*command)["results"]}


def save(setup: Setup, step: str, found: dict[str, Any], *, date: float | None = None, flags: str = "") -> None:
    """found, beside what it was found with. date: seconds since the epoch, now by default."""
    info = pyskip.inspect(setup.path)
    sizes = {"n_layer": info.n_layer, "n_params": info.n_params}
    day = datetime.date.fromtimestamp(time.time() if date is None else date)
    names = READS.get(step, ())
    words = [".venv/bin/python -m benchmarks.results --only", step, "--model", Path(setup.model).name]
    words += [f"--{name.replace('_', '-')} {setup.inputs[name].name}" for name in names]
    words += [] if setup.rates == RATES or step in FIXED else ["--rates", *map(str, setup.rates)]
    document = {
        "step": step,
        "command": " ".join([*words, flags]).strip(),
        "date": day.isoformat(),
        "model": {"name": info.name, "file": setup.path.name, **sizes, "fingerprint": info.fingerprint},
        "cpu": cpu_name(),
        "n_threads": physical_cores(),
        "build": BUILD,
        "inputs": {name: {"name": setup.inputs[name].name, "sha256": sha256(setup.inputs[name])} for name in names},
        **found,
    }
    setup.out.mkdir(parents=True, exist_ok=True)
    (setup.out / f"{step}.json").write_text(json.dumps(rounded(document), indent=1) + "\n")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rounded(value: Any) -> Any:
    """Six digits say more than was measured."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
