"""A minute of fuzzing, the same inputs every time. `make fuzz` runs 200,000 a target, and libFuzzer if there is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "fuzz" / "run.py"


RUNS = {"skip": 40_000, "task": 20_000, "profile": 10_000, "session": 500, "pair": 4_000, "calls": 1_000}


@pytest.mark.parametrize(("target", "runs"), RUNS.items())
@pytest.mark.slow
def test_smoke(target: str, runs: int) -> None:
    command = [sys.executable, str(RUN), "--target", target, "--runs", str(runs), "--seed", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)[target]
    assert result["inputs"] == runs
    assert runs / 50 < result["accepted"] < runs * 0.9  # neither noise that nothing lets in, nor all of it sound
