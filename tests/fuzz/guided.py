"""atheris (libFuzzer for Python, guided by coverage) on the targets `skip` and `task`.

    python tests/fuzz/guided.py skip|task [libFuzzer's flags, for instance -runs=200000 -seed=1]

(`make fuzz TARGET=guided` sets it up and runs both; atheris has wheels for Linux on x86-64.)
Mutation starts from inputs that mutate.py makes, and from what earlier runs kept in build/fuzz/corpus-NAME because it
went another way through the code. What it finds lies in build/fuzz/finds.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import FunctionType, ModuleType

import atheris
from run import FINDS, SCRATCH, make
from targets import TARGETS

import pyskip.evaluation.tasks
import pyskip.policy

FILES = {"skip": "spec", "task": "task.jsonl"}


def instrument(module: ModuleType) -> None:
    """Its functions and methods. (atheris.instrument_imports() does not see an editable install.)"""
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    for value in own:
        for function in (value, *vars(value).values()) if isinstance(value, type) else (value,):
            if isinstance(function, FunctionType):
                atheris.instrument_func(function)


def main() -> None:
    name = sys.argv[1]
    for module in (pyskip.policy, pyskip.evaluation.tasks):
        instrument(module)
    with tempfile.TemporaryDirectory(prefix="pyskip-fuzz-", dir=SCRATCH) as scratch:
        folder, seeds, kept = Path(scratch), Path(scratch) / "seeds", FINDS.parent / f"corpus-{name}"
        for place in (seeds, kept, FINDS):
            place.mkdir(parents=True, exist_ok=True)
        target = TARGETS[name](folder)
        target.prepare(folder)
        for i in range(200):
            (seeds / str(i)).write_bytes(make(target, name, 1, i)[FILES[name]])

        def one_input(data: bytes) -> None:
            target.run({FILES[name]: data, "decode": b""})

        flags = [*sys.argv[2:], f"-artifact_prefix={FINDS}/{name}-", str(kept), str(seeds)]
        atheris.Setup([sys.argv[0], *flags], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
