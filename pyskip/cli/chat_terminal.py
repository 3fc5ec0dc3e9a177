"""The chat on a terminal: reading with prompt_toolkit, showing with rich. Imported only if there is one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from rich.console import Console
from rich.text import Text

from pyskip.errors import PyskipError
from pyskip.runtime.llama import Llama

from . import ui
from .chat_commands import COMMANDS
from .chat_view import PlainView, parted
from .heat import Line
from .markdown import MarkdownStream

__all__ = ["ChatCompleter", "RichView", "history", "reader"]

RATES = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # that completion offers


class RichView(PlainView):
    """Markdown, styles and colours, on stdout."""

    has_colours = True

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, markup=False, emoji=False, soft_wrap=False)

    @property
    def width(self) -> int:  # type: ignore[override]
        return self._console.width - 1

    def note(self, line: str) -> None:
        self._console.print(Text(f"pyskip: {ui.plain(line)}", style="dim"))

    def error(self, line: str) -> None:
        self._console.print(Text(f"pyskip: {ui.plain(line)}"))

    def show(self, lines: list[Line]) -> None:
        for line in lines:
            self._console.print(Text.assemble(*line))

    def answer(self, pieces: Generator[str, None, None]) -> None:
        stream = MarkdownStream(self._console)
        with _no_echo():
            try:
                # an interrupt may come while something is shown: the generation must have ended before what follows
                with closing(pieces):
                    for piece, is_reasoning in parted(pieces):
                        if is_reasoning:
                            self._console.print(Text(ui.printable(piece), style="dim"), end="")
                        else:
                            stream.write(piece)
            finally:
                stream.finish()


@contextmanager
def _no_echo() -> Iterator[None]:
    """What is typed ahead is kept for the next prompt, and not shown among the lines of an answer."""
    if sys.platform == "win32":  # whose console shows what is typed when it is read
        yield
        return
    import termios

    try:
        before = termios.tcgetattr(sys.stdin)
    except (termios.error, OSError, ValueError):  # no terminal
        yield
        return
    quiet = list(before)
    quiet[3] &= ~(termios.ECHO | termios.ECHONL)
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def reader(llm: Llama, input: Input | None = None, output: Output | None = None) -> Callable[[], str]:
    """A function that asks for the next turn. Raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C, both where
    nothing was typed; else Ctrl-C forgets what was."""
    session: PromptSession[str] = PromptSession(
        [("bold", "> ")],
        multiline=True,
        prompt_continuation="  ",
        key_bindings=_keys(),
        history=history(),
        completer=ChatCompleter(llm),
        complete_while_typing=Condition(lambda: session.default_buffer.text.startswith("/")),
        reserve_space_for_menu=6,
        input=input,
        output=output,
    )

    def read() -> str:
        while True:
            try:
                return session.prompt()
            except KeyboardInterrupt:
                if not session.default_buffer.text:
                    raise

    return read


def _keys() -> KeyBindings:
    """Enter sends, Alt-Enter begins a new line; a paste may have many."""
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        completion = buffer.complete_state and buffer.complete_state.current_completion
        if completion:
            buffer.complete_state = None
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


# What was typed before


class _FileHistory(FileHistory):
    """Never in the way: if it cannot be written it is not."""

    def store_string(self, string: str) -> None:
        with suppress(OSError, UnicodeEncodeError):
            super().store_string(string)

    def load_history_strings(self) -> Iterable[str]:
        try:
            return super().load_history_strings()
        except OSError:
            return []


def history() -> History:
    """In the user's state directory ($XDG_STATE_HOME, on Windows where programs keep their data), for the user only."""
    home = os.environ.get("XDG_STATE_HOME", "")
    try:
        if sys.platform == "win32":
            folder = Path(click.get_app_dir("pyskip", roaming=False))
        else:
            folder = (Path(home) if os.path.isabs(home) else Path.home() / ".local" / "state") / "pyskip"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / "chat-history"
        os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_RDWR | getattr(os, "O_NONBLOCK", 0), 0o600))
        return _FileHistory(str(file)) if file.is_file() else InMemoryHistory()
    except (OSError, RuntimeError):  # RuntimeError: no home
        return InMemoryHistory()


# What may be meant


class ChatCompleter(Completer):
    """Commands, skip specifications and file names."""

    def __init__(self, llm: Llama) -> None:
        self._llm = llm
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in document.text:
            return
        name, blank, argument = text.partition(" ")
        if not blank:
            for command in COMMANDS.values():
                if command.name.startswith(name):
                    end = " " if command.argument else ""
                    yield Completion(command.name + end, -len(name), command.name, display_meta=command.help)
        elif name == "/skip":
            for spec, meaning in self._specs():
                if spec.startswith(argument):
                    yield Completion(spec, -len(argument), display_meta=meaning)
        elif name in ("/save", "/load"):
            yield from self._paths.get_completions(Document(argument), complete_event)

    def _specs(self) -> Iterator[tuple[str, str]]:
        yield "off", "dense"
        profile = None
        with suppress(PyskipError):
            profile = self._llm.profile
        if profile is not None:
            yield "profile", "the profile's recommended point"
            for rate in (rate for rate in RATES if rate <= profile.curve[-1].rate):
                point = profile.point(rate)
                yield (
                    f"{rate:g}",
                    f"perplexity {point.ppl_ratio:.3f} x dense, at best {point.ideal_speedup:.2f} x as fast",
                )
            yield "profile:error=", "by a bound on the gates' scores"
            if profile.static_sets:
                yield "static:n=", "sublayers that the profile names"
            yield "prompt:rate=", "a share of the FFN blocks, chosen by each prompt"
        yield "cosine", "the paper's policy"
        yield "cosine:threshold=", "the same, with another threshold than 0.98"
        yield "adaskip", "the sublayers that change each prompt least"
        yield "static:", "these layers, for every token"
        yield "random:rate=", "a coin for each token and layer"
