"""`pyskip eval --resume`: a run that was taken up gives what one in one go gives, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_profile, open_llm
from evaluations import Run, continuation, refused, story

import pyskip
from pyskip.binding.library import llama_cpp
from pyskip.errors import PyskipError
from pyskip.evaluation import evaluate_task, evaluate_text
from pyskip.evaluation.journal import Journal, Record
from pyskip.evaluation.tasks import TaskItem

TEXT = story(20)
SPECS = ["static:2", "cosine:threshold=0.9,cold_start=1,cold_end=1,warmup=4"]
HEADER: dict[str, str | int] = {"kind": "text", "file_sha256": "abc", "n_ctx": 64}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.jsonl"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each batch that is decoded."""
    seen: list[int] = []
    decode = llama_cpp.llama_decode

    def counted(ctx: Any, batch: Any) -> int:
        seen.append(batch.n_tokens)
        return int(decode(ctx, batch))

    monkeypatch.setattr(llama_cpp, "llama_decode", counted)
    return seen


def on_text(llm: pyskip.Llama, path: Path | None, specs: list[str], chunks: int | None = None) -> list[Any]:
    journal = None if path is None else Journal(path, HEADER)
    return evaluate_text(llm, TEXT, specs, n_ctx=64, chunks=chunks, journal=journal)


def test_windows_that_are_there_are_not_computed_again(tiny_llm: pyskip.Llama, path: Path, decodes: list[int]) -> None:
    whole = on_text(tiny_llm, None, SPECS)
    n_windows = len(decodes) // 3
    assert n_windows > 3
    decodes.clear()
    on_text(tiny_llm, path, SPECS, chunks=1)
    assert len(decodes) == 3
    assert on_text(tiny_llm, path, SPECS) == whole
    assert len(decodes) == 3 * n_windows
    decodes.clear()
    assert on_text(tiny_llm, path, SPECS) == whole
    assert decodes == []


def test_an_arm_is_added_to_a_finished_run(tiny_llm: pyskip.Llama, path: Path, decodes: list[int]) -> None:
    whole = on_text(tiny_llm, None, SPECS)
    n_windows = len(decodes) // 3
    first = on_text(tiny_llm, path, SPECS[:1])
    decodes.clear()
    assert on_text(tiny_llm, path, SPECS) == whole
    assert len(decodes) == 2 * n_windows  # dense, to compare with, and the new one
    assert on_text(tiny_llm, path, SPECS[:1]) == first == whole[:2]


def test_without_the_dense_pass(tiny_llm: pyskip.Llama, path: Path, decodes: list[int]) -> None:
    """The same perplexity for half of the decodes; and nothing that a journal of it holds is taken for a distance."""
    dense, policy = on_text(tiny_llm, None, SPECS[:1])
    n_windows = len(decodes) // 2
    decodes.clear()
    (alone,) = evaluate_text(tiny_llm, TEXT, SPECS[:1], n_ctx=64, dense=False, journal=Journal(path, HEADER))
    assert len(decodes) == n_windows
    assert (alone.skip, alone.skip_rate, alone.ppl, alone.ppl_se) == (
        policy.skip, policy.skip_rate, policy.ppl, policy.ppl_se
    )  # fmt: skip
    assert np.isnan([alone.ppl_ratio, alone.ppl_ratio_se, alone.kld_mean, alone.kld_p99, alone.same_top]).all()
    assert on_text(tiny_llm, path, SPECS[:1]) == [dense, policy]
    both = evaluate_text(tiny_llm, TEXT, [SPECS[0], "off"], n_ctx=64, dense=False)
    assert [(row.skip, row.ppl) for row in both] == [(dense.skip, dense.ppl), (policy.skip, policy.ppl)]
    decodes.clear()
    assert [row.skip for row in evaluate_text(tiny_llm, TEXT, n_ctx=64, dense=False)] == ["off"]
    assert len(decodes) == n_windows


@pytest.mark.parametrize("cut", [1, 2, 100, 1500, 4000])
def test_a_file_that_was_cut_off(tiny_llm: pyskip.Llama, path: Path, cut: int) -> None:
    """In its last line, or lines before."""
    whole = on_text(tiny_llm, path, SPECS)
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    assert on_text(tiny_llm, path, SPECS) == whole
    assert path.read_bytes() == content


def test_a_header_that_was_cut_off(tiny_llm: pyskip.Llama, path: Path) -> None:
    whole = on_text(tiny_llm, path, SPECS)
    content = path.read_bytes()
    for n in (0, 1, 20):
        path.write_bytes(content[:n])
        assert on_text(tiny_llm, path, SPECS) == whole
        assert path.read_bytes() == content


