"""The results page and its plots, drawn from measurements made up for the test; and what the command line refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the plots need matplotlib: pip install 'pyskip[results]'")

N_LAYER = 30
RATES = (0.05, 0.25, 0.35)
TASKS = {"lambada": "accuracy", "factoid": "accuracy", "arc_easy": "accuracy", "cnn": "rouge_l"}
ORDER = list(range(N_LAYER))[::-1]
THRESHOLDS = {"0.05": 0.99, "0.25": 0.975, "0.35": 0.96}
COST = {"random": 9.0, "static": 2.0, "cosine": 1.5, "profile": 0.1}  # made up: nats at a rate of 0.5


def document(step: str, **found: Any) -> dict[str, Any]:
    return {
        "step": step,
        "command": f"python -m benchmarks.results --only {step}",
        "date": "2026-01-02",
        "model": {"name": "Tiny", "file": "tiny.gguf", "n_layer": N_LAYER, "n_params": 1e8, "fingerprint": "0123abcd"},
        "cpu": "A CPU",
        "n_threads": 2,
        "build": "a build",
        **found,
    }


def rows(key: str) -> list[dict[str, Any]]:
    found = []
    for policy, cost in COST.items():
        for rate in RATES:
            more = cost * rate * 2
            row = {"policy": policy, "nominal": rate, "skip": f"{policy}:{rate}", "skip_rate": 0.9 * rate}
            if key == "ppl":
                row |= {"ppl_ratio": 2.718**more, "ppl_ratio_se": 0.01 * 2.718**more}
            else:
                row |= {key: 0.4 / (1 + more), f"{key}_diff_se": 0.02}
            found.append(row)
    return found


@pytest.fixture(scope="module")
def benchmarks() -> tuple[ModuleType, ...]:
    """benchmarks.results, its page and its steps."""
    from benchmarks.results import __main__, page, steps

    return __main__, page, steps


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return measure(tmp_path / "results")


def measure(folder: Path) -> Path:
    """Measurements of every step."""
    folder.mkdir()
    cos = {"mean": [0.9 + 0.002 * il for il in range(N_LAYER)], "p10": [0.8] * N_LAYER, "p90": [0.97] * N_LAYER}
    text = {"dense": {"ppl": 15.0, "ppl_se": 0.3, "n_tokens": 510}, "n": 2, "rows": rows("ppl")}
    speeds = [{"policy": "off", "nominal": None, "speedup": 1.0, "skip_rate": 0.0}]
    speeds += [
        {"policy": policy, "nominal": rate, "speedup": 1 + rate, "skip_rate": rate}
        for policy in ("static", "cosine", "profile") for rate in RATES
    ]  # fmt: skip
    speed = {"avg_ts": 30.0, "spread_ts": 1.0, "ideal_speedup": 1.2}
    score = {"ppl": 16.5, "ppl_ratio": 1.1, "ppl_ratio_se": 0.02, "kld_mean": 0.1, "same_top": 0.8}
    headline = {
        "dense": {**score, "skip": "off", "skip_rate": 0.0, "ffn_bytes_saved": 0.0, "n_tokens": 20400},
        "rows": [{**score, "skip": "0.25", "skip_rate": 0.26, "ffn_bytes_saved": 0.23}],
    }
    right = {"accuracy": 0.3, "accuracy_se": 0.011, "n": 600, "skip": "0.25", "skip_rate": 0.2}
    whole = {"dense": right, "row": {**right, "accuracy_diff": -0.012, "accuracy_diff_se": 0.006}}
    documents = [
        document("cos", n_tokens=512, **cos),
        document(
            "arms", n_windows=2, single=[2 - 0.01 * il for il in range(N_LAYER)], order=ORDER, thresholds=THRESHOLDS
        ),
        document("text", inputs={"text": {"name": "wiki.txt", "sha256": "ab" * 32}}, warmup=16, **text),
        document("headline", n=80, **headline),
        document("accuracy", tasks={name: whole for name in ("lambada", "factoid", "arc_easy")}),
        document(
            "calibration",
            n=12,
            inputs={"fit": {"name": "fit.txt"}},
            dense={"n_tokens": 3060},
            calibrations=[
                {
                    "flags": "",
                    "n_tokens": 6144,
                    "rows": [{**score, "skip": rate, "skip_rate": 0.1} for rate in ("0.1", "0.2")],
                },
                {"flags": "--text FIT", "n_tokens": 6000, "rows": [{**score, "skip": "0.1", "skip_rate": 0.12}]},
            ],
        ),
        document("bench", rounds=3, rows=[{**row, **speed} for row in speeds]),
    ]
    for name, key in TASKS.items():
        dense = {key: 0.4, f"{key}_se": 0.05, "n": 40}
        where = {"name": f"{name}.jsonl", "sha256": "cd" * 32}
        documents.append(document(name, inputs={name: where}, warmup=0, n=40, dense=dense, rows=rows(key)))
    kinds = [{**row, "same_top": 0.9, "kld_mean": 0.05} for row in rows("same_top")]
    questions = {"mt_bench": {"name": "mt_bench.jsonl", "sha256": "ef" * 32}}
    documents.append(document("mt_bench", inputs=questions, n=16, dense={"n_tokens": 900}, rows=kinds))
    for each in documents:
        (folder / f"{each['step']}.json").write_text(json.dumps(each))
    return folder


@pytest.fixture(scope="module")
def page(benchmarks: tuple[ModuleType, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(benchmarks[1].write(measure(tmp_path_factory.mktemp("page") / "results")))


def test_page_holds_every_table(page: Path) -> None:
    text = page.read_text()
    for title in ("Wiki text", "LAMBADA", "Factoid", "ARC easy", "CNN/DailyMail", "MT-bench"):
        section = text.split(f"### {title}\n")[1].split("\n#")[0]
        rates = [line.split(" |")[0] for line in section.splitlines() if re.match(r"\| \d", line)]
        assert rates == ["| 5 %", "| 25 %", "| 35 %"]
        assert "`python -m benchmarks.results --only" in section
    assert "| 25 % | 90.0 ± 0.9 (22.5 %) | 2.718 ± 0.027 (22.5 %) |" in text
    assert "| 25 % | 90.0, 0.050 (22.5 %) |" in text
    assert "| 35 % | 5.5 ± 2.0 (31.5 %) |" in text  # 0.4 / (1 + 9 x 0.35 x 2)
    assert "| profile, 35 % | 30.0 ± 1.0 | 1.350 | 1.200 | 35 % | 1.073 |" in text
    assert "| 29 | 0.958 | 0.800 | 0.970 |" in text
    assert "| `0.25` | 0.260 | 16.50 | 1.100 ± 0.020 | 0.1000 | 80.0 % | 0.230 |" in text
    assert "| ARC easy | 600 | 30.0 ± 1.1 % | 30.0 ± 1.1 % | -1.2 ± 0.6 | 20.0 % |" in text
    assert "| `pyskip calibrate demo` | 6,144 | 1.100 ± 0.020 (10.0 %) | 1.100 ± 0.020 (10.0 %) |" in text
    assert "| `pyskip calibrate demo --text FIT` | 6,000 | 1.100 ± 0.020 (12.0 %) |  |" in text
    assert "`wiki.txt`" in text
    assert "Not measured" not in text


def test_page_links_its_plots(page: Path) -> None:
    linked = re.findall(r"!\[[^]]+\]\((.+?)\)", page.read_text())
    assert linked == ["results/quality.svg", "results/cos.svg", "results/speed.svg"]
    for name in linked:
        assert "<text" in (page.parent / name).read_text()  # letters, which can be searched and read aloud
    assert "FFN blocks skipped (%)" in (page.parent / "results" / "quality.svg").read_text()


@pytest.mark.slow
def test_same_measurements_same_bytes(benchmarks: tuple[ModuleType, ...], page: Path, folder: Path) -> None:
    again = benchmarks[1].write(folder)
    for name in ("results.md", "results/quality.svg", "results/cos.svg", "results/speed.svg"):
        assert (again.parent / name).read_bytes() == (page.parent / name).read_bytes()


def test_page_says_what_is_missing(benchmarks: tuple[ModuleType, ...], folder: Path) -> None:
    for name in ("cnn", "bench", "cos", "lambada", "headline", "calibration"):
        (folder / f"{name}.json").unlink()
    text = json.loads((folder / "text.json").read_text())
    text["rows"][2] |= {"ppl_ratio": None, "ppl_ratio_se": None}  # infinite
    (folder / "text.json").write_text(json.dumps(text))
    page = benchmarks[1].write(folder).read_text()
    assert "Not measured: the headline, LAMBADA, CNN/DailyMail, cosines by layer, speed, other calibrations." in page
    assert "speed.svg" not in page
    assert "| 35 % | ∞ ± ∞ (31.5 %) |" in page


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--only", "factoid"), "no file given, expected JSON lines with"),
        (("--only", "cnn", "--cnn", "nowhere.jsonl"), "nowhere.jsonl: no such file, expected JSON lines with"),
        (("--only", "page"), "no measurements, expected arms.json"),
        (("--only", "bench", "--text", __file__), "arms.json: no such file, expected what the step arms writes"),
    ],
)
def test_one_line_errors(
    benchmarks: tuple[ModuleType, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    words: str,
) -> None:
    assert benchmarks[0].main([*args, "-o", str(tmp_path), "--work", str(tmp_path)]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("results: ")
    assert words in line


def test_policies_of_a_rate(benchmarks: tuple[ModuleType, ...], folder: Path) -> None:
    arms = json.loads((folder / "arms.json").read_text())
    chosen = benchmarks[2].policies(arms, (0.05, 0.25), 0)
    assert [spec for policy, rate, spec in chosen if rate == 0.25] == [
        "random:rate=0.25,seed=1,warmup=0",
        "static:22,23,24,25,26,27,28,29",  # cheapest first in arms.json: the last layers
        "cosine:threshold=0.975,run=1,warmup=0",
        "profile:rate=0.25,warmup=0",
    ]
