"""The tree is one by direction of dependence: a module imports only what stands below it, no modules import each other
in a circle, and only pyskip/runtime knows what `Llama` keeps behind an underscore. CONTRIBUTING.md has the map."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from imports import Import, circles, imports, modules

PACKAGE = ROOT / "pyskip"

# Lowest first. `leaves` are the modules of pyskip/ itself that are not ENTRIES, and LEAF_PACKAGES. `pyskip` is what
# `import pyskip` offers, and stands above all of that. `entry` is what others call: nothing in pyskip imports it.
ORDER = (
    "leaves", "binding", "models", "runtime", "pyskip",
    "evaluation", "chat", "bench", "calibration", "server", "ray", "cli", "entry",
)  # fmt: skip
LEAF_PACKAGES = {"policy"}
ENTRIES = {"pyskip.__main__", "pyskip.llama", "pyskip.llm_plugin", "pyskip.lm_eval"}


def layer(module: str) -> str:
    if module in ("pyskip", *ENTRIES):
        return "entry" if module in ENTRIES else "pyskip"
    if module == "pyskip._native":
        return "binding"
    name = module.split(".")[1]
    return name if (PACKAGE / name).is_dir() and name not in LEAF_PACKAGES else "leaves"


def upward(edges: list[Import]) -> list[str]:
    """The imports of something higher, or of an entry point."""
    rank = {name: place for place, name in enumerate(ORDER)}
    return [
        str(one)
        for one in edges
        if rank[layer(one.imported)] > rank[layer(one.importer)] or layer(one.imported) == "entry"
    ]


def test_every_module_has_a_place() -> None:
    found = {layer(module) for module in modules(PACKAGE)}
    assert found == set(ORDER), "a new package: give it its place in ORDER, and in CONTRIBUTING.md"


def test_no_module_imports_a_higher_one() -> None:
    assert upward(imports(PACKAGE)) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    edges = imports(PACKAGE)
    found = circles(edges)
    within = [str(one) for one in edges for group in found if one.importer in group and one.imported in group]
    assert found == [], "\n".join(within)


def underscored() -> set[str]:
    """What pyskip.Llama and llama_cpp.Llama keep behind an underscore: methods, and what they set on self."""
    from pyskip import Llama

    names: set[str] = set()
    for cls in (kind for kind in Llama.__mro__ if kind is not object):
        tree = ast.parse(inspect.getsource(inspect.getmodule(cls) or cls))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
                names |= {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
                names |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and _is(n.value, "self")}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def reaches_in(source: str, private: set[str]) -> Iterator[tuple[int, str]]:
    """Where something is read of an `llm` behind an underscore, or of anything but self what is `private`; in a class
    that derives from Llama of self, too."""
    tree = ast.parse(source)
    derived = {
        node
        for cls in ast.walk(tree)
        if isinstance(cls, ast.ClassDef) and any(ast.unparse(base).endswith("Llama") for base in cls.bases)
        for node in ast.walk(cls)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            is_llm = owner.split(".")[-1] == "llm"
            if is_llm or (node.attr in private and (owner != "self" or node in derived)):
                yield node.lineno, f"{owner}.{node.attr}"


def test_only_the_runtime_reads_what_llama_keeps_to_itself() -> None:
    private = underscored()
    assert {"_ctx", "_model"} <= private
    found = [
        f"{path.relative_to(ROOT)}:{line} reads {what}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.is_relative_to(PACKAGE / "runtime")
        for line, what in sorted(reaches_in(path.read_text("utf-8"), private))
    ]
    assert found == []


# The tests above on trees that are wrong.

BAD_TREES = {
    "at the top": {"binding/log.py": "from ..models import names\n", "models/names.py": ""},
    "in a function": {"errors.py": "def f():\n    from .runtime.llama import Llama\n", "runtime/llama.py": ""},
    "for types only": {
        "chat/session.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pyskip.cli.ui\n",
        "cli/ui.py": "",
    },
    "of what `import pyskip` offers": {"runtime/llama.py": "import pyskip\n"},
    "of an entry point": {"cli/main.py": "from ..llama import Llama\n", "llama.py": ""},
}


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, source in {"__init__.py": "", **files}.items():
        (folder / "pyskip" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "pyskip" / name).write_text(source)
    return folder / "pyskip"


@pytest.mark.parametrize("bad", BAD_TREES)
def test_a_wrong_import_is_found(bad: str, tmp_path: Path) -> None:
    assert len(upward(imports(tree(tmp_path, BAD_TREES[bad])))) == 1


def test_a_circle_is_found(tmp_path: Path) -> None:
    files = {
        "cli/main.py": 'from importlib import import_module\nimport_module(f"pyskip.cli.{1}")\n',
        "cli/chat.py": "def f():\n    from .ui import g\n",
        "cli/ui.py": "from . import main\n",
        "bench/run.py": "from ..cli.ui import g\n",
    }
    assert circles(imports(tree(tmp_path, files))) == [["pyskip.cli.chat", "pyskip.cli.main", "pyskip.cli.ui"]]


def test_a_reach_into_llama_is_found() -> None:
    source = (
        "class Served(Llama):\n    def f(self):\n        return self._ctx\n"
        "class Own:\n    def f(self):\n        return self._ctx, self.model._ctx, self.llm._anything, self.llm.n_ctx\n"
    )
    assert sorted(reaches_in(source, {"_ctx"})) == [
        (3, "self._ctx"), (6, "self.llm._anything"), (6, "self.model._ctx"),
    ]  # fmt: skip
