"""Reasoning told apart from the answer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from parrot import make_parrot

from pyskip.chat.reasoning import ReasoningSplit
from pyskip.cli.chat_view import parted

Cli = Callable[..., subprocess.CompletedProcess[str]]
WHOLE = "<think>\nFirst <b>\n</think>\n\nThe answer </think is> 4."


@pytest.mark.parametrize("n", [1, 2, 5, 7, 100])
def test_split(n: int) -> None:
    """However it is cut into pieces."""
    split = ReasoningSplit()
    parts = [part for i in range(0, len(WHOLE), n) for part in split.push(WHOLE[i : i + n])] + list(split.finish())
    said = {kind: "".join(text for text, is_reasoning in parts if is_reasoning is kind) for kind in (True, False)}
    assert said[True].strip() == "First <b>"
    assert said[False] == "The answer </think is> 4."


@pytest.mark.parametrize("text", ["plain", " plain <thi", "", "a < b", "\n two"])
def test_without_reasoning_nothing_changes(text: str) -> None:
    assert "".join(part for part, _ in parted(iter(text))) == text


@pytest.mark.parametrize("begun", [False, True])
def test_chat(cli: Cli, tmp_path: Path, begun: bool) -> None:
    """On stderr; also where the template has begun it."""
    says = ["Let me", " see.", "</think>", "\n\n", "Four."]
    path = make_parrot(tmp_path / "m.gguf", says if begun else ["<think>", *says])
    line_end = "{{ '\\n' }}"
    template = "{{ messages[-1].content }}" + line_end + (f"<think>{line_end}" if begun else "")
    done = cli("chat", str(path), "-p", "w1", "--chat-template", template, "-t", "1", "--temp", "0")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Four.\n"
    assert "Let me see." in done.stderr
    assert "think>" not in done.stdout + done.stderr
