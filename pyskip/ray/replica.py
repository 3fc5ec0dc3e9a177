"""A replica: a server of its own, which lives and ends with it, on cores of its own. Ray Serve makes them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from pyskip.server.child import Child

from .cluster import keep_to_loopback
from .cores import Claim, running_on

__all__ = ["OWN_HEADERS", "Replica"]

# What is a connection's own and is not passed on (RFC 9110, 7.6.1)
OWN_HEADERS = {"connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade"}


class Replica:
    """Starts `pyskip serve` with these arguments on n_cores and passes requests on to it. If the server ends the
    replica's process does, and Ray starts another one."""

    def __init__(self, arguments: Sequence[str], n_cores: int) -> None:
        keep_to_loopback()
        self._claim = Claim(n_cores)
        with running_on(self._claim.cores):
            self._server = Child(arguments, ended=lambda: os._exit(1))  # so that who waits for it hears at once
        self._client: Any = None

    async def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[tuple[int, dict[str, str]] | bytes]:
        """The status and the headers, then the body as it comes."""
        import aiohttp

        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            )
        async with self._client.request(method, self._server.url + target, headers=headers, data=body or None) as got:
            yield got.status, {k.lower(): v for k, v in got.headers.items() if k.lower() not in OWN_HEADERS}
            async for part in got.content.iter_any():
                yield part

    def __del__(self) -> None:
        """Ray Serve calls it when the replica's requests are answered."""
        self._server.stop()
        self._claim.close()
