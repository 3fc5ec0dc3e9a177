"""Whose turn it is: requests wait in a queue, and one thread decodes for one after another.

One thread for all models: two that decode at a time would share the cores, which costs both more than waiting does.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from .errors import APIError
from .served import ServedLlama

__all__ = ["Turn", "Turns"]

END = object()

# Seconds for which a token may wait for the next one. Each time that the event loop wakes, it and the client take a
# core from the threads that decode; twenty times a second reads as a stream.
GATHER = 0.05


class Turn:
    """One request. Its work runs in the decoding thread and puts items; the event loop takes them, as many at a time as
    there are, at most every GATHER seconds."""

    def __init__(self, llm: ServedLlama, work: Callable[[Turn], None]) -> None:
        self.llm, self.work = llm, work
        self.is_cancelled = False
        self._loop = asyncio.get_running_loop()
        self._items: deque[Any] = deque()
        self._arrived = asyncio.Event()
        self._is_told = False
        self._last_told = -math.inf

    def put(self, item: Any) -> None:
        """From the decoding thread."""
        self._items.append(item)
        now = time.monotonic()
        is_last = item is END or isinstance(item, BaseException)
        if not self._is_told and (is_last or now - self._last_told >= GATHER):
            self._is_told, self._last_told = True, now
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._is_told = False
        self._arrived.set()

    async def batches(self) -> AsyncIterator[list[Any]]:
        """What was put, in order, several items at a time. Raises what the work raised."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch: list[Any] = []
            while self._items:
                item = self._items.popleft()
                if item is END:
                    if batch:
                        yield batch
                    return
                if isinstance(item, BaseException):
                    if batch:
                        yield batch
                    raise item
                batch.append(item)
            if batch:
                yield batch


class Turns:
    """The queue and its thread."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._queue: queue.SimpleQueue[Turn | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._current: Turn | None = None
        self._waiting: set[Turn] = set()
        self._seconds = 1.0  # a turn takes, about
        self._is_closing = False
        self._thread = threading.Thread(target=self._decode, name="pyskip-decode", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_busy(self) -> bool:
        return self._current is not None

    def enter(self, turn: Turn) -> None:
        """Queue up. Raises APIError if the queue is full or closed."""
        if self._is_closing:
            raise _shutting_down()
        if self.n_waiting >= self._max_waiting:
            after = max(1, min(round(self._seconds * self.n_waiting), 60))
            raise APIError(
                429,
                f"{self.n_waiting} requests wait already: try again in {after} s",
                code="queue_full",
                headers={"Retry-After": str(after)},
            )
        with self._lock:
            self._waiting.add(turn)
        self._queue.put(turn)

    def leave(self, turn: Turn) -> None:
        """Nobody wants its answer any more: it does not begin, or ends with the token that is being decoded."""
        with self._lock:
            turn.is_cancelled = True
            self._waiting.discard(turn)
            if self._current is turn:
                turn.llm.set_abort(True)

    def _decode(self) -> None:
        while True:
            turn = self._queue.get()
            if turn is None:
                return
            with self._lock:
                self._waiting.discard(turn)
                if turn.is_cancelled:
                    continue
                self._current = turn
                turn.llm.set_abort(False)
            began = time.monotonic()
            try:
                turn.work(turn)
                turn.put(END)
            except BaseException as error:
                if not turn.is_cancelled:  # else it is the decode that was stopped
                    turn.put(error)
            finally:
                with self._lock:
                    self._current = None
                self._seconds += 0.2 * (time.monotonic() - began - self._seconds)

    def close(self) -> None:
        """Take no more; what waits and what runs is told so, and stops."""
        self._is_closing = True
        with self._lock:
            turns = [*self._waiting, *([self._current] if self._current is not None else [])]
        for turn in turns:
            turn.put(_shutting_down())
            self.leave(turn)
        self._queue.put(None)

    def join(self, seconds: float) -> bool:
        """Whether the thread has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()


def _shutting_down() -> APIError:
    return APIError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})
