"""pyskip on systems that are not this one: what it imports, what it calls, how it writes text. What Windows lacks is
taken away by tests/no_posix, under which `make portable-test` runs much of the test-suite."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "pyskip"
SITE = ROOT / "tests" / "no_posix"
# Of the standard library, what not every system has.
POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
WINDOWS = {"msvcrt", "winreg", "winsound"}


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Of import statements that run when the module is imported: those of functions do not, nor do those of a try that
    does without."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node.lineno
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from imported(node)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_what_every_system_has(path: Path) -> None:
    found = [f"{name}, line {line}" for name, line in imported(ast.parse(path.read_text("utf-8")))]
    assert not [one for one in found if one.partition(",")[0] in POSIX | WINDOWS]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import resource", ["resource"]),
        ("from termios import ECHO", ["termios"]),
        ("class A:\n    import pwd.x", ["pwd"]),
        ("try:\n    import fcntl\nexcept ImportError:\n    pass", ["fcntl"]),
        ("if True:\n    import os", ["os"]),
        ("def f():\n    import fcntl", []),
        ("from .resource import x", []),
    ],
)
def test_of_which_imports_that_speaks(source: str, expected: list[str]) -> None:
    assert [name for name, _ in imported(ast.parse(source))] == expected


def without_posix(*args: str, **kwargs: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(SITE)}
    return subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, timeout=120, **kwargs)  # type: ignore[call-overload, no-any-return]


def test_what_is_taken_away() -> None:
    """And that it is pyskip alone that goes without the modules."""
    program = "import os, signal, resource, pyskip.system\n"
    program += "exec('import resource', vars(pyskip.system))"
    done = without_posix("-c", program)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'resource' on this system"
    done = without_posix("-c", "import os, signal; print(hasattr(os, 'fork'), hasattr(signal, 'SIGBUS'))")
    assert done.stdout == "False False\n", done.stderr


def test_imports_without_posix() -> None:
    """Every module that is not for an extra, without a warning."""
    names = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.stem not in ("__init__", "__main__", "lm_eval", "llm_plugin") and "distill" not in path.parts
    )
    leaks = "ignore::ResourceWarning"  # llama-cpp-python's at exit
    done = without_posix("-W", "error", "-W", leaks, "-c", "\n".join(f"import {name}" for name in names))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_machine_without_posix() -> None:
    program = "from pyskip.system import *\nprint(physical_cores(), total_memory(), available_memory(), cpu_name())"
    done = without_posix("-c", program)
    n_cores, total, available, *name = done.stdout.split()
    assert int(n_cores) >= 1
    assert 1 << 28 < int(available) <= int(total)
    assert name


def test_chats_without_posix(tiny: Path) -> None:
    done = without_posix("-m", "pyskip", "chat", str(tiny), "-t", "1", "-n", "5", "--temp", "0", "-p", "w1 w2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_text_is_utf_8_whatever_the_locale_says() -> None:
    """Every file that is opened as text says how it is encoded: on Windows that is not UTF-8 by itself."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and not _says_encoding(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def _says_encoding(call: ast.Call) -> bool:
    """True of all that opens no text file."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    least = {"read_text": 1, "write_text": 2}.get(name)
    if least is not None:
        return len(call.args) >= least or any(word.arg == "encoding" for word in call.keywords)
    if name != "open" or (isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "os"):
        return True
    constants = [
        str(one.value) for one in (*call.args, *(word.value for word in call.keywords)) if isinstance(one, ast.Constant)
    ]
    modes = [text for text in constants if set(text) <= set("rwxabt+")]
    return any("b" in mode for mode in modes) or any(word.arg == "encoding" for word in call.keywords)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("open(path)", False),
        ("open(path, 'w')", False),
        ("path.open('w')", False),
        ("path.open('rb')", True),
        ("open(path, 'w', encoding='utf-8')", True),
        ("os.open(path, flags)", True),
        ("path.read_text()", False),
        ("path.read_text('utf-8')", True),
        ("path.write_text(text)", False),
        ("path.write_text(text, encoding='utf-8')", True),
    ],
)
def test_of_which_calls_that_speaks(source: str, expected: bool) -> None:
    (call,) = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    assert _says_encoding(call) is expected
