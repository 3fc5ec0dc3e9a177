"""The front of replicas on this machine, in a thread of `pyskip serve --ray`."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import tempfile
import threading
from pathlib import Path

from ..errors import PyskipError
from .directory import listen
from .front import Client
from .pool import Pool

__all__ = ["LocalFront"]


class LocalFront:
    """Listens from the start on; requests wait for the first replica.

    directory: the socket at which replicas say that they are there. max_requests: of a replica; max_queue: that wait;
    max_body: bytes of a request.

    Raises PyskipError if it cannot listen.
    """

    def __init__(self, host: str, port: int, *, max_requests: int, max_queue: int, max_body: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pyskip-ray-")
        self.directory = Path(self._folder.name) / "replicas.sock"
        self._max_requests, self._max_queue, self._max_body = max_requests, max_queue, max_body
        self._servers: list[asyncio.AbstractServer] = []
        self._clients: set[Client] = set()
        self._loop = _event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="pyskip-front", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._listen(host, port), self._loop).result()
        except OSError as error:
            self.close()
            raise PyskipError(f"cannot listen at {host}:{port} ({error.strerror}): choose another --port") from error

    async def _listen(self, host: str, port: int) -> None:
        self._pool = Pool(self._max_requests, self._max_queue)
        self._servers.append(await self._loop.create_server(self._client, host, port, backlog=512))
        self._servers.append(await listen(self.directory, self._pool))

    def _client(self) -> Client:
        return Client(self._pool, self._max_body, self._clients)

    def refuse(self) -> None:
        """From now on a new request gets a 503; those that are there are answered."""
        self._loop.call_soon_threadsafe(self._pool.close)

    def close(self) -> None:
        """Ends what is still there."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.cleanup()

    async def _end(self) -> None:
        """All that would keep the loop: uvloop's waits for timers, too."""
        for server in self._servers:
            server.close()
        for client in self._clients:
            client.transport.abort()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        while self._clients:
            await asyncio.sleep(0.01)


def _event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's, which comes with ray[serve], where there is one."""
    if importlib.util.find_spec("uvloop"):
        with contextlib.suppress(ImportError):
            import uvloop

            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
            return loop
    return asyncio.new_event_loop()
