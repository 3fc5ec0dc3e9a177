"""What the commands share: messages on stderr, and work that Ctrl-C can stop though it is inside llama.cpp."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

import click

if TYPE_CHECKING:
    from pyskip.runtime.generation import Answer
    from pyskip.runtime.llama import Llama

__all__ = [
    "answer_line",
    "error",
    "in_thread",
    "is_plain",
    "must_exit_now",
    "note",
    "plain",
    "printable",
    "progress_line",
    "resolve",
    "stage_line",
    "stream",
]

T = TypeVar("T")

must_exit_now = False  # a thread was left inside llama.cpp: no orderly end of the interpreter


def plain(text: str) -> str:
    """The text without what would steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


_STEERS = {c: "\ufffd" for c in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
del _STEERS[9], _STEERS[10]


def printable(text: str) -> str:
    """A text of lines without what would steer a terminal or turn the order of its characters."""
    return text.translate(_STEERS)


def error(line: str) -> None:
    click.echo(f"pyskip: {line}", err=True)


def is_plain(stream: TextIO) -> bool:
    """Whether it is no terminal that can do more than print lines, or no more is wanted (https://no-color.org)."""
    kind = os.environ.get("TERM", "dumb" if os.name == "posix" else "")  # Windows has no such variable
    return not stream.isatty() or bool(os.environ.get("NO_COLOR")) or kind == "dumb"


def note(line: str) -> None:
    text = f"pyskip: {line}"
    click.echo(text if is_plain(sys.stderr) else click.style(text, dim=True), err=True)


def _take(arrivals: queue.Queue[T]) -> T:
    """The next of them. KeyboardInterrupt comes out here; on Windows Python does not hear Ctrl-C while it waits."""
    while True:
        with suppress(queue.Empty):
            return arrivals.get(timeout=0.1 if os.name == "nt" else None)


def in_thread(work: Callable[[], T]) -> T:
    """work() in another thread, so that Ctrl-C is heard here while it is inside native code."""
    global must_exit_now
    result: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue()

    def body() -> None:
        try:
            result.put((work(), None))
        except BaseException as failure:
            result.put((None, failure))

    threading.Thread(target=body, daemon=True).start()
    try:
        value, failure = _take(result)
    except KeyboardInterrupt:
        must_exit_now = True
        raise
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]


def resolve(model: str, *, refresh: bool = False) -> Path:
    """The file of the model that a command line names. Downloads it if need be, and says so on stderr."""
    from pyskip.models import resolve

    return resolve(model, refresh=refresh, tell=lambda line: note(plain(line)))  # names of files are the Hub's words


def stream(llm: Llama, pieces: Iterable[str]) -> Generator[str, None, None]:
    """The pieces, generated in another thread. KeyboardInterrupt comes out here after the decode under way stopped."""
    from pyskip.errors import DecodeError

    arrived: queue.Queue[str | BaseException | None] = queue.Queue()

    def body() -> None:
        try:
            for piece in pieces:
                arrived.put(piece)
                if stop.is_set():
                    break
            arrived.put(None)
        except BaseException as failure:
            arrived.put(failure)

    stop = threading.Event()
    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    interrupted = False
    try:
        while True:
            try:
                piece = _take(arrived)
            except KeyboardInterrupt:
                interrupted = True
                stop.set()
                llm.set_abort(True)
                continue
            if isinstance(piece, str):
                yield piece
                continue
            if interrupted and (piece is None or isinstance(piece, DecodeError)):
                raise KeyboardInterrupt
            if piece is not None:
                raise piece
            return
    finally:
        # also if the reader of the pieces failed or was interrupted: the context must not be left to two threads
        stop.set()
        llm.set_abort(True)
        thread.join()
        llm.set_abort(False)


def answer_line(answer: Answer) -> str:
    """What an answer took, in one line."""
    skip = answer.skip
    attention = f", {skip.attention_rate:.1%} of attention" if skip.attention_rate else ""
    line = f"{answer.n_gen} tokens, {answer.gen_ts:.1f} tokens/s, {skip.rate:.1%} of FFN blocks{attention} skipped "
    line += f"({skip.skip})"
    line += f"; prompt {answer.n_prompt} tokens, {answer.prompt_ts:.1f} tokens/s"
    line += f"; {answer.n_accepted} of {answer.n_drafted} drafted tokens accepted" if answer.n_drafted else ""
    return f"{line}; {answer.pace}" if answer.pace else line


@contextmanager
def progress_line() -> Iterator[Callable[[int, int, str], None]]:
    """show(done, total, words): on a terminal one live line that goes away, elsewhere a line every 10 seconds."""
    start = last = time.monotonic()
    live = not is_plain(sys.stderr)

    def show(done: int, total: int, words: str) -> None:
        nonlocal last
        now = time.monotonic()
        left = round((now - start) / done * (total - done))
        line = f"{done}/{total}{words}, {left // 60}:{left % 60:02} left"
        if live:
            click.echo(f"\r\x1b[2K{click.style(line, dim=True)}", nl=False, err=True)
        elif now - last >= 10:
            last = now
            note(line)

    try:
        yield show
    finally:
        if live:
            click.echo("\r\x1b[2K", nl=False, err=True)


@contextmanager
def stage_line() -> Iterator[Callable[[str, int, int, str], None]]:
    """show(stage, done, total, words): as progress_line, with a line for each stage."""
    lines: dict[str, Callable[[int, int, str], None]] = {}
    with ExitStack() as stack:

        def show(stage: str, done: int, total: int, words: str) -> None:
            if stage not in lines:
                stack.close()
                lines[stage] = stack.enter_context(progress_line())
                note(stage)
            lines[stage](done, total, f" {stage}{f', {words}' if words else ''}")

        yield show
