"""A replica: a server of its own, which lives and ends with it, on cores of its own. Ray Serve makes them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from pyskip.server.child import Child

from .cluster import keep_to_loopback
from .cores import Claim, running_on
from .directory import Membership
from .messages import OWN_HEADERS

__all__ = ["LOAD", "Replica"]

LOAD = "load"  # of the stats by which replicas are added


class Replica:
    """Starts `pyskip serve` with these arguments on n_cores and passes requests on to it. If the server ends the
    replica's process does, and Ray starts another one.

    directory: the socket of the front that passes requests on to the server itself, if there is one (local.py)."""

    _membership: Membership | None = None

    def __init__(self, arguments: Sequence[str], n_cores: int, directory: str | None = None) -> None:
        keep_to_loopback()
        self._claim = Claim(n_cores)
        with running_on(self._claim.cores):
            self._server = Child(arguments, ended=lambda: os._exit(1))  # so that who waits for it hears at once
        self._client: Any = None
        if directory:
            self._membership = Membership(directory, self._server.url)

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

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Ray Serve asks for it. Requests that come by the front Ray does not see."""
        return {LOAD: self._membership.load()} if self._membership else {}

    def __del__(self) -> None:
        """Ray Serve calls it when the requests that it knows of are answered; the server answers the others."""
        if self._membership:
            self._membership.leave()
        self._server.stop()
        self._claim.close()
