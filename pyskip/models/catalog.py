"""Models that have a name: models/catalog.toml of the source tree. Read by names.py and by `pyskip list`."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ..binding.library import LIB_DIR

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["CATALOG", "Entry", "read_catalog"]

CATALOG = LIB_DIR.parent / "catalog.toml"


@dataclass(frozen=True)
class Entry:
    """One file on the Hub, or the first of those of a model in pieces."""

    repo: str
    file: str
    license: str
    size: int | None = None  # bytes
    sha256: str | None = None


def read_catalog() -> dict[str, Entry]:
    """By name."""
    with CATALOG.open("rb") as file:
        return {name: Entry(**entry) for name, entry in tomllib.load(file).items()}
