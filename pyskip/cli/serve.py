"""`pyskip serve`: an OpenAI-compatible server."""

from __future__ import annotations

import functools
import importlib.util
import ipaddress
import os
import re
from pathlib import Path

import click

from . import ui
from .options import FiniteFloat, ModelOptions, load, model_options

__all__ = ["serve"]

EXTRA = ("fastapi", "uvicorn", "pydantic_settings", "sse_starlette", "starlette_context", "prometheus_client")


@click.command()
@click.argument("models", nargs=-1, metavar="[[NAME=]MODEL]...")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N", help="Port; 0: any free one."
)
@click.option(
    "--api-key", envvar="PYSKIP_API_KEY", metavar="KEY", help="Key that requests must bear. [env: PYSKIP_API_KEY]"
)
@model_options
@click.option("--embedding", is_flag=True, help="Load the models for /v1/embeddings too.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Tokens that a request may generate.")
@click.option(
    "--max-queue", type=click.IntRange(0), default=256, show_default=True, metavar="N", help="Requests that may wait."
)
@click.option(
    "--max-body", type=click.IntRange(1), default=1 << 20, show_default=True, metavar="BYTES", help="Size of a request."
)
@click.option(
    "--timeout",
    type=FiniteFloat(0.0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="For a client to send its request, and to take what it is sent.",
)
@click.option(
    "--grace",
    type=FiniteFloat(0.0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="For requests to be answered after the first SIGTERM or Ctrl-C.",
)
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    api_key: str | None,
    options: ModelOptions,
    embedding: bool,
    max_tokens: int | None,
    max_queue: int,
    max_body: int,
    timeout: float,
    grace: float,
) -> int:
    """Serve MODELs over HTTP as OpenAI does, with a page to try them at /.

    MODEL is a path, a name of pyskip list, hf:REPO[:FILE], or demo, which is the default. Requests name it by NAME, or
    by the file's name. They may carry "skip", which is a specification as --skip takes it.
    """
    _check_extra()
    names = _named(models or ("demo",))
    if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable()):
        raise click.BadParameter("expected printable ASCII.", param_hint="--api-key")

    from pyskip.server.app import Service
    from pyskip.server.limits import Limits
    from pyskip.server.run import Server, bind
    from pyskip.server.served import ServedLlama

    with bind(host, port) as sock:
        address = sock.getsockname()[:2]
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        is_local = ipaddress.ip_address(address[0]).is_loopback
        if api_key is None and not is_local:
            ui.note(f"warning: {address[0]} is open to others, and there is no --api-key")
        open_model = functools.partial(ServedLlama, embedding=embedding)
        llms = {name: load(model, options, open_model) for name, model in names.items()}
        hosts = frozenset({"localhost", "127.0.0.1", "[::1]", shown}) if is_local and api_key is None else None
        settings = Limits(api_key, hosts, max_queue, max_body, max_tokens, timeout, grace)
        service = Service(llms, settings)
        where = f"http://{shown}:{address[1]}"
        server = Server(service, lambda: ui.note(f"serving {', '.join(names)} at {where}; Ctrl-C stops"))
        server.run(sockets=[sock])
    ui.must_exit_now = not service.close()
    return 130 if server.force_exit else 0


def _check_extra() -> None:
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"pyskip serve needs {', '.join(missing)}, not installed: pip install 'pyskip[server]'"
        )


def _named(models: tuple[str, ...]) -> dict[str, str]:
    """Name to model."""
    names: dict[str, str] = {}
    for text in models:
        found = re.fullmatch(r"([\w.:-]+)=(.+)", text)
        if found and not os.path.exists(text):
            name, model = found.groups()
        else:
            name, model = (Path(text).stem if text.endswith(".gguf") and not text.startswith("hf:") else text), text
        if name in names:
            raise click.BadParameter(f"two models are named {name!r}: write NAME=MODEL.", param_hint="MODEL")
        names[name] = model
    return names
