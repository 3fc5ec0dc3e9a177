"""`pyskip serve`: an OpenAI-compatible server."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import re
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import ui
from .options import FiniteFloat, ModelOptions, model_options

if TYPE_CHECKING:
    from pyskip.server.program import ServedModel

__all__ = ["serve"]

PROMPT_STEP = 512  # tokens of prompts between two of those who wait for their next: computed at a time, on a CPU


class _Passing(click.Command):
    """What follows `--` goes on to llama-server."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta["pyskip.rest"] = args[at + 1 :]
        return super().parse_args(ctx, args[:at])

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "[-- LLAMA-SERVER FLAG...]"]


@click.command(cls=_Passing)
@click.argument("models", nargs=-1, metavar="[[NAME=]MODEL]...")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="HOST",
    help="Address to listen at, or a path that ends in .sock: a Unix socket.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N", help="Port; 0: any free one."
)
@click.option(
    "--ray",
    "config",
    metavar="FILE",
    help="Serve replicas on Ray Serve, as its configuration file says (needs pyskip[ray]); of the other flags only "
    "--host and --port count.",
)
@click.option(
    "--api-key", envvar="PYSKIP_API_KEY", metavar="KEY", help="Key that requests must bear. [env: PYSKIP_API_KEY]"
)
@model_options
@click.option(
    "--rpc",
    metavar="HOST:PORT,...",
    help="llama.cpp's rpc-server on other machines, for the last layers (`-- -ngl N`), which run dense there.",
)
@click.option("--embedding", is_flag=True, help="Serve /v1/embeddings too.")
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Tokens that a request may generate.")
@click.option(
    "--max-queue", type=click.IntRange(0), default=256, show_default=True, metavar="N", help="Requests that may wait."
)
@click.option(
    "--max-body", type=click.IntRange(1), default=1 << 20, show_default=True, metavar="BYTES", help="Size of a request."
)
@click.option(
    "--timeout",
    type=click.IntRange(1, 86400),
    default=30,
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
    config: str | None,
    api_key: str | None,
    options: ModelOptions,
    rpc: str | None,
    embedding: bool,
    **limits: Any,
) -> int:
    """Serve MODELs over HTTP as OpenAI does, with a page to try them at /.

    MODEL is a path, a name of pyskip list, hf:REPO[:FILE], or demo, which is the default. Requests name it by NAME, or
    by the file's name. They may carry "skip", which is a specification as --skip takes it. The server is llama.cpp's:
    its own flags follow `--`, as in `pyskip serve MODEL -- --parallel 8`.
    """
    if config is not None:
        return _serve_replicas(config)
    names = _named(models or ("demo",))
    _check(options)
    if options.lossless and options.skip is None:
        options = dataclasses.replace(options, skip="off")
    if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable() and "," not in api_key):
        raise click.BadParameter("expected printable ASCII without commas.", param_hint="--api-key")
    is_socket = host.endswith(".sock")
    address, port = (_free_socket(host), port) if is_socket else _free(host, port)
    if api_key is None and not is_socket and not ipaddress.ip_address(address).is_loopback:
        ui.note(f"warning: {address} is open to others, and there is no --api-key")

    from pyskip.server.program import program, run

    program()  # before anything is downloaded
    served = {name: _served(model, options) for name, model in names.items()}
    flags = ["--host", address, "--port", str(port), "--kernels", options.kernels, *_threads(options)]
    flags += ["--only-named", "1", "--metrics"]
    own = {"skip": options.skip, "skip_prompt": options.skip_prompt, "profile": options.profile, **limits}
    own |= {"target_tps": options.target_tps, "max_skip": options.max_skip}
    for key, value in own.items():
        flags += [] if value is None else [f"--{key.replace('_', '-')}", str(value)]
    if embedding:
        n = str(max(model.n_ctx for model in served.values()))
        flags += ["--embeddings", "--pooling", "mean", "--batch-size", n, "--ubatch-size", n]
    else:
        flags += ["--batch-size", str(PROMPT_STEP)]
    if rpc is not None:
        flags += ["--rpc", rpc]
    if options.low_memory:
        flags += ["--low-memory", "1"]
    if options.lossless:
        flags += ["--lossless", "on"]
    if options.verbose:
        flags += ["--log-verbosity", "3"]
    if api_key is not None:
        os.environ["LLAMA_API_KEY"] = api_key  # which no list of processes shows
    return run(served, [*flags, *click.get_current_context().meta["pyskip.rest"]])