def test_items_that_are_there_are_not_computed_again(tiny_llm: pyskip.Llama, path: Path, decodes: list[int]) -> None:
    choices = ("bread", "a violin", "a map")
    items = [continuation(f"the king found {i}", "bread") for i in range(3)]
    items += [TaskItem("items.jsonl, line 1", "the sailor lost", choices, gold) for gold in range(3)]
    whole = evaluate_task(tiny_llm, items, SPECS, n_ctx=64)
    n_decodes = len(decodes)
    decodes.clear()
    evaluate_task(tiny_llm, items[:4], SPECS, n_ctx=64, journal=Journal(path, HEADER))
    assert evaluate_task(tiny_llm, items, SPECS, n_ctx=64, journal=Journal(path, HEADER)) == whole
    assert len(decodes) == n_decodes
    decodes.clear()
    assert evaluate_task(tiny_llm, items, SPECS[:1], n_ctx=64, journal=Journal(path, HEADER)) == whole[:2]
    assert decodes == []


def test_with_another_profile_an_arm_is_another(tiny: Path, path: Path, tmp_path: Path) -> None:
    rows = []
    for seed in (0, 1):
        profile = tmp_path / f"{seed}.skip.gguf"
        make_profile.make_profile(tiny, profile, seed=seed)
        llm = open_llm(tiny, 64, profile=profile)
        rows.append(on_text(llm, path, ["0.5"]))
        assert rows[-1] == on_text(llm, None, ["0.5"])
        llm.close()
    assert rows[0][0] == rows[1][0]
    assert rows[0][1] != rows[1][1]


def test_figures_keep_every_bit(path: Path) -> None:
    values = np.array([[0.1, -0.0, np.inf], [np.nan, 5e-324, 1 / 3]])
    Journal(path, HEADER).put("off", 7, Record(3, np.array([1, 2**40]), values))
    journal = Journal(path, HEADER)
    assert ("off", 7) in journal
    assert ("off", 0) not in journal
    record = journal._records["off", 7]
    assert record.n_tokens == 3
    assert record.skipped.tolist() == [1, 2**40]
    assert record.values.tobytes() == values.tobytes()


# Mistakes


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"file_sha256": "def"}, "file_sha256 is abc, now def"),
        ({"n_ctx": 128, "kind": "items"}, "kind is text, now items; n_ctx is 64, now 128"),
        ({"n_predict": 96}, "n_predict is None, now 96"),
    ],
)
def test_another_evaluation(path: Path, changed: dict[str, Any], said: str) -> None:
    Journal(path, {**HEADER, "file_name": "a.txt"})
    Journal(path, {**HEADER, "file_name": "b.txt"})  # the same file by another name
    before = path.read_bytes()
    with pytest.raises(PyskipError, match=f"belongs to another evaluation .{said}") as error:
        Journal(path, {**HEADER, **changed})
    assert str(error.value).startswith(f"{path}: ")
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"a text", b"a text\nof two lines\n", b"[1]\n", b'{"a": 1}\n', b"\xff\n"])
def test_what_is_no_journal_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(PyskipError, match="line 1: not the header of an evaluation: name a new file"):
        Journal(path, HEADER)
    assert path.read_bytes() == content


GOOD = {"arm": "off", "i": 0, "n_tokens": 1, "skipped": "", "n_kinds": 1, "values": ""}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        *(json.dumps({**GOOD, key: value}) for key, value in [("values", "AAA"), ("i", "x"), ("n_kinds", 0)]),
    ],
)
def test_a_damaged_line(path: Path, line: str) -> None:
    Journal(path, HEADER)
    with path.open("a") as file:
        file.write(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(PyskipError, match="line 3: not a record of an evaluation"):
        Journal(path, HEADER)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(PyskipError, match="directory, expected a file to resume from"):
        Journal(tmp_path, HEADER)
    with pytest.raises(PyskipError, match="No such file or directory, expected a file to write"):
        Journal(tmp_path / "missing" / "run.jsonl", HEADER)


# The command line


@pytest.mark.slow
def test_on_the_command_line(cli: Run, tiny: Path, tmp_path: Path, path: Path) -> None:
    def document(*args: str) -> dict[str, Any]:
        done = cli("eval", str(tiny), "--text", str(text), "--ctx", "64", "--json", *args)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        found.pop("seconds")
        return found

    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    skips = ("--skip", "static:2", "--skip", "static:3")
    whole = document(*skips)
    document(*skips[:2], "--resume", str(path), "--chunks", "2")
    assert document(*skips, "--resume", str(path)) == whole
    text.write_text(TEXT + "More.")
    done = cli("eval", str(tiny), "--text", str(text), "--ctx", "64", "--resume", str(path))
    refused(done, 1, "belongs to another evaluation (file_sha256 is")
