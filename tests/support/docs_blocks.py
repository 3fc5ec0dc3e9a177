"""The code blocks of README.md, CONTRIBUTING.md and docs/, for test_docs.py.

A block says how it is tried in a comment on the line before it:

    <!-- docs-test: skip: REASON -->     not run; REASON is one of REASONS
    <!-- docs-test: file: NAME -->       also written to that file, for the blocks after it
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LANGUAGES", "REASONS", "ROOT", "Block", "blocks", "commands", "pages"]

ROOT = Path(__file__).resolve().parent.parent.parent

LANGUAGES = {"python", "sh", "bash", "console", "c", "cpp", "toml", "json", "yaml", "ini", "text"}
REASONS = {
    "needs a projector",
    "needs another build",
    "needs another machine",
    "needs Ray",
    "needs root",
    "needs the network",
    "takes hours",
}

FENCE = re.compile(r"( *)(```+|~~~+)([^`]*)$")
COMMENT = re.compile(r"<!-- docs-test: (.*) -->")


@dataclass(frozen=True)
class Block:
    page: str
    line: int  # of the opening fence
    language: str
    text: str
    how: str  # what its comment says

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Every page, whoever adds it."""
    found = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md")]
    return ["README.md", "CONTRIBUTING.md", "models/README.md", "examples/README.md", *sorted(found)]


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order. Raises ValueError for one without an end and for a comment without a block."""
    found: list[Block] = []
    lines = iter(enumerate((ROOT / page).read_text("utf-8").splitlines(), 1))
    how = ""
    for number, line in lines:
        comment, fence = COMMENT.fullmatch(line.strip()), FENCE.fullmatch(line)
        if comment:
            how = comment[1]
        elif fence:
            text = []
            for _, inner in lines:
                if inner.strip() == fence[2]:
                    break
                text.append(inner.removeprefix(fence[1]))
            else:
                raise ValueError(f"{page}:{number}: the block has no end")
            found.append(Block(page, number, fence[3].strip(), "\n".join(text) + "\n", how))
            how = ""
        elif how and line.strip():
            raise ValueError(f"{page}:{number}: a docs-test comment without a block behind it")
    return found


def commands(block: Block) -> str:
    """A block's shell script; of a console session the lines after `$ `, and those that these go on in."""
    if block.language != "console":
        return block.text
    script = command = ""
    goes_on = False
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ ") or goes_on:
            command = command + line if goes_on else line[2:]
            goes_on = command.endswith("\\\n") or not is_closed(command)
            script += "" if goes_on else command
    return script


def is_closed(command: str) -> bool:
    """Whether every quote has its end."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return True
