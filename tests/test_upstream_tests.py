"""What `make upstream-test` and `make faults` make of their results; the runs themselves take too long for here.
llama-cpp-python's own tests run: they take seconds."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT
from suite import report
from table_page import keep_rows

RESULTS = {
    name: {"unpatched": {"status": unpatched, "seconds": 1.0}, "patched": {"status": patched, "seconds": 2.5}}
    for name, unpatched, patched in (
        ("test-a", "passes", "passes"),
        ("test-b", "passes", "timeout"),
        ("test-c", "failed", "passes"),
        ("test-d", "failed", "failed"),
    )
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"upstream_{name}", ROOT / "tests" / "upstream" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run() -> ModuleType:
    return load("run")


def test_differences_are_told_by_side(run: ModuleType) -> None:
    assert run.differences(RESULTS, worse=True) == ["test-b"]
    assert run.differences(RESULTS, worse=False) == ["test-c"]
    assert run.summary(RESULTS, [*RESULTS, "test-x"]) == (
        "4 tests: 1 pass on both sides. On neither: test-d. Pass unpatched only: test-b. Pass patched only: test-c. "
        "No result yet: test-x."
    )


def test_what_does_not_run_is_named(run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").mkdir()
    names = ("test-alloc.cpp", "test-fusion.cpp", "test-new.cpp", "test-tokenizer-1-spm.cpp", "test-jinja.py")
    for name in (*names, "testing.h"):
        (tmp_path / "tests" / name).touch()
    monkeypatch.setattr(run, "TREE", tmp_path)
    tests = {"test-alloc": "test-alloc", "test-tokenizer-1-llama-spm": "test-tokenizer-1-spm"}
    found = run.left_out({**tests, "test-jinja-py": "python3", "test-download-model": "cmake"})
    assert list(found) == ["test-download-model", "test-fusion", "test-new"]
    assert "unknown" in found["test-new"]
    assert "unknown" not in found["test-fusion"]


def test_the_page_keeps_its_other_sections(run: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = run.section(page, RESULTS, "All pass.", {"test-e": "a reason"})
    run.write_page(page, text)
    assert page.read_text() == f"{run.TITLE}\n\n{text}"
    page.write_text(f"# Reliability\n\n## First\n\n1\n\n{run.HEADING}\n\nold\n\n## Last\n\n2\n")
    for _ in range(2):
        run.write_page(page, text)
        assert page.read_text() == f"# Reliability\n\n## First\n\n1\n\n{text}\n## Last\n\n2\n"
    assert "| `test-b` | passes (1.0 s) | timeout (2.5 s) |" in text
    assert "| `test-e` | a reason |" in text


def test_a_row_takes_the_place_of_the_one_before_it(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    head = "# Page\n\nText | text.\n\n| fault | how often | what |\n|---|---|---|\n"
    page.write_text(f"{head}| one | 1 | a |\n| two | 2 | b |\n")
    keep_rows(page, {"two": ("3", "c"), "three": ("4", "d")})
    assert page.read_text() == f"{head}| one | 1 | a |\n| two | 3 | c |\n| three | 4 | d |\n"
    with pytest.raises(ValueError, match="a table of 3 columns, expected 4"):
        keep_rows(page, {"one": ("1", "a", "on a day")})
    page.write_text(f"{head}\nMore text.\n")
    with pytest.raises(ValueError, match="no table at its end"):
        keep_rows(page, {"one": ("1", "a")})


def test_the_page_of_the_faults_takes_rows(tmp_path: Path) -> None:
    """Written by hand once, from then on by the script: its columns are those of the script."""
    page = tmp_path / "faults.md"
    page.write_bytes((ROOT / "docs" / "reference" / "faults.md").read_bytes())
    keep_rows(page, {"SIGINT at random moments": ("once", "exit 130", "today")})
    old, new = ((path.read_text().splitlines()) for path in (ROOT / "docs" / "reference" / "faults.md", page))
    assert len(old) == len(new)
    assert sum(a != b for a, b in zip(old, new, strict=True)) == 1


@pytest.mark.reference
@pytest.mark.slow
def test_llama_cpp_pythons_own_tests(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = load("python")
    python.prepare(tmp_path)
    theirs, ours = python.run(tmp_path, demo, [])
    assert report(theirs, ours, python.DIFFERS, both_must_pass=True) == 0, capsys.readouterr().err
    sources = "".join(path.read_text() for path in (tmp_path / "tests").glob("test_*.py"))
    assert len(ours) == len(theirs) >= len(re.findall(r"^def test_", sources, re.M)) > 10
    plugin = (tmp_path / "offline_models.py").read_text()
    (tmp_path / "offline_models.py").write_text(f"{plugin}\nif pyskip: pyskip.Llama.tokenize = lambda *_, **__: [1]\n")
    _, broken = python.run(tmp_path, demo, ["-k", "tokenization"])
    assert list(broken.values()) == ["failed"]  # it is pyskip.Llama that they are run on


def test_what_fails_on_one_side_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = {"a.one": "passed", "a.two": "passed", "b.three": "failed", "b.four": "skipped", "b.five": "passed"}
    ours = {"a.one": "passed", "a.two": "failed", "b.three": "failed", "b.four": "skipped"}
    assert report(theirs, ours, {"a.two": "a reason"}) == 1
    said = capsys.readouterr()
    assert said.err == "worse: b.five\n"
    assert "otherwise, as meant: a.two (a reason)\n" in said.out
    assert "passed: 3 unpatched, 1 pyskip's" in said.out
    assert report(theirs, ours, {"a.two": "", "b.five": ""}) == 0
    assert report(theirs, ours, {"a.two": "", "b.f": ""}, both_must_pass=True) == 1
    assert capsys.readouterr().err == "passes on neither side: b.three\n"
