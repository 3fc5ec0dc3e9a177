"""The command line as a user meets it: transcripts, JSON, exit codes, and one line for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import pyskip
from pyskip.models import resolve

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.model
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


@pytest.mark.model
def test_chat_says_what_it_skipped(cli: Run) -> None:
    done = cli("chat", "demo", "-n", "40", "--temp", "0", "--skip", "static:5,14,25", input="Are dogs real?\n")
    assert done.returncode == 0
    assert "10.0% of FFN blocks skipped (static:5,14,25)" in done.stderr


@pytest.mark.model
def test_without_skip_the_profile_or_a_hint(cli: Run, tiny: Path) -> None:
    done = cli("chat", "-n", "60", "--temp", "0", input="Tell me about the sea.\n")
    assert re.search(r"skipping about \d+% of FFN blocks: at best 1\.\d\d x as fast, perplexity 1\.\d+ x", done.stderr)
    assert float(re.search(r"([\d.]+)% of FFN blocks skipped \(profile\)", done.stderr)[1]) > 2  # type: ignore[index]
    done = cli("chat", str(tiny), "-n", "2", input="Hi\n")
    assert "running dense: there is no profile" in done.stderr
    assert done.returncode == 0


@pytest.mark.model
def test_chat_drops_the_oldest_turns(cli: Run) -> None:
    done = cli("chat", "-c", "160", "-n", "30", "--temp", "0", input="Tell me about the sea.\n" * 5)
    assert done.returncode == 0
    assert "dropped the oldest 2 messages" in done.stderr
    assert len([line for line in done.stdout.splitlines() if line.strip()]) >= 5


@pytest.mark.model
def test_chat_refuses_a_turn_that_never_fits(cli: Run) -> None:
    done = cli("chat", "-c", "64", "--skip", "off", input="word " * 200 + "\n")
    assert done.returncode == 1
    assert re.fullmatch(r"pyskip: the prompt has \d+ tokens, the context \d+: shorten it.*\n", done.stderr)


@pytest.mark.model
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


@pytest.mark.model
def test_generate_is_reproducible(cli: Run) -> None:
    args = ("generate", "demo", "-p", "Once upon a time", "-n", "16", "--temp", "0.9", "--seed", "7")
    first, second = cli(*args), cli(*args)
    assert first.stdout == second.stdout
    assert first.stdout != cli(*args[:-1], "8").stdout


@pytest.mark.model
def test_info(cli: Run) -> None:
    document = json.loads(cli("info", "demo", "--json").stdout)
    assert document["architecture"] == "llama"
    assert (document["n_layer"], document["n_embd"], document["n_ff"]) == (30, 576, 1536)
    assert document["n_params"] == 134515008
    assert document["ffn_share"] == pytest.approx(document["ffn_bytes"] / document["bytes"], abs=1e-4)
    assert document["skippable_layers"] == list(range(30))
    memory = document["memory"]
    assert memory["weights"] == document["bytes"]
    assert memory["kv"] == 4096 * 30 * 2 * 192 * 2  # 30 layers, keys and values of 3 heads of 64, f16
    assert memory["available"] > memory["weights"] + memory["kv"]
    assert memory["fits"] is True
    assert document["profile"]["stand_in"] == "gated"
    assert document["profile"]["recommended"] in [point["rate"] for point in document["profile"]["curve"]]
    info = pyskip.inspect(resolve("demo"))
    assert document["ideal_speedup"]["0.5"] == pytest.approx(
        info.read_bytes / (info.read_bytes - info.read_ffn_bytes / 2), abs=1e-3
    )
    assert "0-29" in cli("info", "demo").stdout


def test_info_without_a_profile(cli: Run, tiny: Path) -> None:
    result = cli("info", str(tiny))
    assert "none" in result.stdout
    assert "ideal speed-up, before stand-ins" in result.stdout


@pytest.mark.slow
def test_version_and_help(cli: Run) -> None:
    assert re.match(
        r"pyskip \d+\.\d+\.\d+ \(llama-cpp-python [\d.]+, llama\.cpp \w+, patches \w+\)", cli("--version").stdout
    )
    for command in ("calibrate", "chat", "eval", "generate", "info", "list", "pull"):
        assert command in cli("--help").stdout
        assert "--help" in cli(command, "--help").stdout
