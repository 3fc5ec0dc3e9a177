"""Runs the app: the socket, signals, and clients that take their time."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .app import Service, create_app

__all__ = ["Server", "bind"]


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket there; port 0 takes any that is free. Raises OSError."""
    sock = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = found[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, UnicodeError) as error:
        if sock is not None:
            sock.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise OSError(f"cannot listen at {host}:{port} ({reason}): choose another --host or --port") from error
    return sock


class Server(uvicorn.Server):
    """Serves until stop() or a signal: the first SIGTERM or SIGINT lets requests finish, the second does not.

    started: called once connections are taken.
    """

    def __init__(self, service: Service, started: Callable[[], None] = lambda: None) -> None:
        _log_in_lines()
        self._service, self._tell = service, started
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http=_protocol(service.settings.timeout),
                log_config=None,
                log_level="error",  # what others send is no news
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=max(1, round(service.settings.grace + 2)),
            )
        )

    def stop(self) -> None:
        """As a signal does."""
        self.force_exit = self.should_exit
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        watch = asyncio.ensure_future(self._cut_off())
        await super().shutdown(sockets)
        watch.cancel()

    async def _cut_off(self) -> None:
        """When the grace is over, or a second signal came: what waits and runs is told so."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._service.settings.grace
        while loop.time() < end and not self.force_exit:
            await asyncio.sleep(0.05)
        self._service.turns.close()


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        return " ".join(f"pyskip: {record.getMessage()}{'' if error is None else f': {error!r}'}".split())


def _log_in_lines() -> None:
    """What uvicorn has to say, on stderr as the command line says things."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Line())
    logger = logging.getLogger("uvicorn")
    logger.handlers, logger.propagate = [handler], False


def _protocol(timeout: float) -> type[asyncio.Protocol]:
    class Protocol(H11Protocol):
        """Ends connections that send no whole head of a request in time, and those that do not take what they are
        sent."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._begin()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None:
                self._end()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._begin()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._end()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end()
            super().connection_lost(exc)

        def _begin(self) -> None:
            self._end()
            self._timer = self.loop.call_later(timeout, self.transport.abort)

        def _end(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Protocol
