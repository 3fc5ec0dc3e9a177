"""`pyskip eval` as it is called: documents, tables, progress, interruption, and one line for every mistake."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from evaluations import Run, refused, story
from test_interrupt import PYSKIP, finish, started


@pytest.fixture
def story_file(tmp_path: Path) -> str:
    path = tmp_path / "story.txt"
    path.write_text(story(20))
    return str(path)


@pytest.fixture
def task_file(tmp_path: Path) -> str:
    path = tmp_path / "items.jsonl"
    lines = [
        {"context": "The capital of France is", "continuation": "Paris"},
        {"context": "The capital of France is", "continuation": "bread"},
        {"query": "Question: What do bakers bake?", "choices": ["bread", "violins"], "gold": 0},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return str(path)


@pytest.mark.model
def test_text_json(cli: Run, story_file: str) -> None:
    flags = ("--chunks", "2", "--ctx", "64", "-t", "2", "--skip", "static:5,14,25", "--json")
    done = cli("eval", "demo", "--text", story_file, *flags)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    dense, row = document["results"]
    keys = {"skip", "skip_rate", "ffn_bytes_saved", "ppl", "ppl_se", "ppl_ratio", "ppl_ratio_se", "kld_mean"}
    assert keys | {"kld_p99", "same_top", "n_tokens"} <= set(dense) == set(row)
    assert (dense["skip"], dense["ppl_ratio"], dense["n_tokens"]) == ("off", 1.0, 62)
    assert (row["skip"], row["skip_rate"]) == ("static:5,14,25", pytest.approx(0.1))
    assert row["ppl"] / dense["ppl"] == pytest.approx(row["ppl_ratio"])
    assert (document["model"], document["text"], document["n_ctx"]) == ("demo", story_file, 64)


@pytest.mark.model
def test_task_json(cli: Run, task_file: str) -> None:
    done = cli("eval", "demo", "--task", task_file, "--chunks", "2", "--skip", "static:5", "--json")
    assert done.returncode == 0, done.stderr
    dense, row = json.loads(done.stdout)["results"]
    keys = {"skip", "skip_rate", "ffn_bytes_saved", "accuracy", "accuracy_se", "n", "accuracy_diff", "accuracy_diff_se"}
    assert keys <= set(dense) == set(row)
    assert (dense["skip"], dense["accuracy"], dense["n"]) == ("off", 0.5, 2)
    assert row["skip_rate"] == pytest.approx(1 / 30)
    one = cli("eval", "demo", "--task", task_file, "--chunks", "1", "--json")
    assert json.loads(one.stdout)["results"][0]["accuracy_se"] is None


@pytest.mark.model
def test_tables(cli: Run, story_file: str, task_file: str) -> None:
    done = cli("eval", "demo", "--text", story_file, "--ctx", "64", "--chunks", "1", "--skip", "static:5")
    header, off, static = done.stdout.splitlines()
    assert header.split()[:2] == ["skip", "skipped"]
    assert re.match(r"off +0\.0% +0\.0% +[\d.]+ ± [\d.]+ +1\.0000 ± 0\.0000 +0\.0000 +0\.000 +100\.0%$", off)
    assert re.match(r"static:5 +3\.3% +3\.3% ", static)
    assert len(header) == len(off) == len(static)
    done = cli("eval", "demo", "--text", story_file, "--ctx", "64", "--chunks", "1", "--skip", "static:5", "--no-dense")
    header, alone = done.stdout.splitlines()
    assert header.split() == ["skip", "skipped", "FFN", "bytes", "saved", "ppl"]
    assert alone.split()[:6] == static.split()[:6]
    done = cli("eval", "demo", "--task", task_file)
    assert re.match(r"off +0\.0% +0\.0% +66\.7% ± 33\.3% +\+0\.0% ± 0\.0%$", done.stdout.splitlines()[1])


@pytest.mark.model
def test_progress_on_a_terminal_is_one_line_that_goes_away(story_file: str) -> None:
    master, slave = pty.openpty()
    command = [*PYSKIP, "eval", "demo", "--text", story_file, "--ctx", "64", "--chunks", "2"]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=slave, check=True, timeout=120)
    os.close(slave)
    seen = os.read(master, 65536).decode()
    os.close(master)
    assert "1/2 windows" in seen
    assert "2/2 windows" in seen
    assert "\n" not in seen
    assert seen.endswith("\r\x1b[2K")


@pytest.mark.model
def test_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(story(2000))
    with started("eval", "demo", "--text", str(path), "--skip", "static:5") as process:
        time.sleep(4)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        status, out, _ = finish(process)
        took = time.monotonic() - begin
    assert (status, out) == (130, "")
    assert took < 5


# Mistakes


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        ([], 2, "either --text or --task"),
        (["--text", "a", "--task", "b"], 2, "either --text or --task"),
        (["--task", "STORY", "--no-dense"], 2, "--no-dense goes with --text"),
        (["--text", "STORY", "--chunks", "0"], 2, "--chunks"),
        (["--text", "STORY", "--ctx", "4"], 2, "--ctx"),
        (["--text", "STORY", "--skip", "cosine:speed=3"], 1, "no setting"),
        (["--text", "STORY", "--skip", "static:5", "--skip", "static:99", "--ctx", "64"], 1, "99"),
        (["--text", "STORY", "--ctx", "2048"], 1, "tokens, expected at least one window of 2048"),
        (["--text", "missing.txt"], 1, "missing.txt: No such file"),
        (["--task", "."], 1, "directory"),
        (["--task", "STORY"], 1, "line 1: not JSON"),
    ],
)
@pytest.mark.model
def test_mistakes_on_the_command_line(cli: Run, story_file: str, args: list[str], status: int, said: str) -> None:
    refused(cli("eval", "demo", *(story_file if arg == "STORY" else arg for arg in args)), status, said)


ITEM = b'{"context": "a", "continuation": "b"}\n'
LONG = b'{"context": "' + b"word " * 100 + b'", "continuation": "b"}'


@pytest.mark.parametrize(
    ("flag", "content", "said"),
    [
        ("--text", b"", "FILE: empty, expected UTF-8 text"),
        ("--text", b"a", "tokens, expected at least one window of 64"),
        ("--text", b"fine\n\xff", "FILE, line 2: byte 0xff at offset 5 is not UTF-8"),
        ("--task", b"\n", "FILE: empty"),
        ("--task", ITEM + b'{"context": "a", ', "FILE, line 2: not JSON"),
        ("--task", ITEM + b'{"query": "a", "choices": ["b", "c"], "gold": 2}', 'FILE, line 2: "gold" is 2'),
        ("--task", ITEM + LONG, "tokens do not fit a context of 64: raise"),
        ("--task", ITEM + b'{"article": "a", "highlights": "b"}', "FILE, line 2: found articles behind items"),
    ],
)
def test_mistakes_in_files(cli: Run, tiny: Path, tmp_path: Path, flag: str, content: bytes, said: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    done = cli("eval", str(tiny), flag, str(path), "--ctx", "64", "--skip", "static:2")
    refused(done, 1, said.replace("FILE", str(path)))
