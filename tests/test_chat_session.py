"""Sessions of a chat: what is loaded goes on as if it had never been left; a file that is no session is one line."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import make_random, open_llm

import pyskip
from pyskip.chat.conversation import Conversation
from pyskip.chat.session import load_session, save_session

SPEC = "cosine:threshold=0.9,run=2,cold_start=1,cold_end=1,warmup=3"


@pytest.fixture(scope="module")
def small(tiny: Path) -> Iterator[pyskip.Llama]:
    llm = open_llm(tiny, 256, skip=SPEC)
    yield llm
    llm.close()


def talk(llm: pyskip.Llama, *texts: str) -> tuple[Conversation, list[str]]:
    llm.reset()
    llm.skip = SPEC
    conversation = Conversation(llm, "w5 w6", n_predict=12)
    return conversation, ["".join(conversation.say(text)) for text in texts]


@pytest.fixture
def saved(small: pyskip.Llama, tmp_path: Path) -> Path:
    conversation, _ = talk(small, "w1 w2 w3")
    path = tmp_path / "chat.session"
    save_session(path, small, conversation.system, conversation.turns)
    return path


def resumed(llm: pyskip.Llama, path: Path) -> tuple[Conversation, str | None]:
    session, reason = load_session(path, llm)
    conversation = Conversation(llm, session.system, n_predict=12)
    conversation.turns = list(session.turns)
    if session.skip is not None:
        llm.skip = session.skip
    return conversation, reason


def test_loaded_goes_on_as_unsaved(tiny: Path, small: pyskip.Llama, saved: Path) -> None:
    conversation, (_, expected) = talk(small, "w1 w2 w3", "w4 w5")
    trace = conversation.trace
    assert trace is not None
    assert trace.skipped.any()
    llm = open_llm(tiny, 192)  # another context, and dense until the session says otherwise
    again, reason = resumed(llm, saved)
    assert reason is None
    n_tokens = llm.n_tokens
    assert n_tokens > 20
    assert "".join(again.say("w4 w5")) == expected
    assert again.trace is not None
    assert (again.trace.skipped == trace.skipped).all()
    assert (again.trace.similarity == trace.similarity)[~(trace.similarity != trace.similarity)].all()
    # the first turn's prompt was not decoded again; its answer's bytes are other tokens in a prompt
    assert again.answers[-1].n_prompt - llm.skip_stats().n_prompt >= conversation.answers[0].n_prompt
    llm.close()


def test_the_same_on_the_demo_model_with_its_profile(demo: Path, tmp_path: Path) -> None:
    answers = []
    path = tmp_path / "s"
    for is_resumed in (False, True):
        llm = pyskip.Llama(demo, skip="profile:rate=0.4,warmup=2", n_ctx=256, n_threads=1, verbose=False)
        if is_resumed:
            conversation, reason = resumed(llm, path)
            assert reason is None
        else:
            conversation = Conversation(llm, n_predict=12)
            "".join(conversation.say("Are dogs real?"))
            save_session(path, llm, None, conversation.turns)
        answers.append("".join(conversation.say("And cats?")))
        assert conversation.answers[-1].skip.rate > 0.1
        assert llm.skip_stats().n_prompt < 30  # the second turn's
        llm.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("why", ["build", "context", "no state", "state"])
def test_without_its_state_the_messages_are_read_again(tiny: Path, small: pyskip.Llama, saved: Path, why: str) -> None:
    _, (_, expected) = talk(small, "w1 w2 w3", "w4 w5")
    llm = open_llm(tiny, 256)
    if why == "build":
        rewrite(saved, build="llama.cpp of yesterday")
    elif why == "context":
        rewrite(saved, tokens=[5] * 257)
    elif why == "no state":
        rewrite(saved, state=None)
    else:
        rewrite(saved, state=b"\0" * 40)
    conversation, reason = resumed(llm, saved)
    assert reason
    assert llm.n_tokens == 0
    # the cache of the first turn was decoded in one batch now: the answer may differ, and must not be empty
    answer = "".join(conversation.say("w4 w5"))
    assert len(answer) > 0
    assert len(expected) > 0
    llm.close()


def rewrite(path: Path, state: bytes | None = b"keep", **fields: Any) -> None:
    """With other fields; ...: without it."""
    with zipfile.ZipFile(path) as archive:
        document = json.loads(archive.read("session.json"))
        old = archive.read("state.bin")
    document |= fields
    document = {key: value for key, value in document.items() if value is not ...}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("session.json", json.dumps(document))
        if state is not None:
            archive.writestr("state.bin", old if state == b"keep" else state)


TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pyskip_session": 2}, "version"),
        ({"build": ...}, "build"),
        ({"fingerprint": "fnv1a64:0", "model": "other\x1b[2J\nname"}, "another model (other?[2J?name)"),
        ({"system": 3}, "system"),
        ({"turns": TURNS[:1]}, "turns"),
        ({"turns": TURNS[::-1]}, "turns"),
        ({"turns": [TURNS[0], {**TURNS[1], "content": "\ud800"}]}, "turns"),
        ({"turns": [TURNS[0], {**TURNS[1], "more": 1}]}, "turns"),
        ({"turns": {}}, "turns"),
        ({"tokens": [-1]}, "tokens"),
        ({"tokens": [320]}, "tokens"),
        ({"tokens": [True]}, "tokens"),
        ({"tokens": [10**30]}, "tokens"),
        ({"tokens": "1"}, "tokens"),
        ({"skip": "nonsense"}, "skip"),
        ({"skip": ["off"]}, "skip"),
    ],
)
def test_a_wrong_field_is_one_line(small: pyskip.Llama, saved: Path, fields: dict[str, Any], says: str) -> None:
    rewrite(saved, **fields)
    with pytest.raises(pyskip.PyskipError) as caught:
        load_session(saved, small)
    assert says in str(caught.value)
    check_line(str(caught.value))


def check_line(line: str) -> None:
    assert "\n" not in line
    assert line.isprintable()
    assert len(line) < 600


def test_no_session_is_one_line(small: pyskip.Llama, saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello\n" * 1000)
    for i, n in enumerate((1, 30, len(whole) // 2, len(whole) - 1)):
        (tmp_path / f"cut{i}").write_bytes(whole[:n])
    with zipfile.ZipFile(tmp_path / "other", "w") as archive:
        archive.writestr("notes.txt", "x")
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("session.json", b" " * (65 << 20))
    with zipfile.ZipFile(tmp_path / "deep", "w") as archive:
        archive.writestr("session.json", b"[" * 1_000_000)
    huge = bytearray(whole)
    at = huge.find(b"PK\x01\x02") + 20
    huge[at : at + 8] = b"\xf0\xff\xff\xff" * 2  # the first member's sizes, 4 GiB
    (tmp_path / "huge").write_bytes(huge)
    for path in (*sorted(tmp_path.iterdir()), tmp_path / "missing", Path("a\0b"), Path("x" * 5000)):
        if path != saved:
            with pytest.raises(pyskip.PyskipError) as caught:
                load_session(path, small)
            check_line(str(caught.value).replace("\0", "").replace("x" * 5000, ""))


def test_a_flipped_bit_is_found_or_does_not_matter(small: pyskip.Llama, saved: Path) -> None:
    whole = saved.read_bytes()
    session, reason = load_session(saved, small)
    assert reason is None
    n_found = 0
    for i in range(0, 8 * len(whole), 8 * len(whole) // 400 | 1):
        data = bytearray(whole)
        data[i // 8] ^= 1 << i % 8
        saved.write_bytes(data)
        try:
            assert load_session(saved, small) == (session, None)
        except pyskip.PyskipError as error:
            check_line(str(error))
            n_found += 1
    assert n_found > 300


def test_a_refused_file_leaves_the_model_as_it_was(small: pyskip.Llama, saved: Path) -> None:
    conversation, _ = talk(small, "w1 w2 w3")
    n_tokens = small.n_tokens
    rewrite(saved, tokens=[-1])
    with pytest.raises(pyskip.PyskipError):
        load_session(saved, small)
    assert small.n_tokens == n_tokens
    after = "".join(conversation.say("w4 w5"))
    assert after == talk(small, "w1 w2 w3", "w4 w5")[1][1]


def test_saving(small: pyskip.Llama, saved: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["chat.session"]
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    (tmp_path / "link").symlink_to(saved)
    save_session(tmp_path / "link", small, None, [])
    assert load_session(saved, small)[0].turns == ()
    for path, says in (
        (notes, "no session"),
        (tmp_path, "no session"),
        (Path("/dev/null"), "no session"),
        (tmp_path / "no" / "folder", "No such file"),
        (Path("a\0b"), "NUL"),
    ):
        with pytest.raises(pyskip.PyskipError, match=says) as caught:
            save_session(path, small, None, [])
        check_line(str(caught.value))
    assert notes.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["chat.session", "link", "notes.txt"]


def test_another_model(saved: Path, tmp_path: Path) -> None:
    shape = make_random.SHAPES["tiny"]
    make_random.make(tmp_path / "other.gguf", shape, seed=9)
    llm = open_llm(tmp_path / "other.gguf", 64)
    with pytest.raises(pyskip.PyskipError, match="a session of another model"):
        load_session(saved, llm)
    llm.close()
