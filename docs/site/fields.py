"""For mkdocstrings: in the docstrings, `name: meaning` lines are a list of parameters or fields."""

from __future__ import annotations

import re
from typing import Any

import griffe

FIELD = re.compile(r"((?:\w+)(?:, \w+)*): (?=\S)")


def as_list(text: str) -> str:
    """`name: meaning` at a line's beginning, which may go on in indented lines, becomes an item of a list."""
    lines: list[str] = []
    for line in text.splitlines():
        found = FIELD.match(line)
        if found and (not lines or not lines[-1] or lines[-1].startswith((" ", "- "))):
            if lines and lines[-1] and not lines[-1].startswith((" ", "- ")):
                lines.append("")
            line = "- " + ", ".join(f"`{name}`" for name in found[1].split(", ")) + f": {line[found.end() :]}"
        lines.append(line)
    return "\n".join(lines)


class Fields(griffe.Extension):
    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_list(obj.docstring.value)
