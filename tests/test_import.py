"""Importing pyskip: what it exports, what it does not pull in, and whom it refuses to share a process with."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REFERENCE

import pyskip


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env})


def test_import_brings_nothing_that_only_the_command_line_needs() -> None:
    code = "import sys, llama_cpp; before = set(sys.modules); import pyskip; print(*sorted(set(sys.modules) - before))"
    lib_dir = str(Path(pyskip.binding.library.LIB_DIR))
    done = python(code, LLAMA_CPP_LIB_PATH=lib_dir)
    assert done.returncode == 0, done.stderr
    added = {name.partition(".")[0] for name in done.stdout.split()}
    assert {"pyskip"} <= added
    assert not added & {"click", "rich", "gguf", "huggingface_hub", "asyncio", "cffi", "pycparser", "email"}


@pytest.mark.reference
def test_a_stock_llama_cpp_that_is_there_already_is_refused() -> None:
    done = python("import llama_cpp, pyskip; pyskip.Llama", LLAMA_CPP_LIB_PATH=str(REFERENCE))
    assert done.returncode == 1
    assert "BuildMismatchError: a stock llama_cpp is loaded already" in done.stderr.splitlines()[-1]


def test_another_llama_cpp_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").write_text('raise SystemExit("imported")\n\n__version__ = "0.3.7"\n')
    done = python("import pyskip; pyskip.Llama", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "llama-cpp-python 0.3.7 is installed, pyskip was built with" in done.stderr.splitlines()[-1]


def test_environment_is_left_alone() -> None:
    done = python("import os, pyskip; print('LLAMA_CPP_LIB_PATH' in os.environ)")
    assert done.stdout.strip() == "False"


def test_a_library_that_cannot_be_imported_is_one_line(tmp_path: Path) -> None:
    """numpy's own error runs over a page, for instance if there is no memory to map it."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text('raise ImportError("page\\n\\n" * 20 + "no memory\\n")\n')
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "pyskip", "info", "x"], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert "no memory" in done.stderr
