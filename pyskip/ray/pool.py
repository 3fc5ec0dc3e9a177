"""Which of the servers that are there gets a request: that of its conversation, if it may take another one. No sockets
and no Ray here; front.py asks, directory.py says who comes and goes."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ..errors import PyskipError

__all__ = ["Nowhere", "Pool", "Server"]


class Nowhere(PyskipError):
    """No server takes the request. status: of the answer; code: of its error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(eq=False)
class Server:
    name: str  # by which conversations find it, for as long as it lives
    host: str
    port: int
    n_requests: int = 0  # that it has now


def _of(key: str, servers: Iterable[Server]) -> Server:
    """The same for a conversation as long as the servers are the same; one that comes or goes moves no more than its
    own share (rendezvous hashing)."""
    return min(servers, key=lambda server: hashlib.blake2b(f"{key}\0{server.name}".encode(), digest_size=8).digest())


class Pool:
    """max_requests: of a server; max_queue: requests that wait for a place; patience: seconds that one waits."""

    def __init__(self, max_requests: int, max_queue: int, patience: float = 60) -> None:
        self._max_requests, self._max_queue, self._patience = max_requests, max_queue, patience
        self._servers: list[Server] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_closed = False

    def join(self, server: Server) -> None:
        self._servers.append(server)
        self._wake(self._max_requests)

    def leave(self, server: Server) -> None:
        """It gets no more requests; what it has it may answer."""
        self._servers.remove(server)

    def close(self) -> None:
        """From now on there is no server."""
        self._is_closed = True
        self._wake(len(self._waiting))

    def load(self, server: Server) -> float:
        """Its requests, and its share of those that wait."""
        return server.n_requests + len(self._waiting) / max(1, len(self._servers))

    async def take(self, key: str, without: Collection[Server] = ()) -> Server:
        """A server for a request of the conversation `key`, empty for none; done() gives its place back.

        without: those that were tried.

        Raises Nowhere if there is none, or none with a place in time.
        """
        end = asyncio.get_running_loop().time() + self._patience
        waited = False
        while True:
            if self._is_closed:
                raise Nowhere(503, "shutting_down", "the server is shutting down: ask another, or later")
            if without and not set(self._servers) - set(without):
                raise Nowhere(503, "replica_gone", "the replica that had the request is gone: ask again")
            free = [one for one in self._servers if one.n_requests < self._max_requests and one not in without]
            if free:
                server = _of(key, free) if key else min(free, key=lambda one: (one.n_requests, random.random()))
                server.n_requests += 1
                return server
            await self._wait(end, waited)
            waited = True

    def done(self, server: Server) -> None:
        server.n_requests -= 1
        self._wake(1)

    async def _wait(self, end: float, first: bool) -> None:
        """first: before those that wait already; its place was taken by a request that came when it was woken."""
        if len(self._waiting) >= self._max_queue and not first:
            raise Nowhere(429, "queue_full", "every replica has all the requests that it may: ask again later")
        loop = asyncio.get_running_loop()
        woken: asyncio.Future[None] = loop.create_future()
        (self._waiting.appendleft if first else self._waiting.append)(woken)
        timer = loop.call_at(end, _give_up, woken)
        try:
            await woken
        except asyncio.CancelledError:
            if not woken.cancelled():
                self._wake(1)  # who was woken for nothing
            raise
        finally:
            timer.cancel()
            if woken in self._waiting:
                self._waiting.remove(woken)

    def _wake(self, n: int) -> None:
        for _ in range(min(n, len(self._waiting))):
            woken = self._waiting.popleft()
            if not woken.done():
                woken.set_result(None)


def _give_up(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_exception(Nowhere(503, "no_replica", "no replica had a place in time: ask again later"))
