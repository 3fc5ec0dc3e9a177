"""`pyskip calibrate`: its text, and the whole command."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import pyskip
from pyskip.calibration.calibrate import Settings
from pyskip.calibration.prompts import CODE, PROMPTS
from pyskip.calibration.text import N_SEQ, read_text, sample_text
from pyskip.models.profile import Profile, path_beside

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_files_are_drawn_in_turns_whatever_their_sizes(tiny: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("long.txt", "short.txt", "other.txt")]
    for path, word, n in zip(paths, ("a", "b", "c"), (9000, 900, 3000), strict=True):
        path.write_text(" ".join(f"{word}{i}" for i in range(n)))
    llm = pyskip.Llama(tiny, n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)
    text = read_text(llm, paths, 64, n_fit=9, n_held=4, seed=1)
    kinds = [[bytes(llm.detokenize(w.tolist())).split()[1][:1] for w in of] for of in (text.held_out, text.fitted)]
    everything = read_text(llm, paths, 64, n_fit=10**6, n_held=4, seed=1)
    llm.close()
    assert Counter(kinds[0]) == {b"a": 2, b"b": 1, b"c": 1}
    assert Counter(kinds[1]) == {b"a": 3, b"b": 3, b"c": 3}
    whole = [w.tobytes() for w in (*everything.held_out, *everything.fitted)]
    assert len(set(whole)) == len(whole)
    assert [w.tobytes() for w in text.held_out] == whole[:4]


def test_a_window_of_each_file_is_measured_on(tmp_path: Path) -> None:
    texts = [tuple(tmp_path / f"{i}.txt" for i in range(n)) for n in (0, 1, 5)]
    assert [Settings(text=text).n_measured for text in texts] == [4, 4, 5]
    assert Settings(text=texts[-1], n_curve=2).n_measured == 2


@pytest.mark.slow
def test_a_model_samples_its_own_text(tiny: Path) -> None:
    llm = pyskip.Llama(tiny, n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False)
    a, b, c = (sample_text(llm, 120, 25, 3, seed, lambda *_: None) for seed in (1, 1, 2))
    brief = sample_text(llm, 120, 1, 3, 1, lambda *_: None, seconds=1e-3)
    prompts = [bytes(llm.detokenize(w[:90].tolist())) for w in a.fitted]
    llm.close()
    assert len(a.fitted) == 25
    assert len(a.held_out) == 3
    assert len(brief.fitted) == N_SEQ - 3  # one round, whatever the time
    assert {len(w) for w in (*a.fitted, *a.held_out)} == {120}
    assert a.sha256 == b.sha256 != c.sha256
    assert len({w.tobytes() for w in (*a.fitted, *a.held_out)}) == 28  # no window twice
    asked = [p for p in PROMPTS if any(p.encode()[:40] in text for text in prompts)]
    assert len(asked) > 10
    assert {p in CODE for p in asked} == {True, False}


@pytest.fixture(scope="module")
def model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrated") / "model.gguf"
    path.symlink_to(tiny)
    return path


@pytest.mark.slow
def test_calibrate_and_use(cli: Cli, model: Path) -> None:
    """From its own text to a profile that `generate`, `info` and `eval` find by themselves."""
    result = cli("calibrate", str(model), "--fit", "8", "--curve", "2", "--json")
    assert result.returncode == 0, result.stderr
    made = json.loads(result.stdout)
    assert made["profile"] == str(path_beside(model))
    assert made["n_tokens"] == 8 * 512
    rates = [p["rate"] for p in made["curve"]]
    assert rates == sorted(rates)
    assert rates[0] > 0.02
    assert all(
        p["ppl_ratio"] > 0 and p["ffn_bytes_saved"] < p["rate"] and p["ideal_speedup"] >= 0.9 for p in made["curve"]
    )

    result = cli("generate", str(model), "-p", "abc", "-n", "40", "--temp", "1", "--seed", "3", "--json")
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["skip"]["spec"] == "profile"
    assert "skipping about" in result.stderr
    result = cli("info", str(model), "--json")
    assert json.loads(result.stdout)["profile"]["curve"] == made["curve"]


@pytest.mark.slow
def test_the_users_text(cli: Cli, model: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "t.txt", tmp_path / "own.skip.gguf"
    text.write_text(" ".join(str(i * i) for i in range(3000)))
    result = cli(
        "calibrate", str(model), "--text", str(text), "--fit", "6", "--curve", "2", "--rank", "32", "-o", str(out)
    )
    assert result.returncode == 0, result.stderr
    profile = Profile(out)
    assert (profile.rank, profile.stand_in, profile.text) == (32, "linear", "t.txt")
    assert "recommended" in result.stdout


@pytest.mark.parametrize(
    ("content", "match"),
    [(b"", "expected at least 2"), (b"few words", "expected at least 2"), (b"a\n\xff\n", "line 2 is not UTF-8")],
)
def test_text_that_is_none(cli: Cli, model: Path, tmp_path: Path, content: bytes, match: str) -> None:
    text = tmp_path / "t.txt"
    text.write_bytes(content)
    result = cli("calibrate", str(model), "--text", str(text), "-o", str(tmp_path / "p.skip.gguf"))
    assert result.returncode == 1
    assert match in result.stderr.splitlines()[-1]
    assert not (tmp_path / "p.skip.gguf").exists()


def test_a_target_that_cannot_be_written_is_told_first(cli: Cli, model: Path, tmp_path: Path) -> None:
    result = cli("calibrate", str(model), "-o", str(tmp_path / "no" / "p.skip.gguf"))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("cannot be written: name another file with -o")
