"""Downloads that break off and go on, two at once, and bytes or disks that are not right; from a Hub on 127.0.0.1."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import make_random
from hub_server import Hub, Repo, error_line, incomplete, sha256

MB = 10**6
BIG = "big/Model-GGUF"  # of more than one chunk of huggingface-hub's, so that a part of it can be there
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("big") / "big.gguf"
    make_random.make(path, replace(make_random.SHAPES["tiny"], n_vocab=48000))
    return path.read_bytes()


def test_a_broken_connection_is_gone_on_with(hub_cli: Run, hub: Hub, big: bytes) -> None:
    hub.repos[BIG] = Repo({"big-F32.gguf": big})
    hub.break_after = [15 * MB]
    done = hub_cli("pull", BIG)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == big
    assert [headers.get("range") for headers in hub.asked("GET", "/content/")] == [None, "bytes=10485760-"]
    assert "Trying to resume download" in done.stderr
    assert "secret" not in done.stderr


def test_one_that_stays_broken_leaves_its_bytes_for_the_next_time(
    hub_cli: Run, hub: Hub, hub_env: dict[str, str], big: bytes
) -> None:
    hub.repos[BIG] = Repo({"big-F32.gguf": big})
    hub.break_after = [15 * MB, *[0] * 6]
    said = error_line(hub_cli("pull", BIG))
    assert re.fullmatch(rf"pyskip: hf:{BIG}: cannot go on with {hub.url} \(.+\): check the network; .+ goes on", said)
    assert [path.stat().st_size for path in incomplete(hub_env)] == [10485760]
    done = hub_cli("pull", BIG)
    assert "of which 10 MB are there" in done.stderr
    assert Path(done.stdout.strip()).read_bytes() == big
    assert hub.asked("GET", "/content/")[-1]["range"] == "bytes=10485760-"
    assert not incomplete(hub_env)


def hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(args: list[str], env: dict[str, str], **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pyskip", *args]
    return subprocess.Popen(command, env=env, text=True, preexec_fn=hear_interrupts, **streams)


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ctrl_c_says_where_it_stopped(hub: Hub, hub_env: dict[str, str], hub_cli: Run, big: bytes) -> None:
    hub.repos[BIG], hub.hold_after = Repo({"big-F32.gguf": big}), 12 * MB
    process = started(["pull", BIG], hub_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: any(path.stat().st_size > 10 * MB for path in incomplete(hub_env)))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert re.search(r"\npyskip: stopped at 10 MB of 2\d MB: the same command goes on from there\n+$", err)
    hub.hold_after = None
    hub.released.set()
    assert Path(hub_cli("pull", BIG).stdout.strip()).read_bytes() == big
    assert hub.asked("GET", "/content/")[-1]["range"] == "bytes=10485760-"


def test_two_at_once_download_once(hub: Hub, hub_env: dict[str, str], big: bytes) -> None:
    hub.repos[BIG], hub.hold_after = Repo({"big-F32.gguf": big}), 12 * MB
    first = started(["pull", BIG], hub_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: any(path.stat().st_size > 10 * MB for path in incomplete(hub_env)))
    second = started(["pull", BIG], hub_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert second.stderr is not None
    lines = [second.stderr.readline(), second.stderr.readline()]
    assert lines[-1] == "pyskip: another process downloads this file: waiting for it\n"
    hub.released.set()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert outputs[0] == outputs[1]
    assert Path(outputs[0].strip()).read_bytes() == big
    assert len(hub.asked("GET", "/content/")) == 1


def test_a_bar_on_a_terminal(hub_env: dict[str, str]) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = started(["pull", "some-one/Tiny-GGUF:Q8_0"], hub_env, stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # the other end was closed
            break
        seen += chunk
    os.close(master)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.endswith("/Tiny-Q8_0.gguf\n")
    assert re.search(rb"\rTiny-Q8_0\.gguf: 100%\|", seen)


def test_bytes_that_are_not_the_file(hub_cli: Run, hub: Hub, hub_env: dict[str, str], tiny: Path) -> None:
    hub.corrupt = True
    said = error_line(hub_cli("pull", "some-one/Tiny-GGUF:Q8_0"))
    whole = tiny.read_bytes() + b"Q8_0"
    wrong, right = sha256(bytes(len(whole))), sha256(whole)
    assert f"Tiny-Q8_0.gguf: sha256 is {wrong}, expected {right}: what came was damaged on the way" in said
    assert not incomplete(hub_env)
    hub.corrupt = False
    assert hub_cli("pull", "some-one/Tiny-GGUF:Q8_0").returncode == 0


def test_no_room_is_seen_beforehand(hub_cli: Run, hub: Hub, hub_env: dict[str, str]) -> None:
    hub.repos["some-one/Tiny-GGUF"].sizes = {"Tiny-Q8_0.gguf": 10**17}
    said = error_line(hub_cli("pull", "some-one/Tiny-GGUF:Q8_0"))
    assert re.search(
        r"no room in .*/blobs \(100000000\.00 GB are needed, [\d.]+ [MG]B free\): free some, or set HF_HOME", said
    )
    assert not hub.asked("GET", "/content/")


def test_a_disk_that_fills_up(hub_cli: Run, hub: Hub, hub_env: dict[str, str], tiny: Path) -> None:
    blobs = Path(hub_env["HF_HOME"]) / "hub" / "models--some-one--Tiny-GGUF" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(tiny.read_bytes() + b'Q8_0')}.incomplete").symlink_to("/dev/full")
    said = error_line(hub_cli("pull", "some-one/Tiny-GGUF:Q8_0"))
    assert f"Tiny-Q8_0.gguf: no room in {blobs} (No space left on device): free some, or set HF_HOME" in said
