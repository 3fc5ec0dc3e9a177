"""The command line as a user meets it: transcripts, JSON, exit codes, and one line for every mistake."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_chat_from_a_pipe(cli: Run) -> None:
    flags = ("chat", "--temp", "0", "-n", "24", "--skip", "off")
    done = cli(*flags, input="My name is Ada.\n\nWhat is my name?\n")
    assert done.returncode == 0
    # the second answer follows from both turns
    first, alone = cli(*flags, input="My name is Ada.\n"), cli(*flags, input="What is my name?\n")
    assert done.stdout.startswith(first.stdout)
    assert done.stdout.removeprefix(first.stdout).strip() not in ("", alone.stdout.strip())
    assert "> " not in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert re.search(r"2 answers, \d+ tokens, [\d.]+ tokens/s, 0\.0% of FFN blocks skipped \(off\)", done.stderr)


def test_chat_says_what_it_skipped(cli: Run) -> None:
    done = cli("chat", "demo", "-n", "40", "--skip", "static:5,14,25", input="Are dogs real?\n")
    assert done.returncode == 0
    assert "10.0% of FFN blocks skipped (static:5,14,25)" in done.stderr


def test_without_skip_a_hint(cli: Run) -> None:
    assert "running dense" in cli("chat", "-n", "2", input="Hi\n").stderr


def test_chat_drops_the_oldest_turns(cli: Run) -> None:
    done = cli("chat", "-c", "160", "-n", "30", input="Tell me about the sea.\n" * 5)
    assert done.returncode == 0
    assert "dropped the oldest 2 messages" in done.stderr
    assert len([line for line in done.stdout.splitlines() if line.strip()]) >= 5


def test_chat_refuses_a_turn_that_never_fits(cli: Run) -> None:
    done = cli("chat", "-c", "64", "--skip", "off", input="word " * 200 + "\n")
    assert done.returncode == 1
    assert one_line(done, r"the prompt has \d+ tokens, the context \d+: shorten it")


def test_chat_stdin_must_be_utf8(demo: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "pyskip", "chat"], input=b"\xff\xfe\n", capture_output=True)
    assert done.returncode == 1
    assert b"line 1 of stdin is not UTF-8" in done.stderr


def test_generate_json(cli: Run) -> None:
    done = cli(
        "generate",
        "demo",
        "-p",
        "The capital of France is",
        "-n",
        "24",
        "--skip",
        "cosine:threshold=0.97,warmup=4",
        "--json",
    )
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert "Paris" in document["text"]
    assert document["n_prompt"] == 5
    assert 5 < document["n_gen"] <= 24
    assert document["prompt_ts"] > 0
    assert document["gen_ts"] > 0
    assert len(document["skip"]["per_layer"]) == 30
    assert 0 < document["skip"]["rate"] < 0.5
    assert document["skip"]["rate"] == pytest.approx(sum(document["skip"]["per_layer"]) / 30)


def test_generate_is_reproducible(cli: Run) -> None:
    args = ("generate", "demo", "-p", "Once upon a time", "-n", "16", "--temp", "0.9", "--seed", "7")
    first, second = cli(*args), cli(*args)
    assert first.stdout == second.stdout
    assert first.stdout != cli(*args[:-1], "8").stdout


def test_info(cli: Run) -> None:
    document = json.loads(cli("info", "demo", "--json").stdout)
    assert document["architecture"] == "llama"
    assert (document["n_layer"], document["n_embd"], document["n_ff"]) == (30, 576, 1536)
    assert document["n_params"] == 134515008
    assert document["ffn_share"] == pytest.approx(document["ffn_bytes"] / document["bytes"], abs=1e-4)
    assert document["skippable_layers"] == list(range(30))
    assert document["profile"] is None
    assert "0-29" in cli("info", "demo").stdout


def test_version_and_help(cli: Run) -> None:
    assert re.match(
        r"pyskip \d+\.\d+\.\d+ \(llama-cpp-python [\d.]+, llama\.cpp \w+, patches \w+\)", cli("--version").stdout
    )
    for command in ("chat", "generate", "info"):
        assert command in cli("--help").stdout
        assert "--help" in cli(command, "--help").stdout


# Every mistake: one line on stderr, exit 1 or 2


def one_line(done: subprocess.CompletedProcess[str], pattern: str) -> bool:
    lines = [line for line in done.stderr.splitlines() if not line.startswith("pyskip: running dense")]
    assert "Traceback" not in done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("pyskip: ")
    return re.search(pattern, lines[0]) is not None


def vocabulary_only(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def broken(kind: str, tmp_path: Path, tiny: Path) -> Path:
    path = tmp_path / "model.gguf"
    whole = tiny.read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("This is no model.\n" * 100)
    elif kind == "magic":
        path.write_bytes(b"GGUF")
    elif kind == "header":
        path.write_bytes(whole[:300])
    elif kind == "weights":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "counts":
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    elif kind == "zeros":
        path.write_bytes(b"GGUF" + bytes(4096))
    elif kind == "vocabulary":
        vocabulary_only(path)
    elif kind == "missing tensor":
        path.write_bytes(whole.replace(b"blk.3.ffn_down.weight", b"blk.3.ffn_dowm.weight"))
    elif kind == "architecture":
        path.write_bytes(whole.replace(b"llama", b"lluma"))
    elif kind == "directory":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("missing", "no such file"),
        ("empty", "is empty"),
        ("text", "does not start with GGUF"),
        ("magic", "cannot read"),
        ("header", "cannot read"),
        ("weights", "is cut off"),
        ("counts", "cannot read"),
        ("zeros", "cannot read"),
        ("vocabulary", "vocabulary and no weights"),
        ("missing tensor", "cannot load it"),
        ("architecture", "cannot load it"),
        ("directory", "is a directory"),
    ],
)
def test_bad_models(cli: Run, tmp_path: Path, tiny: Path, kind: str, told: str) -> None:
    done = cli("generate", str(broken(kind, tmp_path, tiny)), "-p", "x", "-n", "1")
    assert done.returncode == 1
    assert one_line(done, told), done.stderr
    assert done.stdout == ""


def test_unreadable_model(tmp_path: Path, tiny: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(tiny.read_bytes())
    path.chmod(0)
    command = [sys.executable, "-m", "pyskip", "generate", str(path), "-p", "x"]
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    done = subprocess.run([*prefix, *command], capture_output=True, text=True)
    assert done.returncode == 1
    assert one_line(done, "cannot be opened for reading"), done.stderr


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (["-p", "x", "-c", "0"], 2, "-c"),
        (["-p", "x", "-c", "-5"], 2, "-c"),
        (["-p", "x", "-c", "2000000000"], 1, r"needs [\d.]+ GiB.*free"),
        (["-p", "x", "-c", "99999999999999999999"], 2, "-c"),
        (["-p", "x", "-n", "0"], 2, "-n"),
        (["-p", "x", "-t", "0"], 2, "-t"),
        (["-p", "x", "--temp", "nan"], 2, "finite|range"),
        (["-p", "x", "--temp", "-1"], 2, "--temp"),
        (["-p", "x", "--seed", "-1"], 2, "--seed"),
        (["-p", ""], 2, "empty"),
        ([], 2, "-p"),
        (["-p", "x", "--nonsense"], 2, "nonsense"),
        (["-p", b"\xff"], 2, "UTF-8"),
        (["-p", "word " * 200, "-c", "64"], 1, r"prompt has \d+ tokens, the context \d+"),
        (["-p", "x", "--skip", "nonsense"], 1, "skip is 'nonsense'"),
        (["-p", "x", "--skip", "cosine:speed=1"], 1, "no setting"),
        (["-p", "x", "--skip", "cosine:run=x"], 1, "whole number"),
        (["-p", "x", "--skip", "cosine:threshold=nan"], 1, "finite"),
        (["-p", "x", "--skip", "cosine:cold_start=9"], 1, "leave none of the model's 6 layers"),
        (["-p", "x", "--skip", "static:6"], 1, "layers 0 to 5"),
        (["-p", "x", "--skip", "0.25"], 1, "profile"),
    ],
)
def test_bad_flags(cli: Run, tiny: Path, args: list[str], status: int, told: str) -> None:
    done = cli("generate", str(tiny), *args)
    assert done.returncode == status
    assert one_line(done, told), done.stderr
    assert done.stdout == ""


def test_unknown_command(cli: Run) -> None:
    done = cli("chatt")
    assert done.returncode == 2
    assert one_line(done, "chatt")


def test_stdout_closed_early(demo: Path) -> None:
    command = [sys.executable, "-m", "pyskip", "generate", "demo", "-p", "Once upon a time", "-n", "400"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(5)
        process.stdout.close()
        errors = process.stderr.read().decode()
        assert process.wait(60) in (0, 1)
    assert "Traceback" not in errors
    assert "Broken" not in errors
