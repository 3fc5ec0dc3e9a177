"""The patch series: it applies to pinned upstream without fuzz, adds little, and the pin has one place."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

PATCHES = ROOT / "patches"
SERIES = (PATCHES / "series").read_text().split()


@pytest.fixture(scope="module")
def upstream() -> ModuleType:
    spec = importlib.util.spec_from_file_location("upstream", ROOT / "tools" / "upstream.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_series_names_every_patch_once_and_in_order() -> None:
    assert sorted(path.name for path in PATCHES.glob("*.patch")) == sorted(set(SERIES)) == SERIES
    assert all(re.fullmatch(r"\d{4}-[a-z]+(-[a-z]+){2,}\.patch", name) for name in SERIES)


def insert(lines: list[str], text: list[str]) -> int:
    """One file's hunks into its lines, each at the very line that it names. Returns how many lines are added."""
    added = 0
    for i, line in enumerate(lines):
        if match := re.match(r"@@ -\d+(?:,\d+)? \+(\d+)(?:,\d+)? @@", line):
            at = int(match[1]) - 1
            for item in lines[i + 1 :]:
                if item.startswith("@@"):
                    break
                if item.startswith("+"):
                    text.insert(at, item[1:])
                    added += 1
                else:
                    assert not item.startswith("-"), "a patch only adds lines"
                    if item or at < len(text):
                        assert text[at] == item[1:]
                at += 1
    return added


@pytest.mark.slow
def test_applies_without_fuzz_or_offset(upstream: ModuleType, tmp_path: Path) -> None:
    upstream.tree(ROOT / "build" / "sdist", tmp_path / "plain", [])
    expected: dict[str, list[str]] = {}
    for path in upstream.series():
        added = 0
        for section in path.read_text().split("\n--- a/")[1:]:
            name, *lines = section.splitlines()
            text = expected.setdefault(name, (tmp_path / "plain" / name).read_text().splitlines())
            added += insert(lines, text)
        assert added > 0
    upstream.tree(ROOT / "build" / "sdist", tmp_path / "patched", upstream.series())
    for name, text in expected.items():
        assert (tmp_path / "patched" / name).read_text().splitlines() == text


def test_adds_few_lines() -> None:
    added = [
        line for name in SERIES for line in (PATCHES / name).read_text().splitlines() if re.match(r"\+(?!\+\+)", line)
    ]
    assert 0 < len(added) <= 150


@pytest.mark.slow
def test_a_patch_for_another_release_is_refused(
    upstream: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "0009-wrong.patch"
    wrong.write_text(
        "x\n\n--- a/src/llama.cpp\n+++ b/src/llama.cpp\n@@ -1,2 +1,3 @@\n never there\n+new\n never there either\n"
    )
    with pytest.raises(upstream.Failure, match=r"does not apply.*expected commit"):
        upstream.tree(ROOT / "build" / "sdist", tmp_path / "tree", [wrong])
    assert not (tmp_path / "tree").exists()


def test_a_damaged_archive_is_refused(upstream: ModuleType, tmp_path: Path) -> None:
    archive = tmp_path / f"llama_cpp_python-{upstream.pin()['llama_cpp_python']}.tar.gz"
    archive.write_bytes(b"not this one")
    with pytest.raises(upstream.Failure, match=r"sha256.*expected.*run the build again"):
        upstream.sdist(tmp_path)
    assert not archive.exists()


def test_local_tree_must_be_one(upstream: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSKIP_LLAMA_CPP_DIR", str(tmp_path))
    with pytest.raises(upstream.Failure, match="PYSKIP_LLAMA_CPP_DIR"):
        upstream.tree(tmp_path, tmp_path / "out", [])


@pytest.mark.slow
def test_a_local_tree_gives_the_same(upstream: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.tree(ROOT / "build" / "sdist", tmp_path / "local", [])
    upstream.tree(ROOT / "build" / "sdist", tmp_path / "expected", upstream.series())
    monkeypatch.setenv("PYSKIP_LLAMA_CPP_DIR", str(tmp_path / "local"))
    upstream.tree(tmp_path / "no sdist", tmp_path / "found", upstream.series())
    expected, found = (
        {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != upstream.STAMP}
        for root in (tmp_path / "expected", tmp_path / "found")
    )
    assert found == expected
    assert "pyskip" not in (tmp_path / "local" / "src" / "llama-context.h").read_text()


@pytest.mark.slow
def test_rebuild_touches_only_what_changed(upstream: ModuleType, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    upstream.tree(ROOT / "build" / "sdist", tree, [])
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*") if path.is_file()}
    upstream.tree(ROOT / "build" / "sdist", tree, upstream.series())
    changed = {str(p.relative_to(tree)) for p, t in before.items() if p.stat().st_mtime_ns != t}
    named = {name for path in upstream.series() for name in re.findall(r"^--- a/(.*)$", path.read_text(), re.MULTILINE)}
    assert changed == {upstream.STAMP, *named}


def test_the_pin_has_one_place(upstream: ModuleType) -> None:
    version = upstream.pin()["llama_cpp_python"]
    assert f'"llama-cpp-python=={version}"' in (ROOT / "pyproject.toml").read_text()
    from pyskip.binding.library import BUILD

    assert f"llama-cpp-python {version}, llama.cpp {upstream.pin()['llama_cpp_commit']}" in BUILD
    assert upstream.patches_hash(upstream.series()) in BUILD
    assert sys.version_info >= (3, 10)
