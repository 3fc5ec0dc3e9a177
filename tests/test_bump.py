"""Moving the pin: hunks find their place in another release, or nothing is changed. No release is downloaded here."""

import io
import re
import shutil
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT, tool

PATCHES = [ROOT / "patches" / name for name in (ROOT / "patches" / "series").read_text().split()]
FILES = tuple({file for path in PATCHES for file in re.findall(r"^--- a/(\S+)", path.read_text(), re.MULTILINE)})


@pytest.fixture(scope="module")
def bump() -> ModuleType:
    return tool("bump")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What bump changes of the project, copied."""
    shutil.copytree(ROOT / "patches", tmp_path / "root" / "patches")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture(scope="module")
def sources(bump: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pinned release's own files that are patched."""
    folder = tmp_path_factory.mktemp("pinned")
    bump.upstream.unpack(bump.upstream.sdist(ROOT / "build" / "sdist"), folder, FILES)
    return {name: (folder / name).read_text() for name in FILES}


def release(bump: ModuleType, folder: Path, sources: dict[str, str]) -> object:
    """A release 9.9.9 of these sources."""
    changelog = "# Changelog\n\n## [9.9.9]\n\n- feat: update llama.cpp to ggml-org/llama.cpp@abcdef012\n\n## [9.9.8]\n"
    files = {f"vendor/llama.cpp/{name}": text for name, text in sources.items()} | {"CHANGELOG.md": changelog}
    archive = folder / "llama_cpp_python-9.9.9.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"llama_cpp_python-9.9.9/{name}")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return bump.Release("9.9.9", "0" * 64, archive)


def contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_the_pin_itself_changes_no_patch(bump: ModuleType, root: Path, sources: dict[str, str], tmp_path: Path) -> None:
    before = contents(root)
    assert bump.bump(root, release(bump, tmp_path, sources)) == "abcdef012"
    changed = {name for name, text in contents(root).items() if before[name] != text}
    assert changed == {"patches/upstream.toml", "pyproject.toml"}
    pin = contents(root)["patches/upstream.toml"]
    for line in ('llama_cpp_python = "9.9.9"', f'sha256 = "{"0" * 64}"', 'llama_cpp_commit = "abcdef012"'):
        assert line in pin.splitlines()
    assert '"llama-cpp-python==9.9.9"' in contents(root)["pyproject.toml"]


def test_hunks_move_with_their_context(bump: ModuleType, root: Path, sources: dict[str, str], tmp_path: Path) -> None:
    name, mark = "src/llama-context.cpp", "void llama_memory_seq_keep(\n"
    moved = {**sources, name: "// a\n// b\n" + sources[name].replace(mark, mark + "// c\n")}
    bump.bump(root, release(bump, tmp_path, moved))
    before, after = (
        re.findall(r"^@@ -(\d+)", (folder / "patches" / "0003-memory-call-sequence-hooks.patch").read_text(), re.M)
        for folder in (ROOT, root)
    )
    assert [int(b) - int(a) for a, b in zip(before, after, strict=True)] == [2, 2, 2, 3, 3, 3]

    tree = tmp_path / "tree"  # the moved patches apply at the very lines that they name
    for file, text in moved.items():
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_text(text)
    bump.upstream.apply_patches(tree, sorted((root / "patches").glob("*.patch")))
    patched = (tree / name).read_text()
    assert patched.count("pyskip_hook_") == 11
    assert "mem->seq_keep(seq_id);\n    pyskip_hook_seq_keep(mem, seq_id);" in patched


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (
            "src/llama-context.cpp",
            "    mem->seq_keep(seq_id);\n",
            "    mem->keep(seq_id);\n",
            "0003-.*: hunk 4 of {} has 0",
        ),
        ("src/llama-context.h", "bool set_sampler(", "bool take_sampler(", "0001-.*: hunk 1 of {} has 0"),
        ("src/llama-context.h", "", None, "0001-.*: hunk 1 of {} has 0"),
    ],
)
def test_a_hunk_without_a_place_changes_nothing(
    bump: ModuleType,
    root: Path,
    sources: dict[str, str],
    tmp_path: Path,
    file: str,
    old: str,
    new: str | None,
    said: str,
) -> None:
    others = {name: text for name, text in sources.items() if name != file}
    edited = others if new is None else {**others, file: sources[file].replace(old, new)}
    assert edited != sources
    before = contents(root)
    with pytest.raises(bump.Failure, match=said.format(file) + " places there, expected 1; nothing was changed"):
        bump.bump(root, release(bump, tmp_path, edited))
    assert contents(root) == before


def test_a_hunk_with_two_places_changes_nothing(
    bump: ModuleType, root: Path, sources: dict[str, str], tmp_path: Path
) -> None:
    name = "src/llama-context.h"
    with pytest.raises(bump.Failure, match=r"hunk 1 of src/llama-context\.h has 2 places"):
        bump.bump(root, release(bump, tmp_path, {**sources, name: sources[name] * 2}))


def test_a_release_that_names_no_commit(bump: ModuleType, root: Path, sources: dict[str, str], tmp_path: Path) -> None:
    known = release(bump, tmp_path, sources)
    unknown = bump.Release("9.9.7", "0" * 64, tmp_path / "llama_cpp_python-9.9.7.tar.gz")
    with tarfile.open(unknown.archive, "w:gz") as tar:
        info = tarfile.TarInfo("llama_cpp_python-9.9.7/CHANGELOG.md")
        tar.addfile(info, io.BytesIO(b""))
    assert bump.commit(known) == "abcdef012"
    with pytest.raises(bump.Failure, match=r"9\.9\.7 names no commit"):
        bump.bump(root, unknown)
