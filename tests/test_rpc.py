"""Layers on another machine, by llama.cpp's RPC back end: those run dense, those that stay skip. The other machine is a
process on the loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, open_llm
from evaluations import Run
from serving import running

import pyskip
from pyskip.errors import ModelLoadError, PolicyError

pytestmark = [pytest.mark.loopback, pytest.mark.slow]

TOKENS = list(range(5, 45))


@pytest.fixture
def other() -> Iterator[str]:
    """Where a server is."""
    command = [sys.executable, str(ROOT / "tests" / "support" / "rpc_server.py")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    address = f"127.0.0.1:{int(process.stdout.readline())}"
    end = time.monotonic() + 30
    while True:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()
            break
        assert time.monotonic() < end
        time.sleep(0.05)
    yield address
    process.kill()
    process.wait()
    process.stdout.close()


def logits(llm: pyskip.Llama, skip: str) -> np.ndarray[Any, Any]:
    """After each token, all of them decided by the policy."""
    llm.skip = skip
    llm.reset()
    llm.mark_generated(0)
    llm.eval(TOKENS)
    return np.array(llm.scores[: len(TOKENS)])


def test_layers_there_run_dense_and_layers_here_skip(tiny: Path, other: str) -> None:
    """Of the tiny model's six the last three and the output go there; the one that hands the stream over runs dense."""
    with_output = {"kernels": "upstream", "logits_all": True, "flash_attn": False}
    here = open_llm(tiny, 64, **with_output)
    shared = open_llm(tiny, 64, rpc_servers=[other], n_gpu_layers=4, **with_output)
    try:
        assert here.skippable_layers == (0, 1, 2, 3, 4, 5)
        assert shared.skippable_layers == (0, 1)
        dense = logits(shared, "off")
        np.testing.assert_allclose(dense, logits(here, "off"), atol=2e-2)
        for skip in ("static:1", "static:0,1"):
            mine, alone = logits(shared, skip), logits(here, skip)
            np.testing.assert_allclose(mine, alone, atol=2e-2)
            assert np.abs(mine - dense).max() > 0.1
        logits(shared, "cosine:threshold=-1,run=0,cold_start=0,cold_end=0,warmup=0")
        assert shared.skip_stats().skipped[2:] == (0, 0, 0, 0)
        assert sum(shared.skip_stats().skipped[:2]) > 0
        for skip in ("static:2", "static:4"):
            with pytest.raises(PolicyError):
                shared.skip = skip
    finally:
        here.close()
        shared.close()


@pytest.mark.parametrize("n", [1, 3, 4, 6])
def test_info_tells_which(cli: Run, tiny: Path, other: str, n: int) -> None:
    done = cli("info", str(tiny), "-ngl", str(n), "--json")
    told = json.loads(done.stdout)
    assert told["remote_layers"] == list(range(7 - n, 6))
    if n == 6:
        assert told["skippable_layers"] == []
        assert "none: none is left here" in cli("info", str(tiny), "-ngl", "6").stdout
        return
    llm = open_llm(tiny, 64, rpc_servers=[other], n_gpu_layers=n)
    assert told["skippable_layers"] == list(llm.skippable_layers)
    assert told["skippable_attention"] == list(llm.skippable_attention)
    llm.close()


def test_with_all_layers_there_only_off_is_left(tiny: Path, other: str) -> None:
    llm = open_llm(tiny, 64, rpc_servers=[other])
    try:
        with pytest.raises(PolicyError, match="every layer is on another back end"):
            llm.skip = "static:1"
    finally:
        llm.close()


def test_the_server_takes_it_too(tiny: Path, other: str) -> None:
    body = {"messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 8, "temperature": 0, "skip": "static:1"}
    with running(str(tiny), "--rpc", other, "--", "-ngl", "4") as server:
        answer = server.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["skip_rate"] == pytest.approx(1 / 6, abs=0.01)
        assert server.get("/pyskip/models").json()["data"][0]["skippable"] == [0, 1]
        assert server.post("/v1/chat/completions", {**body, "skip": "static:4"}).status_code == 400


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ("127.0.0.1", "expected HOST:PORT"),
        ("127.0.0.1:1", "127.0.0.1:1 is not there"),
        (":50052", "expected HOST:PORT"),
    ],
)
def test_servers_that_are_not_there(tiny: Path, server: str, said: str) -> None:
    with pytest.raises(ModelLoadError, match=said):
        pyskip.Llama(tiny, rpc_servers=[server], verbose=False)
