"""A server of this process, for the tests of `pyskip serve`: real sockets on the loopback, one model or more."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pyskip.server.app import Service
from pyskip.server.limits import Limits
from pyskip.server.run import Server, bind
from pyskip.server.served import ServedLlama

ALTERNATE = "cosine:threshold=-1,run=1,cold_start=1,cold_end=1,warmup=0"  # skips layers 2 and 4 of 6, whatever they say


def open_served(path: Path, **kwargs: Any) -> ServedLlama:
    kwargs = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **kwargs}
    return ServedLlama(path, **kwargs)


@dataclass
class Running:
    service: Service
    server: Server
    port: int
    client: httpx.Client  # one: each reads the certificates of the system anew, to no use here

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any, **kwargs: Any) -> httpx.Response:
        raw = body if isinstance(body, (bytes, str)) else json.dumps(body)
        headers = {"Content-Type": "application/json", **kwargs.pop("headers", {})}
        return self.client.post(self.url + path, content=raw, headers=headers, **kwargs)

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.client.get(self.url + path, **kwargs)


@contextmanager
def running(models: dict[str, ServedLlama], settings: Limits | None = None) -> Iterator[Running]:
    """The server of these models, until the block ends; then all of it has ended."""
    service = Service(models, settings or Limits(grace=5))
    up = threading.Event()
    with bind("127.0.0.1", 0) as sock:
        server = Server(service, up.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        port = sock.getsockname()[1]
        thread.start()
        assert up.wait(30)
        try:
            with httpx.Client(timeout=60, verify=False, limits=httpx.Limits(max_connections=None)) as client:
                yield Running(service, server, port, client)
        finally:
            server.stop()
            thread.join(30)
            assert not thread.is_alive()
            assert service.close()
