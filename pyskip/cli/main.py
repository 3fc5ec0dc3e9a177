"""The `pyskip` command: subcommands, and the one place where an error becomes a line and an exit code.

0 done, 1 an error in one line, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from contextlib import suppress
from typing import Any

import click

from pyskip import startup

from . import ui

__all__ = ["cli", "main"]


class LazyGroup(click.Group):
    """Imports a subcommand, and with it llama.cpp, only when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["bench", "calibrate", "chat", "eval", "generate", "info", "list", "pull", "serve"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        from importlib import import_module

        command: click.Command = getattr(import_module(f"pyskip.cli.{cmd_name}"), cmd_name)
        return command


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        import pyskip
        from pyskip.binding.library import BUILD

        click.echo(f"pyskip {pyskip.__version__} ({BUILD})")
        ctx.exit()


@click.group(cls=LazyGroup, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Version and build."
)
def cli() -> None:
    """Run language models on a CPU and skip the feed-forward blocks that a token does not need."""


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    from pyskip.errors import PyskipError

    return text if isinstance(error, (PyskipError, OSError)) else f"{type(error).__name__}: {text}"


def run(args: list[str] | None = None) -> int:
    """The command line's exit code. Prints errors."""
    try:
        startup.hear_interrupts()
        result: Any = cli.main(args=args, prog_name="pyskip", standalone_mode=False, windows_expand_args=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "pyskip"
        ui.error(f"{error.format_message()} (see {command} --help)")
        return 2
    except click.ClickException as error:
        ui.error(error.format_message())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        # nobody reads on: not an error of ours; keep the interpreter's last flush from complaining
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        ui.error("out of memory: use a smaller model or context (-c)")
        return 1
    except Exception as error:
        if os.environ.get("PYSKIP_DEBUG"):
            raise
        ui.error(_one_line(error))
        return 1


def _open_closed_streams() -> None:
    """A stream that was closed (>&-) reads and writes nothing; text that it cannot encode is shown as ?. (ASCII click
    takes for a locale that was left out, and writes UTF-8.)"""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 for as long as the process lives
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = (
                "utf-8" if sys.platform == "win32" and not stream.isatty() else None
            )  # else it is the code page's
            stream.reconfigure(encoding=encoding, errors="replace")


def _crash_in_one_line() -> None:
    """A crash inside llama.cpp, too, is a line and an exit code; with PYSKIP_DEBUG it is left to a debugger."""
    if os.environ.get("PYSKIP_DEBUG"):
        return
    with suppress(ImportError, OSError):  # the command that needs the library says what is wrong with it
        from pyskip.binding.crash import exit_on_crash

        exit_on_crash(os.dup(sys.stderr.fileno()))  # a copy: llama-cpp-python closes stderr while it loads


def main() -> None:
    """Console script."""
    _open_closed_streams()
    _crash_in_one_line()
    warnings.showwarning = lambda message, *_: ui.note(" ".join(str(message).split()))
    status = run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is over: one that comes now must not end in a traceback
    if ui.must_exit_now:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # a thread is inside llama.cpp and cannot be joined
    sys.exit(status)


if __name__ == "__main__":
    main()
