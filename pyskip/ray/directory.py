"""Who serves: replicas say so to the front over a Unix socket, for as long as the connection is there. A replica that
dies leaves in the same moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import time
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from ..errors import PyskipError
from .pool import Pool, Server

__all__ = ["Membership", "listen"]

TIMEOUT = 5  # seconds for the front to answer
ELSEWHERE = "replicas are told by Unix sockets, which Windows has not in Python: use pyskip serve"
ON_ITS_WAY = 0.2  # seconds that a request may take from the front to a replica


class Membership:
    """A replica's side. path: of the front's socket; url: of its server.

    Raises OSError if the front is not there, PyskipError on Windows.
    """

    _socket: socket.socket
    _file: IO[bytes]

    def __init__(self, path: str, url: str) -> None:
        if sys.platform == "win32":
            raise PyskipError(ELSEWHERE)
        address = urlsplit(url)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect(path)
        self._file = self._socket.makefile("rb")
        said = {"name": f"{address.port} {time.time_ns()}", "host": address.hostname, "port": address.port}
        self._socket.sendall(json.dumps(said).encode() + b"\n")

    def load(self) -> float:
        """Requests that it has, and its share of those that wait."""
        self._socket.sendall(b"\n")
        return float(self._file.readline())

    def leave(self) -> None:
        """No request is on its way to it any more once this returns."""
        self._file.close()
        self._socket.close()
        time.sleep(ON_ITS_WAY)


async def listen(path: Path, pool: Pool) -> asyncio.AbstractServer:
    """The front's side: a replica that connects is in the pool until it goes."""
    if sys.platform == "win32":
        raise PyskipError(ELSEWHERE)

    async def member(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(ConnectionError, asyncio.CancelledError):
            line = await reader.readline()
            if not line:
                return
            server = Server(**json.loads(line))
            pool.join(server)
            try:
                while await reader.readline():
                    writer.write(f"{pool.load(server)}\n".encode())
            finally:
                pool.leave(server)

    return await asyncio.start_unix_server(member, path)
