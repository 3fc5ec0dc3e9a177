"""A page of the documentation that ends in a table which a script keeps: rows are known by their first cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["keep_rows"]


def keep_rows(page: Path, rows: Mapping[str, Sequence[str]]) -> None:
    """Put each row in the place of the one that begins alike, or at the end; what else is on the page stays.

    rows: first cell -> the other cells. Raises ValueError for a page without a table, or with one of other columns.
    """
    lines = page.read_text("utf-8").splitlines()
    places = [i for i, line in enumerate(lines) if line.startswith("|")]
    if not places or places != list(range(places[0], len(lines))):
        raise ValueError(f"{page}: no table at its end, expected one to put rows in: see its history")
    n_columns = len(_cells(lines[places[0]]))
    for first, others in rows.items():
        if 1 + len(others) != n_columns:
            raise ValueError(f"{page}: a table of {n_columns} columns, expected {1 + len(others)}: see its history")
        row = f"| {' | '.join([first, *others])} |"
        found = [i for i in places[2:] if _cells(lines[i])[0] == first]
        if found:
            lines[found[0]] = row
        else:
            lines.append(row)
    page.write_text("\n".join(lines) + "\n", "utf-8")


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]
