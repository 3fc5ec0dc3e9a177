"""`pyskip pull`: download a model."""

from __future__ import annotations

import os

import click

from . import ui
from .list import table

__all__ = ["pull"]


@click.command()
@click.argument("model", required=False)
def pull(model: str | None) -> None:
    """Download MODEL and print its path.

    MODEL is a name of pyskip list, or REPO[:FILE]; it comes into huggingface-hub's cache. FILE is a file of the
    repository or a quantisation such as Q4_K_M; without it, what suits this machine's memory is taken. What was
    downloaded before is looked up on the Hub again. Without MODEL: the same as pyskip list.
    """
    if model is None:
        click.echo(table())
        return
    from pyskip.models import REPO

    repo = model.partition(":")[0]
    is_repo = REPO.fullmatch(repo) and not repo.endswith(".gguf") and not os.path.exists(model)
    path = ui.resolve(f"hf:{model}" if is_repo else model, refresh=True)
    if not path.is_file():
        raise click.ClickException(
            f"{model}: no such file, and no name of a model, expected a name of pyskip list or hf:REPO[:FILE]"
        )
    click.echo(ui.plain(str(path)))
