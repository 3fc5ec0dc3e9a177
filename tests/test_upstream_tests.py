"""What `make upstream-test` makes of the results; the tests themselves take too long for here."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

RESULTS = {
    name: {"unpatched": {"status": unpatched, "seconds": 1.0}, "patched": {"status": patched, "seconds": 2.5}}
    for name, unpatched, patched in (
        ("test-a", "passes", "passes"),
        ("test-b", "passes", "timeout"),
        ("test-c", "failed", "passes"),
        ("test-d", "failed", "failed"),
    )
}


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run", ROOT / "tests" / "upstream" / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    assert page.read_text() == f"# Reliability\n\n{text}"
    page.write_text(f"# Reliability\n\n## First\n\n1\n\n{run.HEADING}\n\nold\n\n## Last\n\n2\n")
    for _ in range(2):
        run.write_page(page, text)
        assert page.read_text() == f"# Reliability\n\n## First\n\n1\n\n{text}\n## Last\n\n2\n"
    assert "| `test-b` | passes (1.0 s) | timeout (2.5 s) |" in text
    assert "| `test-e` | a reason |" in text
