"""`pyskip chat`: its commands on a terminal and in a pipe, what is typed, and the turns of a conversation."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import open_llm
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from terminal import Terminal

import pyskip
from pyskip.chat.conversation import Conversation
from pyskip.cli import chat_commands
from pyskip.cli.chat_terminal import ChatCompleter, history, reader
from pyskip.runtime.sampling import Sampling

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SKIP = ("--skip", "cosine:threshold=-1,run=1,cold_start=1,cold_end=1,warmup=0")


@pytest.mark.slow
def test_every_command_on_a_terminal(tiny: Path, tmp_path: Path) -> None:
    """On random answers with bytes of all kinds, those that steer terminals among them."""
    file = tmp_path / "a session"
    terminal = Terminal("chat", str(tiny), "-n", "80", "-t", "1", "--temp", "1", "--seed", "3", *SKIP, columns=160)
    terminal.ask("/stats", "no answer was given yet")
    terminal.ask("/heat", "no answer was given yet")
    terminal.ask("/retry", "nothing was said yet")
    terminal.ask("w1 w2 w3", "80 tokens, ", " of FFN blocks skipped (cosine")
    terminal.ask("/heat", "blocks skipped for a token", "unshaded: none")
    assert "\x1b[38;5;" in terminal.said
    terminal.ask("/skip static:2,4", "skip is static:2,4")
    terminal.ask("/skip", "skip is static:2,4")
    terminal.ask("/retry", " tokens/s, ", "33.3% of FFN blocks skipped (static:2,4)")
    terminal.ask("/stats", "cosine", "static:2,4", "no dense answer was timed", "by layer, static:2,4", "layer")
    terminal.ask("/skip off", "skip is off")
    terminal.ask(" /skip off", " tokens/s, ")  # a text
    terminal.ask("/heat", "ran dense")
    terminal.ask("/stats", "x dense")
    terminal.ask("/system Be brief.", "system message: Be brief.")
    terminal.ask('/system ""', "system message: none")
    terminal.ask(f"/save {file}", "saved 2 turns")
    terminal.ask("/clear", "forgot the turns")
    terminal.ask(f"/load {tiny}", "no session")
    terminal.ask(f"/load {file}", "loaded 2 turns, ", " tokens of context")
    terminal.ask("/skip nonsense", "skip is 'nonsense', expected")
    terminal.ask("/stat", "is no command: did you mean /stats?")
    terminal.ask("/stats now", "/stats takes no argument")
    terminal.ask("/help", "/quit")
    terminal.ask("/quit", "3 answers, ")
    assert terminal.close() == 0
    assert terminal.screen.odd == []
    assert "\ufffd" in terminal.screen.text  # there were such bytes
    assert "Traceback" not in terminal.said


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
@pytest.mark.slow
def test_plain_on_a_terminal(tiny: Path, env: dict[str, Any]) -> None:
    terminal = Terminal("chat", str(tiny), "-n", "60", "-t", "1", "--temp", "1", "--seed", "3", *SKIP, **env)
    terminal.ask("w1", " tokens/s, ")
    terminal.ask("/heat", "tenths of the blocks skipped")
    terminal.prompt()
    terminal.send("\x04")
    terminal.wait_for("1 answers")
    assert terminal.close() == 0
    assert "\x1b" not in terminal.said
    assert terminal.screen.odd == []


def test_generate_does_not_steer_a_terminal_either(tiny: Path) -> None:
    terminal = Terminal("generate", str(tiny), "-p", "w1", "-n", "100", "-t", "1", "--temp", "1", "--seed", "3")
    terminal.wait_for("tokens/s")
    assert terminal.close() == 0
    assert terminal.screen.odd == []
    assert "\ufffd" in terminal.said


def test_what_is_typed_ahead_waits_for_the_prompt(demo: Path) -> None:
    terminal = Terminal("chat", "-n", "100000", "-c", "8192", "--temp", "0")
    terminal.ask("Tell me a very long story about a ship.", "the ", "the ")  # the answer's words, not the prompt's
    terminal.send("ahead")
    terminal.watch(0.3)
    assert "ahead" not in terminal.said
    terminal.interrupt()
    terminal.wait_for("stopped")
    terminal.wait_for("ahead")
    terminal.rest()
    assert terminal.screen.current == "> ahead"
    terminal.send("\x03\x04")  # the first forgets it, the second ends
    terminal.wait_for("1 answers")
    assert terminal.close() == 0


@pytest.mark.slow
def test_commands_in_a_pipe(cli: Run, tiny: Path, tmp_path: Path) -> None:
    lines = ("/skip static:2", "w1", "/retry", "/stats", "/heat", "/stats please", "/etc/hosts", f"/save {tmp_path}/s")
    args = ("chat", str(tiny), "-n", "4", "-t", "1", "--temp", "0")
    done = cli(*args, input="\n".join((*lines, "/quit", "never", "")))
    assert done.returncode == 0, done.stderr
    assert "4 answers, 16 tokens" in done.stderr
    assert re.search(r"^static:2 +2 +8 ", done.stderr, re.MULTILINE)
    assert "tenths of the blocks" in done.stderr
    assert "\x1b" not in done.stderr
    more = cli(*args, "--load", f"{tmp_path}/s", input="/stats please\n")
    assert more.returncode == 0
    assert "loaded 3 turns" in more.stderr
    assert "skip is static:2, as it was" in more.stderr
    assert "1 answers" in more.stderr
    done = cli(*args, input="/skip x\nw1\n")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "skip is 'x'" in done.stderr.splitlines()[-1]


def test_a_line_is_a_command_only_where_it_is_exactly_one() -> None:
    assert chat_commands.find("/stats") == ("/stats", "")
    assert chat_commands.find("/skip 0.25") == ("/skip", "0.25")
    assert chat_commands.find("/save a file") == ("/save", "a file")
    for text in ("/stats please", "/stat", " /stats", "/", "/etc/hosts", "stats", "/SKIP", "/skip\t0.25", "//stats"):
        assert chat_commands.find(text) is None
    for name in chat_commands.COMMANDS:
        assert hasattr(chat_commands.Commands, "_" + name[1:])


# Turns


@pytest.fixture(scope="module")
def small(tiny: Path) -> Iterator[pyskip.Llama]:
    llm = open_llm(tiny, 256)
    yield llm
    llm.close()


def test_a_retry_answers_the_same_turn(small: pyskip.Llama) -> None:
    conversation = Conversation(small, n_predict=8)
    first = "".join(conversation.say("w1 w2"))
    small.skip = "static:0,1,2,3,4,5"
    second = "".join(conversation.retry())
    small.skip = "off"
    assert second != first
    assert [turn["content"] for turn in conversation.turns] == ["w1 w2", second]
    assert len(conversation.answers) == 2


def test_a_retry_that_brings_nothing_keeps_the_old_answer(small: pyskip.Llama) -> None:
    conversation = Conversation(small, n_predict=8)
    first = "".join(conversation.say("w1 w2"))
    small.set_abort(True)
    with pytest.raises(pyskip.DecodeError):
        "".join(conversation.retry())
    small.set_abort(False)
    assert [turn["content"] for turn in conversation.turns] == ["w1 w2", first]
    with pytest.raises(pyskip.DecodeError, match="nothing was said"):
        next(Conversation(small).retry())


def test_a_seed_is_of_the_conversation(small: pyskip.Llama) -> None:
    def answers(seed: int) -> list[str]:
        small.reset()
        conversation = Conversation(small, n_predict=12, sampling=Sampling(temp=1.0), seed=seed)
        return ["".join(conversation.say("w1")), "".join(conversation.retry())]

    first, again = answers(7)
    assert again != first
    assert answers(7) == [first, again]


def test_a_turn_that_fails_is_no_turn(small: pyskip.Llama) -> None:
    conversation = Conversation(small, n_predict=8)
    "".join(conversation.say("w1 w2"))
    with pytest.raises(pyskip.DecodeError, match="the prompt has"):
        "".join(conversation.say("w1 " * 300))
    assert len(conversation.turns) % 2 == 0
    assert all(len(turn["content"]) < 100 for turn in conversation.turns)


def test_what_had_come_when_it_stopped_is_a_turn(small: pyskip.Llama) -> None:
    conversation = Conversation(small, "w9", n_predict=50)
    pieces = conversation.say("w1 w2")
    begun = next(pieces) + next(pieces)
    pieces.close()
    assert conversation.turns[-1] == {"role": "assistant", "content": begun}
    assert conversation.messages[0] == {"role": "system", "content": "w9"}
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "w9"}]


def test_rates_count_dense_answers(small: pyskip.Llama) -> None:
    conversation = Conversation(small, n_predict=9)
    "".join(conversation.say("w1"))
    assert chat_commands.skip_rate_of(conversation.answers) == 0.0
    small.skip = "static:1,2,3"
    "".join(conversation.say("w1"))
    small.skip = "off"
    assert chat_commands.skip_rate_of(conversation.answers[1:]) == 0.5
    assert 0.2 < chat_commands.skip_rate_of(conversation.answers) < 0.3
    first, second = conversation.answers
    assert (
        min(first.gen_ts, second.gen_ts) <= chat_commands.rate_of([first, second]) <= max(first.gen_ts, second.gen_ts)
    )


# What is typed


@pytest.fixture
def typed(
    small: pyskip.Llama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[PipeInput, Callable[[], str]]]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as keys:
        yield keys, reader(small, keys, DummyOutput())


Typed = tuple[PipeInput, Callable[[], str]]


def test_keys(typed: Typed) -> None:
    keys, read = typed
    keys.send_text("one\r")
    assert read() == "one"
    keys.send_text("two\x1b\rlines\r")
    assert read() == "two\nlines"
    keys.send_text("\x1b[200~pasted\nlines\n/quit\x1b[201~\r")
    assert read() == "pasted\nlines\n/quit"
    keys.send_text("\x1b[A\x1b[A\x1b[A\x1b[A\r")  # up, over the lines of the last
    assert read().startswith("two")
    keys.send_text("forgotten\x03kept\r")
    assert read() == "kept"
    keys.send_text("\x03")
    with pytest.raises(KeyboardInterrupt):
        read()
    keys.send_text("\x04")
    with pytest.raises(EOFError):
        read()


def test_history_is_kept_for_the_user_only(typed: Typed, tmp_path: Path) -> None:
    keys, read = typed
    keys.send_text("remember me\r")
    read()
    file = tmp_path / "pyskip" / "chat-history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    history().append_string("half a pair \udcff")  # not UTF-8: no error
    assert list(history().load_history_strings())[-1] == "remember me"
    file.read_text("utf-8")


@pytest.mark.parametrize("place", ["file", "folder", "fifo", "null", "relative"])
def test_no_place_for_a_history_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    (tmp_path / "pyskip").mkdir()
    home = str(tmp_path)
    if place == "file":
        (tmp_path / "pyskip").rmdir()
        (tmp_path / "pyskip").write_text("")
    elif place == "folder":
        (tmp_path / "pyskip" / "chat-history").mkdir()
    elif place == "fifo":
        os.mkfifo(tmp_path / "pyskip" / "chat-history")
    elif place == "null":
        home = "/dev/null"
    else:
        home = "relative"
        monkeypatch.setenv("HOME", str(tmp_path / "pyskip"))
        monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", home)
    kept = history()
    kept.append_string("x")
    assert kept.get_strings() == ["x"]
    assert not (tmp_path / "relative").exists()


def completions(llm: pyskip.Llama, text: str) -> list[str]:
    return [c.text for c in ChatCompleter(llm).get_completions(Document(text), CompleteEvent())]


def test_completion(small: pyskip.Llama, llm: pyskip.Llama, tmp_path: Path) -> None:
    assert completions(small, "/s") == ["/skip ", "/stats", "/system ", "/save "]
    assert completions(small, "s") == completions(small, "hi /s") == completions(small, "/stats ") == []
    assert "off" in completions(small, "/skip ")
    assert not any(text[0].isdigit() for text in completions(small, "/skip "))
    assert completions(llm, "/skip 0.") == ["0.1", "0.2", "0.25", "0.3", "0.4", "0.5"]  # as far as the profile goes
    for text in completions(llm, "/skip "):
        pyskip.parse_skip(text + {"=": "0.5", ":": "3"}.get(text[-1], ""))
    (tmp_path / "sunday.session").touch()
    assert completions(small, f"/load {tmp_path}/sun") == ["day.session"]
