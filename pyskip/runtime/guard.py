"""Who may use a Llama: nobody once it is closed, and one thread at a time. llama.cpp checks neither, and crashes."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ..errors import DecodeError, ModelLoadError

__all__ = ["ANY_TIME", "DECODES", "Closed", "Guard", "guarded", "steps"]

C = TypeVar("C", bound=type)
CLOSED = "the model was closed: load it again"

# What needs neither model nor context, or sees to itself.
ANY_TIME = frozenset(
    {"close", "from_pretrained", "logits_to_logprobs", "longest_token_prefix", "set_cache", "set_seed"}
)
# What decodes, or changes what a decode reads.
DECODES = frozenset(
    {"embed", "eval", "keep_pace", "load_state", "reset", "restore_sequence", "sample", "save_sequence", "save_state"}
)


class Closed:
    """What llama_cpp's own objects become once they were freed: whoever kept one, a tokenizer for instance, gets an
    error where they would hand llama.cpp a pointer to nothing."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        raise ModelLoadError(CLOSED)


class Guard:
    """One for each Llama."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # held while a thread decodes
        self._changed = threading.Condition()
        self._is_open = True
        self._uses: Counter[int] = Counter()  # calls that are under way, by thread
        self._free: Callable[[], None] | None = None  # once they have ended
        self._under_way: dict[object, threading.Thread] = {}  # generations, and the thread that asked for a token last

    def check_open(self) -> None:
        """Raises ModelLoadError once the Llama was closed."""
        if not self._is_open:
            raise ModelLoadError(CLOSED)

    @contextmanager
    def using(self) -> Iterator[None]:
        """While a thread uses model or context, which are not freed meanwhile. Raises ModelLoadError once closed."""
        here = threading.get_ident()
        with self._changed:
            self.check_open()
            self._uses[here] += 1
        try:
            yield
        finally:
            with self._changed:
                self._uses[here] -= 1
                self._uses += Counter()  # without threads that are through
                free, self._free = (None, self._free) if self._uses else (self._free, None)
                self._changed.notify_all()
            if free is not None:
                free()

    @contextmanager
    def decoding(self, generation: object = None) -> Iterator[None]:
        """While one thread decodes. Raises DecodeError for a second one, also if the first is between two tokens of
        another generation than this, and ModelLoadError once the Llama was closed."""
        with self.using():
            if not self._lock.acquire(blocking=False):
                raise self._busy("decodes")
            try:
                here = threading.current_thread()
                for other, thread in self._under_way.items():
                    if other is not generation and thread is not here and thread.is_alive():
                        raise self._busy("is in the middle of a generation")
                if generation is not None:
                    self._under_way[generation] = here
                yield
            except DecodeError:
                self.check_open()  # that is why it failed
                raise
            finally:
                self._lock.release()

    def finished(self, generation: object) -> None:
        """No token of the generation will be asked for any more."""
        self._under_way.pop(generation, None)

    def close(self, stop: Callable[[], None], free: Callable[[], None]) -> None:
        """Let nobody in any more, `stop` what other threads decode, and `free` when all that is under way has ended. In
        the middle of a call, in a callback of its own, `free` waits for that call's end. The second time nothing."""
        with self._changed:
            if not self._is_open:
                return
            self._is_open = False
            if threading.get_ident() in self._uses:
                self._free = free
                return
            if self._uses:
                stop()
                self._changed.wait_for(lambda: not self._uses)
        free()

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
        with guard.decoding() if decodes else guard.using():
            return method(self, *args, **kwargs)

    return checked
