"""`pyskip bench`: what it measures is there, comes of the arms' own work, and fails in one line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import REFERENCE, make_profile
from test_interrupt import finish, started

import pyskip
from pyskip import bench
from pyskip.bench import run as bench_run

Cli = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ("-n", "12", "-r", "3", "-t", "1")


@pytest.mark.slow
def test_rows(cli: Cli, tiny: Path) -> None:
    """Every arm in every test, in order; the ratios are those of the samples; the bytes are those of the layers."""
    result = cli(
        "bench", str(tiny), *SMALL, "-p", "32", "-d", "0,24", "--skip", "static:1,4", "--skip", "off",
        "--skip", "static:1,4", "--format", "json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["rounds"], found["n_threads"] >= 1, found["cpu"] != "") == (3, True, True)
    assert "patches" in found["builds"]["off"]
    rows = {(row["test"], row["arm"]): row for row in found["rows"]}
    assert list(rows) == [
        (test, arm) for test in ("pp32", "pp32 @ d24", "tg12", "tg12 @ d24") for arm in ("off", "static:1,4")
    ]
    info = pyskip.inspect(tiny)
    ideal = info.read_bytes / (info.read_bytes - info.read_ffn_bytes * 2 / 6)
    for (test, arm), row in rows.items():
        samples, dense = row["samples_ts"], rows[test, "off"]["samples_ts"]
        assert len(samples) == 3
        assert min(samples) > 0
        assert row["avg_ts"] == statistics.median(samples)
        assert row["speedup"] == pytest.approx(statistics.median(a / b for a, b in zip(samples, dense, strict=True)))
        assert row["peak_rss"] > 1 << 20
        of_dense = (
            2 / 6 if test.startswith("tg") else 64 / 161
        )  # of a prompt's last token alone the last layer is computed
        assert row["skip_rate"] == pytest.approx(of_dense if arm != "off" else 0)
        if test.startswith("tg"):
            assert row["ideal_speedup"] == pytest.approx(ideal if arm != "off" else 1)
            assert row["efficiency"] == pytest.approx(row["speedup"] / row["ideal_speedup"])
        else:
            assert row["ideal_speedup"] is row["efficiency"] is None


@pytest.mark.slow
def test_formats(cli: Cli, tiny: Path) -> None:
    table, comma, lines = (
        cli("bench", str(tiny), *SMALL, "--skip", "static:2", "--format", form).stdout
        for form in ("md", "csv", "jsonl")
    )
    assert " attention " not in table
    assert [line.split(" | ")[1] for line in table.splitlines() if line.startswith("| tg12")] == ["off", "static:2"]
    assert [row["arm"] for row in csv.DictReader(io.StringIO(comma))] == ["off", "static:2"]
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["arm"] for row in rows] == ["off", "static:2"]
    assert all(len(row["samples_ts"]) == 3 and row["model_bytes"] == rows[0]["model_bytes"] for row in rows)


@pytest.mark.slow
def test_attention_has_a_column_if_any_is_skipped(cli: Cli, tiny: Path) -> None:
    table = cli("bench", str(tiny), "-n", "8", "-p", "16", "-r", "1", "-t", "1", "--skip", "static:2,attn=1+3").stdout
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line]
    cells = [dict(zip(head, row, strict=True)) for row in rows]
    assert [(cell["test"], cell["attention"]) for cell in cells] == [
        ("pp16", "0.0%"), ("pp16", "33.3%"), ("tg8", "0.0%"), ("tg8", "33.3%")
    ]  # fmt: skip


@pytest.mark.slow
def test_a_profile_is_an_arm_by_itself(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.skip.gguf"
    make_profile.make_profile(tiny, path, stand_in="gated", rank=32)
    result = cli("bench", str(tiny), "-n", "32", "-r", "2", "-t", "1", "--profile", str(path), "--format", "jsonl")
    assert result.returncode == 0, result.stderr
    off, own = (json.loads(line) for line in result.stdout.splitlines())
    assert (off["arm"], own["arm"]) == ("off", "profile")
    assert 0 < own["skip_rate"] < 1
    assert own["attention_skip_rate"] == 0
    info = pyskip.inspect(tiny)
    assert 0.8 < own["ideal_speedup"] < info.read_bytes / (info.read_bytes - info.read_ffn_bytes)


@pytest.mark.slow
def test_a_text_of_ones_own(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """Every arm decodes the file's first tokens, and a text that is too short is no text."""
    text = tmp_path / "text.txt"
    text.write_text("A fox dreamt of a river. " * 60, encoding="utf-8")
    run_bench = bench.run_bench
    seen: list[Mapping[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        ask = bench_run._Worker.ask

        def heard(self: bench_run._Worker, question: Mapping[str, Any]) -> dict[str, Any]:
            seen.append(question)
            return ask(self, question)

        patch.setattr(bench_run._Worker, "ask", heard)
        arms = [bench.Arm("off", "off"), bench.Arm("static", "static:2")]
        run_bench(tiny, arms, [bench.Test("tg", 8, depth=300)], rounds=1, text=text.read_text())
    llm = pyskip.Llama(tiny, n_ctx=64, verbose=False)
    tokens = llm.tokenize(text.read_bytes(), add_bos=True, special=False)
    timed = [question for question in seen if question.get("do") == "run"]
    assert len(timed) == 4
    assert all(question["tokens"] == tokens[256:264] for question in timed)
    assert all(question["context"] == [*tokens[256 - 44 : 256], *tokens[:256]] for question in timed)
    result = cli("bench", str(tiny), *SMALL, "-n", "9999", "--text", str(text))
    assert result.returncode == 1
    assert "expected at least 10255" in result.stderr


@pytest.mark.reference
def test_an_unpatched_peer(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """The peer is llama-cpp-python with a library of its own, and never pyskip's."""
    peer = tmp_path / "python"
    peer.write_text(f'#!/bin/sh\nLLAMA_CPP_LIB_PATH="{REFERENCE}" exec {sys.executable} "$@"\n', encoding="utf-8")
    peer.chmod(0o755)
    result = cli("bench", str(tiny), *SMALL, "--peer", str(peer), "--format", "json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [row["arm"] for row in found["rows"]] == ["off", "llama-cpp-python"]
    assert found["builds"]["llama-cpp-python"].startswith("llama-cpp-python ")
    assert "patches" not in found["builds"]["llama-cpp-python"]


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        (("-n", "0"), 2, "give -p or -n above 0"),
        (("-d", "x"), 2, "is not a list of numbers"),
        (("--skip", "nonsense"), 1, "skip is 'nonsense'"),
        (("--skip", "0.25"), 1, "arm 0.25: "),
        (("--skip", "static:99"), 1, "arm static:99: static names layer 99"),
        (("--peer", "/does/not/exist"), 1, "cannot be run"),
        (("--peer", "/bin/true"), 1, "died with status 0"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_measured(cli: Cli, tiny: Path, args: tuple[str, ...], code: int, match: str) -> None:
    result = cli("bench", str(tiny), "-r", "2", *args)
    assert result.returncode == code
    assert match in result.stderr.splitlines()[-1]
    assert result.stdout == ""


def test_a_job_that_fails_is_one_line(tiny: Path) -> None:
    worker = bench_run._Worker(
        bench.Arm("off", "off"), {"model": str(tiny), "n_ctx": 16, "n_threads": 1, "profile": None}
    )
    with closing(worker), pytest.raises(pyskip.PyskipError, match=r"arm off: 0 \+ 99 tokens do not fit"):
        worker.ask({"do": "run", "context": [1] * 99, "tokens": [1], "batch": False})


@pytest.mark.slow
def test_ctrl_c_keeps_whole_rounds_and_leaves_no_worker(tiny: Path) -> None:
    with started("bench", str(tiny), "-n", "12", "-r", "99999", "-t", "1") as process:
        own = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        children: list[str] = []
        deadline = time.monotonic() + 60
        while not children and time.monotonic() < deadline:
            time.sleep(0.2)
            children = own.read_text().split()
        time.sleep(4)
        process.send_signal(signal.SIGINT)
        status, out, err = finish(process)
    assert status == 0, err
    assert int(re.findall(r"(\d+) rounds", out)[0]) >= 1
    assert children
    assert not any(os.path.exists(f"/proc/{child}") for child in children)
