"""Who may use a Llama: nobody once it is closed, and one thread at a time. llama.cpp checks neither, and crashes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ..errors import DecodeError, ModelLoadError

__all__ = ["ANY_TIME", "DECODES", "Guard", "guarded", "steps"]

C = TypeVar("C", bound=type)

# What needs neither model nor context, or sees to itself.
ANY_TIME = frozenset(
    {"close", "from_pretrained", "logits_to_logprobs", "longest_token_prefix", "set_cache", "set_seed"}
)
# What decodes, or changes what a decode reads.
DECODES = frozenset(
    {"embed", "eval", "keep_pace", "load_state", "reset", "restore_sequence", "sample", "save_sequence", "save_state"}
)


class Guard:
    """One for each Llama."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_open = True
        self._under_way: dict[object, threading.Thread] = {}  # generations, and the thread that asked for a token last

    def check_open(self) -> None:
        """Raises ModelLoadError once the Llama was closed."""
        if not self._is_open:
            raise ModelLoadError("the model was closed: load it again")

    @contextmanager
    def decoding(self, generation: object = None) -> Iterator[None]:
        """While one thread decodes. Raises DecodeError for a second one, also if the first is between two tokens of
        another generation than this, and ModelLoadError once the Llama was closed."""
        self.check_open()
        if not self._lock.acquire(blocking=False):
            raise self._busy("decodes")
        try:
            self.check_open()
            here = threading.current_thread()
            for other, thread in self._under_way.items():
                if other is not generation and thread is not here and thread.is_alive():
                    raise self._busy("is in the middle of a generation")
            if generation is not None:
                self._under_way[generation] = here
            yield
        finally:
            self._lock.release()

    def finished(self, generation: object) -> None:
        """No token of the generation will be asked for any more."""
        self._under_way.pop(generation, None)

    @contextmanager
    def closing(self, stop: Callable[[bool], None]) -> Iterator[bool]:
        """Once the decode of another thread has ended, which `stop` tells to. True the first time."""
        if not self._lock.acquire(blocking=False):
            stop(True)
            self._lock.acquire()
        try:
            was_open, self._is_open = self._is_open, False
            yield was_open
        finally:
            self._lock.release()

    @staticmethod
    def _busy(what: str) -> DecodeError:
        return DecodeError(
            f"another thread {what} with this Llama, expected one thread at a time: let it finish (or close its "
            "stream), hold a lock around each use, or load a Llama for each thread"
        )


def steps(
    guard: Guard, inner: Generator[int, Sequence[int] | None, None]
) -> Generator[int, Sequence[int] | None, None]:
    """The same generator, each of its steps by the guard's leave."""
    generation = object()
    sent: Sequence[int] | None = None
    try:
        while True:
            with guard.decoding(generation):
                try:
                    token = inner.send(sent)
                except StopIteration:
                    return
            sent = yield token
    finally:
        guard.finished(generation)
        inner.close()


def guarded(cls: C) -> C:
    """Class decorator: every public method, inherited ones too, raises ModelLoadError once the Llama was closed, and
    those that decode raise DecodeError in a second thread. The Llama's `_guard` is None while it is being loaded."""
    for name in dir(cls):
        method = getattr(cls, name)
        is_public = not name.startswith("_") or name == "__call__"
        if is_public and name not in ANY_TIME and callable(method) and not isinstance(method, type):
            setattr(cls, name, _guarded(method, name in DECODES))
    return cls


def _guarded(method: Callable[..., Any], decodes: bool) -> Callable[..., Any]:
    @functools.wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        guard: Guard | None = self._guard
        if guard is None:
            return method(self, *args, **kwargs)
        if not decodes:
            guard.check_open()
            return method(self, *args, **kwargs)
        with guard.decoding():
            return method(self, *args, **kwargs)

    return checked
