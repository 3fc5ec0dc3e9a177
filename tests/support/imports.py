"""What pyskip's modules import of each other, read from their source without importing anything: for test_structure.py.

Every import counts: at the top of a module, inside a function, under TYPE_CHECKING, and import_module() of a name that
begins with a constant. That a package's `__init__` runs before its modules does not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Import", "circles", "imports", "modules"]


@dataclass(frozen=True)
class Import:
    importer: str  # dotted names of modules
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file of every module in a package's folder. A package stands for its `__init__`, a stub for the
    extension that it describes."""
    found = {}
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> list[Import]:
    """Every import of one module of the package by another, in the order of modules and lines."""
    known = modules(package)
    found = set()
    for importer, path in known.items():
        tree = ast.parse(path.read_text("utf-8"), str(path))
        parts = importer.split(".")
        here = parts if path.stem == "__init__" else parts[:-1]
        found |= {Import(importer, *one) for one in [*_stated(tree, here, known), *_computed(tree, known)]}
    return sorted((one for one in found if one.importer != one.imported), key=lambda one: (one.importer, one.line))


def _stated(tree: ast.AST, here: list[str], known: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Of import statements, in a package `here`. `from a import b` is of a.b if that is a module, else of a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                if name in known or base in known:
                    yield name if name in known else base, node.lineno


def _computed(tree: ast.AST, known: Iterable[str]) -> Iterator[tuple[str, int]]:
    """import_module(f"a.b.{name}") may be of any module of a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            name = node.args[0]
            start = name.values[0] if isinstance(name, ast.JoinedStr) else name
            if isinstance(start, ast.Constant):
                yield from ((module, node.lineno) for module in known if module.startswith(str(start.value)))


def circles(edges: Iterable[Import]) -> list[list[str]]:
    """The groups of modules that all reach each other, each sorted (Tarjan's algorithm)."""
    graph: dict[str, set[str]] = {}
    for one in edges:
        graph.setdefault(one.importer, set()).add(one.imported)
        graph.setdefault(one.imported, set())
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        path.append(module)
        for other in graph[module]:
            if other not in number:
                visit(other)
            if other in path:
                lowest[module] = min(lowest[module], lowest[other])
        if lowest[module] == number[module]:
            at = path.index(module)
            group, path[at:] = path[at:], []
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in number:
            visit(module)
    return sorted(found)
