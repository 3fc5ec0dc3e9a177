"""Every program in examples/ runs and does what it says, on a tiny model. The kiosk: test_raspberry_pi.py."""

from __future__ import annotations

import io
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from itertools import islice, takewhile
from pathlib import Path

import pytest
from conftest import ROOT, make_profile
from serving import running

import pyskip

EXAMPLES = ROOT / "examples"
TEXT = "The old mill stands by the river. Its wheel has not turned for years, but children play there. " * 20

Run = Callable[..., str]


@pytest.fixture(scope="module")
def profiled(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a profile beside it."""
    path = tmp_path_factory.mktemp("examples") / "model.gguf"
    shutil.copy(tiny, path)
    make_profile.make_profile(path, path.with_name("model.skip.gguf"))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a program in this process; what it wrote to stdout."""
    monkeypatch.setattr("pyskip.runtime.llama.physical_cores", lambda: 1)

    def run(name: str, *args: object, typed: str = "") -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_chat(run: Run, profiled: Path) -> None:
    out = run("chat.py", profiled, "--skip", "profile:rate=0.5,warmup=0", "-n", 12, typed="Hello\nAnd then?\n")
    rates = [float(rate) for rate in re.findall(r"\[([\d.]+)% of FFN blocks skipped so far\]", out)]
    assert len(rates) == 2
    assert all(0 < rate < 100 for rate in rates)


def test_stream(run: Run, demo: Path) -> None:
    out = run("stream.py", demo, "--skip", "static:1,3", "--then", "static:5", "-n", 16)
    bars = re.findall(r"^ +(\d+) +(#*)$", out, re.MULTILINE)
    assert len(bars) >= 8
    assert [len(bar) for _, bar in bars] == sorted((len(bar) for _, bar in bars), reverse=True)
    assert {len(bar) for _, bar in bars} == {1, 2}
    positions = [int(pos) for pos, _ in bars]
    assert positions == list(range(positions[0], positions[0] + len(bars)))


def test_batch_says_what_single_prompts_say(tiny: Path) -> None:
    spec = spec_from_file_location("batch", EXAMPLES / "batch.py")
    assert spec is not None
    assert spec.loader is not None
    batch = module_from_spec(spec)
    spec.loader.exec_module(batch)
    llm = pyskip.Llama(tiny, n_ctx=64, n_threads=1, verbose=False)
    llm.skip = "random:rate=0.5,warmup=0"
    prompts = [[5, 6, 7], [40, 41], [90, 17, 3, 4, 8]]
    answers = batch.generate(llm, prompts, 8)
    assert max(len(answer) for answer in answers) == 8
    llm.skip = "static:2,4"
    together = batch.generate(llm, prompts, 8)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = islice(takewhile(lambda token: token != llm.token_eos(), llm.generate(prompt, temp=0)), 8)
        assert answer == list(alone)
    assert together != answers
    llm.close()


def test_batch_program(run: Run, profiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("batch.py", profiled, "--skip", "0.5", "-n", 6, typed="The sky\n\nThe sea\n")
    assert out.count("The s") >= 2


def test_threshold_sweep(run: Run, profiled: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    settings = ("--chunks", 1, "--ctx", 64, "--threshold", 2, "--threshold", -1, "--rate", 0.5)
    heading, *rows = run("threshold_sweep.py", profiled, "--text", tmp_path / "text", *settings).splitlines()
    assert heading.split()[0] == "skipped"
    shown = {row.split()[-1].split(",")[0]: row for row in rows}
    assert list(shown) == ["off", "cosine:threshold=2.0", "cosine:threshold=-1.0", "0.5"]
    assert "0.0%  1.000 ± 0.000     100.0%" in re.sub("  +", "  ", shown["off"]).replace("0.000  ", "0.000     ")
    assert shown["cosine:threshold=2.0"].split()[0] == "0.0%"
    assert float(shown["0.5"].split()[0].rstrip("%")) > 0


def test_custom_policy(run: Run, tiny: Path) -> None:
    out = run("custom_policy/run.py", tiny, "--first", -1, "--last", -1, "-n", 20)  # whatever the stream does
    rates = [float(rate) for rate in out.splitlines()[-1].split("by layer: ")[1].split()]
    n_decoded = 19  # the last token is not decoded
    expected = round((n_decoded - 4) / n_decoded, 2)
    assert rates == [0.0, expected, 0.0, expected, 0.0, expected]
    never = run("custom_policy/run.py", tiny, "--first", 2, "--last", 2, "-n", 20)
    assert "0.0% of FFN blocks skipped" in never


@pytest.mark.loopback
def test_fastapi_app(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    monkeypatch.setenv("MODEL", str(tiny))
    monkeypatch.setattr("pyskip.runtime.llama.physical_cores", lambda: 1)
    names = runpy.run_path(str(EXAMPLES / "fastapi_app.py"))
    with TestClient(names["app"]) as client:
        question = {"prompt": "The sky", "skip": "static:1,2,3", "n": 8}
        answer = client.post("/answer", json=question)
        assert answer.status_code == 200
        assert answer.text
        assert names["app"].state.llm.skip == pyskip.Static((1, 2, 3))
        wrong = client.post("/answer", json={**question, "skip": "most"})
        assert wrong.status_code == 422
        assert "expected off" in wrong.json()["detail"]
        assert client.post("/answer", json={**question, "n": 0}).status_code == 422


@pytest.mark.loopback
def test_langchain(run: Run, tiny: Path) -> None:
    with running(str(tiny)) as server:
        out = run(
            "langchain_chat.py",
            "Why?",
            "--url",
            f"{server.url}/v1",
            "--model",
            "tiny",
            "--skip",
            "static:1,2,3",
            "-n",
            8,
        )
    answer, usage = out.rstrip().rsplit("\n", 1)
    assert answer
    assert re.fullmatch(r"without the system message: \d+ tokens, 50\.0% skipped", usage)


def test_they_are_short_and_listed() -> None:
    page = (EXAMPLES / "README.md").read_text("utf-8")
    for path in EXAMPLES.glob("**/*"):
        if path.suffix in (".py", ".c") and path.parent.name != "raspberry_pi":
            assert len(path.read_text("utf-8").splitlines()) < 60, path
            assert f"({path.relative_to(EXAMPLES)})" in page
