"""benchmarks/frontier.py: quality and speed of quantisations, dense and skipped, and the page made of them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_random

sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import frontier
    import frontier_page
finally:
    sys.path.remove(str(ROOT / "benchmarks"))

TEXT = "The frontier of a model is what nobody beats in speed and in quality at once. " * 60


def measured(tmp_path: Path, models: list[Path], *more: str) -> subprocess.CompletedProcess[str]:
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    command = [sys.executable, str(ROOT / "benchmarks" / "frontier.py"), *map(str, models), "--text", f"plain={text}"]
    command += ["--windows", "2", "--rounds", "2", "-t", "1", "-p", "128", "-n", "8", *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)


def test_points(page_models: tuple[Path, Path], tmp_path: Path) -> None:
    """Dense and under two rates, one of them for prompts alone; a sibling under the first one's profile."""
    first, _ = page_models
    sibling = tmp_path / "sibling-q4_0.gguf"
    make_random.make(sibling, make_random.SHAPES["tiny"], seed=3)
    skips = ["--skip", "0.2", "--skip", "profile:rate=0,prompt=0.4"]
    profile = str(first.with_suffix(".skip.gguf"))
    done = measured(tmp_path, [first, sibling], "--profile", profile, *skips, "-o", "found.json")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads((tmp_path / "found.json").read_text())["runs"]
    points = {(p["file"], p["skip"]): p for p in run["points"]}
    assert len(points) == 6
    dense = points["fitted.gguf", "off"]["texts"]["plain"]
    assert (dense["kld"], dense["skip_rate"]) == (0, 0)
    assert points["sibling-q4_0.gguf", "off"]["texts"]["plain"]["kld"] > 0.001
    for skip, rate, most in (("0.2", 0.2, 0.05), ("profile:rate=0,prompt=0.4", 0.4, 0.1)):  # a prompt is short
        found = points["fitted.gguf", skip]["texts"]["plain"]
        assert found["kld"] > 0
        assert found["skip_rate"] == pytest.approx(rate, abs=most)
    assert all(len(p[test]) == 2 for p in points.values() for test in ("decode_ts", "prompt_ts"))
    assert "frontier-" in frontier_page.section([run])


def test_behind_a_context(page_models: tuple[Path, Path], tmp_path: Path) -> None:
    """What is decoded behind a context costs what it costs, however many arms share what is decoded of it; prompts are
    not timed."""
    first, _ = page_models
    profile = ["--profile", str(first.with_suffix(".skip.gguf"))]
    found = []
    for skips in (["static:0,attn=1", "0.3"], ["0.3"]):
        more = [*profile, *(f"--skip={skip}" for skip in skips), "-d", "256", "-o", "found.json"]
        done = measured(tmp_path, [first], *more)
        assert done.returncode == 0, done.stderr
        (run,) = json.loads((tmp_path / "found.json").read_text())["runs"]
        found.append({p["skip"]: p for p in run["points"]})
    assert run["model"] == "fitted behind 256 tokens"
    assert {p["texts"]["plain"]["attention_rate"] > 0 for p in found[0].values()} == {True, False}
    assert found[0]["0.3"]["texts"] == found[1]["0.3"]["texts"]
    assert found[0]["static:0,attn=1"]["texts"]["plain"]["kld"] > 0
    assert found[0]["off"]["prompt_ts"] == []
    section = frontier_page.section([run])
    assert "decode, tokens/s" in section
    assert "prompt, tokens/s" not in section


def a_point(file: str, skip: str, speed: float, ppl: float, kld: float) -> dict[str, Any]:
    texts = {"wiki": {"ppl": ppl, "dense_ppl": 8.0, "kld": kld, "skip_rate": 0.2 if skip != "off" else 0}}
    decode = [speed, 2 * speed, 4 * speed]
    return {"file": file, "bytes": 5_000_000, "skip": skip, "decode_ts": decode, "prompt_ts": decode, "texts": texts}


def test_page() -> None:
    points = [a_point("m-q4_k_m.gguf", "off", 10, 8.0, 0), a_point("m-q4_k_m.gguf", "0.2", 11, 8.4, 0.05)]
    run = {
        "model": "M 1", "cpu": "a", "n_cores": 2, "instructions": "AVX2", "n_threads": 2, "date": "2026-01-02",
        "commit": "12", "reference": "m-q4_k_m.gguf", "profile_bytes": 3_000_000, "n_tokens": 254, "n_prompt": 16,
        "points": points,
    }  # fmt: skip
    text = frontier_page.section([run])
    assert "results/frontier-m-1-avx2.svg" in text
    assert "| Q4_K_M | 5 | 0.2 | 20.0% to 20.0% | 22.0 (16.5 to 33.0) | 1.10 | 22.0 (16.5 to 33.0) | 1.10 |" in text
    assert "| 1.050, 0.050 |" in text


@pytest.mark.parametrize(
    ("file", "name"), [("a-1.5b-q4_k_m.gguf", "Q4_K_M"), ("SmolLM2.Q4_1.gguf", "Q4_1"), ("x-iq4_xs.gguf", "IQ4_XS")]
)
def test_quantisation(file: str, name: str) -> None:
    assert frontier_page.quantisation(file) == name


def test_errors_take_one_line(page_models: tuple[Path, Path], tmp_path: Path) -> None:
    done = measured(tmp_path, [page_models[0]], "--windows", "900")
    assert done.returncode == 1
    assert "expected at least" in done.stderr.splitlines()[-1]
    done = measured(tmp_path, [tmp_path / "none.gguf"])
    assert done.returncode == 1
    assert "none.gguf" in done.stderr.splitlines()[-1]


def test_kind_and_file() -> None:
    assert frontier.kind_and_file("wiki=a=b.txt") == ("wiki", Path("a=b.txt"))
    with pytest.raises(argparse.ArgumentTypeError, match="expected KIND=FILE"):
        frontier.kind_and_file("wiki.txt")