def _serve_replicas(config: str) -> int:
    """By Ray, which takes all but the address from the file."""
    from click.core import ParameterSource

    from pyskip.ray.run import serve_config

    context = click.get_current_context()
    given = {
        name: context.params.get(name, True)
        for name in (parameter.name for parameter in context.command.params)
        if name is not None and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if context.meta["pyskip.rest"] or set(given) - {"config", "host", "port"}:
        raise click.UsageError("With --ray the file says what is served: only --host and --port go with it.")
    serve_config(config, given.get("host"), given.get("port"), ui.note)
    return 0


def _threads(options: ModelOptions) -> list[str]:
    from pyskip.system import physical_cores

    n = str(options.n_threads or physical_cores())
    return ["--threads", n, "--threads-batch", n]


def _check(options: ModelOptions) -> None:
    """Before anything is loaded. Raises PolicyError for a malformed specification."""
    from pyskip.errors import PolicyError
    from pyskip.policy import parse_skip

    if options.max_skip is not None and options.target_tps is None:
        raise click.UsageError("--max-skip bounds a pace, and there is no --target-tps to keep: give one.")
    if options.lossless and options.target_tps is not None:
        raise click.UsageError("--lossless and --target-tps were both given: leave one of them out.")
    policy = parse_skip("off" if options.skip is None else options.skip)
    if options.skip_prompt is not None and options.skip is not None:
        policy.with_prompt(options.skip_prompt)
    start = policy.paced_from()
    if options.target_tps is not None and (start is None or start.rate is None):
        raise PolicyError(f"skip is {str(policy)!r}, expected off or a rate to keep a pace from, such as 0.1")


def _served(model: str, options: ModelOptions) -> ServedModel:
    from pyskip.models.gguf_info import inspect
    from pyskip.models.profile import Profile, find_profile
    from pyskip.policy import Profiled, parse_skip
    from pyskip.server.program import ServedModel

    path = ui.resolve(model)
    info = inspect(path)
    if options.profile is None:
        profile = find_profile(path, info.fingerprint)
    else:
        profile = Profile(options.profile)
        profile.check_model(info.fingerprint, str(path))
    if options.target_tps is not None:
        ui.note(f"{model}: requests without skip skip what it takes to keep {options.target_tps:g} tokens/s")
    elif options.skip is None and profile is None:
        ui.note(f"running {model} dense: there is no profile for it; pyskip calibrate makes one")
    elif options.skip is None and profile is not None:
        point = profile.recommended
        ui.note(f"{model}: requests without skip skip about {point.rate:.0%} of FFN blocks; --skip off runs them dense")
    elif profile is not None:
        policy = parse_skip(options.skip or "off")
        if isinstance(policy, Profiled):
            profile.threshold(policy)  # raises beyond the curve
    return ServedModel(path, options.n_ctx or info.default_n_ctx, _template(options.chat_template))


def _template(given: str | None) -> str | None:
    """What --chat-template gives: Jinja, or a file of it that is there."""
    if given is not None and "{" not in given and not os.path.isfile(given):
        raise click.BadParameter(f"{given}: no such file.", param_hint="--chat-template")
    return given


def _free(host: str, port: int) -> tuple[str, int]:
    """The address that a host name stands for, which can be listened at. Raises OSError."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.closing(socket.socket(family, kind, proto)) as sock:
            if os.name == "posix":  # on Windows it lets two listen
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            return str(sock.getsockname()[0]), port
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OSError(f"cannot listen at {host}:{port} ({reason}): choose another --host or --port") from error


def _free_socket(path: str) -> str:
    """The path, where a server that is gone has left nothing. Raises OSError."""
    if sys.platform == "win32":
        raise OSError(f"cannot listen at {path} (Python has no Unix sockets on Windows): choose another --host")
    reason = "another server answers there"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        try:
            sock.connect(path)
        except ConnectionRefusedError:  # of a file that is no socket, too
            if stat.S_ISSOCK(os.stat(path).st_mode):
                os.unlink(path)
                return path
            reason = "a file is there"
        except FileNotFoundError:
            if os.access(os.path.dirname(path) or ".", os.W_OK):
                return path
            reason = "its folder is not there or cannot be written"
        except OSError as error:
            reason = error.strerror or str(error)
    raise OSError(f"cannot listen at {path} ({reason}): choose another --host")


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
