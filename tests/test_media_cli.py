"""`pyskip generate` and `pyskip chat` with --mmproj and --image."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from media import png

pytestmark = pytest.mark.slow  # needs libmtmd, which `make test` builds


def test_generate_and_chat(
    cli: Callable[..., subprocess.CompletedProcess[str]], tiny: Path, eyes: Path, tmp_path: Path
) -> None:
    files = []
    for seed in (1, 2):
        files.append(tmp_path / f"{seed}.png")
        files[-1].write_bytes(png(seed))
    common = (str(tiny), "-n", "8", "--seed", "1", "--skip", "off", "--mmproj", str(eyes))
    texts = set()
    for more in ((), ("--image", str(files[0])), ("--image", str(files[1])), ("--image", str(files[0])) * 2):
        done = cli("generate", *common, "-p", "w1 w2", *more)
        assert done.returncode == 0, done.stderr
        texts.add(done.stdout)
    assert len(texts) == 4
    chats = [cli("chat", *common, "--temp", "1", "-p", "w1", "--image", str(file)) for file in files]
    assert chats[0].returncode == 0, chats[0].stderr
    assert chats[0].stdout != chats[1].stdout
    one = cli("chat", *common, "--temp", "0", "-p", "w1", "--image", str(files[0]))
    session = tmp_path / "session"
    lines = f"/image {files[0]}\nw1\n/save {session}\nw2\n"
    first = cli("chat", *common, "--temp", "0", input=lines)
    assert first.returncode == 0, first.stderr
    assert "1 file for the next turn" in first.stderr
    assert first.stdout.startswith(one.stdout)
    later = cli("chat", *common, "--temp", "0", "--load", str(session), input="w2\n")
    assert later.returncode == 0, later.stderr
    assert "tokens of context" in later.stderr
    assert first.stdout == one.stdout + later.stdout


def test_mistakes_at_the_command_line(
    cli: Callable[..., subprocess.CompletedProcess[str]], tiny: Path, eyes: Path, tmp_path: Path
) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(b"no image")
    alone = cli("generate", str(tiny), "-p", "w1", "--image", str(file))
    assert alone.returncode == 2
    assert "--image needs the model's projector" in alone.stderr
    for more, reason in (
        (("--mmproj", str(eyes), "--image", str(file)), "cannot be read"),
        (("--mmproj", str(eyes), "--image", str(tmp_path)), "no such file"),
        (("--mmproj", str(tiny)), "expected a projector"),
    ):
        for command in ("generate", "chat"):
            done = cli(command, str(tiny), "-p", "w1", "--skip", "off", *more)
            assert done.returncode == 1, done.stderr
            assert reason in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr
    assert "has no projector" in cli("chat", str(tiny), "--skip", "off", input=f"/image {file}\n").stderr
