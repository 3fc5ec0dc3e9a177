"""The Raspberry Pi example: a chat on stdin, the board's sensors, and the unit that starts it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "raspberry_pi"


def kiosk(thermal: Path, typed: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "kiosk.py"), "--thermal", str(thermal), *args]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=120)


def sensor(folder: Path, **files: str) -> None:
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


@pytest.mark.model
def test_answers_and_tells_the_board(tmp_path: Path) -> None:
    sensor(tmp_path / "thermal_zone0", temp="48123")
    sensor(tmp_path / "thermal_zone1", temp="71234")
    sensor(tmp_path / "thermal_zone2", temp="asleep")
    sensor(tmp_path / "cooling_device0", type="pwm-fan", cur_state="0")
    sensor(tmp_path / "cooling_device1", type="cpufreq-cpu0", cur_state="2")
    done = kiosk(tmp_path, "Are dogs real?\n\nAnd cats?\n", "--target-tps", "0.5")
    assert done.returncode == 0, done.stderr
    greeting, *answers = [line for line in done.stdout.splitlines() if line]
    assert greeting == "Hello! Ask me something."
    assert re.search(r"[Dd]og", answers[0])
    assert len(answers) >= 2
    board = done.stderr.splitlines()
    assert len(board) == 2
    for line in board:
        assert re.match(r"71 °C, throttled, [\d.]+% of FFN blocks skipped, pace 0\.5 tokens/s", line)


@pytest.mark.model
def test_a_cool_board_without_sensors(tmp_path: Path) -> None:
    sensor(tmp_path / "cooling_device0", type="pwm-fan", cur_state="3")  # a fan that turns is no throttle
    done = kiosk(tmp_path, "Hi\n", "--target-tps", "0.5")
    assert done.stderr.startswith("no sensor, 0.0% of FFN blocks skipped")


@pytest.mark.model
def test_the_oldest_turns_go_and_a_line_that_never_fits_is_refused(tmp_path: Path) -> None:
    done = kiosk(tmp_path, "word " * 1100 + "\n" + "term " * 1100 + "\n" + "word " * 3000 + "\n", "--target-tps", "0.5")
    assert done.returncode == 0
    assert [line.startswith("kiosk: ") for line in done.stderr.splitlines()] == [False, False, True, False]


def test_mistakes_are_one_line(tmp_path: Path, tiny: Path) -> None:
    done = kiosk(tmp_path, "Hi\n", str(tiny))
    assert done.returncode == 1
    assert re.fullmatch(r"kiosk: target_tps needs a profile .*\n", done.stderr)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_sound(tmp_path: Path) -> None:
    text = (EXAMPLE / "pyskip-kiosk.service").read_text()
    assert "/home/pi/pyskip/.venv/bin/python" in text  # which this machine lacks
    unit = tmp_path / "pyskip-kiosk.service"
    unit.write_text(text.replace("/home/pi/pyskip/.venv/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    complaints = [line for line in done.stderr.splitlines() if "pyskip-kiosk" in line]
    assert done.returncode == 0, done.stderr
    assert not complaints
