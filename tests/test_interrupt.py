"""Ctrl-C at every moment: what was said is kept, the exit code is 130, and the terminal is as it was."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from terminal import Terminal

PYSKIP = [sys.executable, "-m", "pyskip"]


def hear_interrupts() -> None:
    """In the child: a shell's background jobs, and so their children, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def started(*args: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [*PYSKIP, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        preexec_fn=hear_interrupts,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    assert b"Traceback" not in err, err
    return process.returncode, out.decode(), err.decode()


def test_while_generating_keeps_the_partial_answer(demo: Path) -> None:
    with started("generate", "demo", "-p", "Once upon a time", "-n", "100000", "-c", "8192") as process:
        assert process.stdout
        first = process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        status, out, err = finish(process)
    assert status == 130
    assert len(first) > 0
    assert out.endswith("\n")
    assert "tokens/s" in err


def test_generate_json_is_whole_when_interrupted(demo: Path) -> None:
    import json

    with started("generate", "demo", "-p", "Once upon a time", "-n", "100000", "-c", "8192", "--json") as process:
        assert process.stderr
        process.stderr.read(10)  # loaded
        time.sleep(4)
        process.send_signal(signal.SIGINT)
        status, out, _ = finish(process)
    assert status == 130
    document = json.loads(out)
    assert bool(document["text"]) == (document["n_gen"] > 0)  # a loaded machine may not have come to a token yet


def test_while_the_prompt_is_decoded(demo: Path) -> None:
    """One batch of a long prompt takes seconds; the decode under way stops."""
    with started(
        "generate", "demo", "-p", "word " * 7000, "-c", "8192", "-n", "5", "-t", "1", "--skip", "off"
    ) as process:
        time.sleep(3)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        status, out, _ = finish(process)
        took = time.monotonic() - start
    assert status == 130
    assert out == "\n"
    assert took < 10


@pytest.mark.model
def test_while_loading(tmp_path: Path) -> None:
    """At any moment from the start of the process on."""
    for delay in (0.7, 0.9, 1.1):
        with started("generate", "demo", "-p", "x", "-n", "100000", "-c", "8192") as process:
            time.sleep(delay)
            process.send_signal(signal.SIGINT)
            status, _, _ = finish(process)
        assert status == 130


@pytest.mark.parametrize("command", [PYSKIP, [str(Path(sys.executable).with_name("pyskip"))]])
def test_while_importing(tmp_path: Path, command: list[str]) -> None:
    """Importing takes some tenths of a second; here a llama_cpp that does not come to an end."""
    (tmp_path / "llama_cpp").mkdir()
    stub = f'print(flush=True)\nimport time\ntime.sleep(60)\n__version__ = "{version("llama-cpp-python")}"\n'
    (tmp_path / "llama_cpp" / "__init__.py").write_text(stub)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for args, status in ((command, 130), ([sys.executable, "-c", "import pyskip"], -signal.SIGINT)):
        with subprocess.Popen(
            args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hear_interrupts
        ) as process:
            assert process.stdout
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        assert process.returncode == status
        assert bool(err) == (status != 130)  # another program's KeyboardInterrupt is its own


def test_chat_from_a_pipe(demo: Path) -> None:
    with started("chat", "demo", "-n", "100000", "-c", "8192", "--temp", "0") as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"Tell me a very long story about the sea.\n")
        process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        status, out, err = finish(process)
    assert status == 130
    assert out.endswith("\n")
    assert "1 answers" in err


def test_on_a_terminal_the_first_ends_the_answer_and_not_the_chat(demo: Path) -> None:
    terminal = Terminal("chat", "-n", "100000", "-c", "8192", "--temp", "0")
    terminal.ask("Tell me a very long story about the sea.", "\n", " ")
    time.sleep(0.5)
    terminal.interrupt()
    terminal.wait_for("stopped")
    terminal.prompt()
    terminal.interrupt()
    terminal.wait_for("Ctrl-C again")
    terminal.prompt()
    terminal.interrupt()
    assert terminal.close() == 130


def test_on_a_terminal_end_of_input_ends_the_chat(demo: Path) -> None:
    terminal = Terminal("chat", "-n", "8", "--temp", "0", TERM="dumb")
    terminal.ask("Are dogs real?", "tokens/s")
    terminal.prompt()
    terminal.send("\x04")
    terminal.wait_for("1 answers")
    assert terminal.close() == 0


PROGRAM = """
import signal, sys, time
import pyskip
signal.signal(signal.SIGINT, signal.default_int_handler)
llm = pyskip.Llama(sys.argv[1], n_ctx=8192, n_batch=2048, n_ubatch=2048, n_threads=1, n_threads_batch=1, verbose=False)
tokens = [2000 + i % 50 for i in range(8000)]
print("decodes", flush=True)
start = time.monotonic()
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", llm.n_tokens, flush=True)
llm.eval(tokens[:3])
assert llm.n_tokens == 3
print(next(llm.generate([1, 2, 3], temp=0)) >= 0)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


@pytest.mark.parametrize("call", ["llm.eval(tokens)", "next(llm.generate(tokens))"])
def test_a_python_program(demo: Path, call: str) -> None:
    """Without threads or handlers of its own: a decode of some twenty seconds stops, and can be repeated."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{call}", call), str(demo)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=hear_interrupts,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"decodes\n"
        time.sleep(1.5)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"interrupted 0\n", process.communicate()
        took = time.monotonic() - start
        rest, err = process.communicate(timeout=60)
    assert took < 3  # a second, on a machine that does other things
    assert rest == b"True\n", err
    assert process.returncode == 0


def test_a_handler_of_the_program_s_own_is_left_alone(tiny: Path) -> None:
    program = (
        "import os, signal, sys, pyskip\n"
        "heard = []\n"
        "signal.signal(signal.SIGINT, lambda *_: heard.append(1))\n"
        "llm = pyskip.Llama(sys.argv[1], n_ctx=64, n_threads=1, verbose=False)\n"
        "llm.eval([1, 2])\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "llm.eval([3])\n"
        "print(heard, llm.n_tokens)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tiny)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "[1] 3\n"), done.stderr
