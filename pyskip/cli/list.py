"""`pyskip list`: the models that have a name."""

from __future__ import annotations

import click

__all__ = ["list", "table"]


@click.command()
def list() -> None:
    """Show the models that have a name.

    With their size, licence, whether they are in the cache, and their place on the Hugging Face Hub.
    """
    click.echo(table())


def table() -> str:
    """One line each; also what `pyskip pull` says without a name."""
    from pyskip.models.catalog import read_catalog
    from pyskip.models.hub import in_cache
    from pyskip.models.quantisations import size_text

    rows = [("name", "size", "licence", "cached", "hf:REPO:FILE")]
    for name, entry in read_catalog().items():
        size = "" if entry.size is None else size_text(entry.size)
        there = "yes" if in_cache(entry.repo, entry.file) else ""
        rows.append((name, size, entry.license, there, f"hf:{entry.repo}:{entry.file}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
