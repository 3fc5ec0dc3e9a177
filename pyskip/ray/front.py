"""The address of replicas on this machine: HTTP/1.1 to clients, and a connection to a replica's server for each
request, over which bytes go on as they come. No Ray here: which replicas there are directory.py hears from themselves.
A cluster of several machines has Ray's proxies and the Front of application.py in this place."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .conversation import conversation
from .messages import MAX_HEAD, REASONS, Chunks, answer_head, error_body, error_event, request_head
from .pool import Nowhere, Pool, Server

__all__ = ["Client"]

TIMEOUT = 60  # seconds for a client to send a request
IDLE = 75  # seconds that a connection without a request is kept
AHEAD = 8  # requests of a connection that wait behind the one that is answered; then no more are read
LINGER = 2  # seconds in which what a refused client still sends is thrown away, so that it reads why


@dataclass
class Request:
    method: str = ""
    target: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)  # the last of a name
    lines: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    is_old: bool = False  # HTTP/1.0, which knows no chunks
    stays: bool = True  # the connection is for another one, too


class Client(asyncio.Protocol):
    """A client's connection. max_body: bytes of a request; here: those that are there."""

    def __init__(self, pool: Pool, max_body: int, here: set[Client]) -> None:
        self._pool, self._max_body, self._here = pool, max_body, here
        self._requests: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._answer: _Answer | None = None
        self._is_refused = False
        self._late: tuple[int, str, str] | None = None  # a refusal that comes after an answer
        self._n_head = 0  # bytes of a head that is not whole
        self._is_new = self._is_in_head = False

    # The connection

    def connection_made(self, transport: Any) -> None:
        import httptools

        self.transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._timer = self._after(IDLE, transport.close)
        self._here.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._here.discard(self)
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        import httptools

        if self._is_refused or self._late:
            return
        self._is_new = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # to what is not spoken here; the request is one of HTTP/1.1 all the same
        except httptools.HttpParserError:
            return self._refuse(400, "bad_request", "this is no request of HTTP/1.1")
        self._n_head += len(data) if self._is_in_head and not self._is_new else 0
        if self._n_head > MAX_HEAD:
            self._refuse(431, "head_too_large", f"the request's head has more than {MAX_HEAD} bytes: send less")

    def pause_writing(self) -> None:
        if self._answer is not None and self._answer.transport is not None:
            self._answer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._answer is not None and self._answer.transport is not None:
            self._answer.transport.resume_reading()

    # What the parser found

    def on_message_begin(self) -> None:
        self._request, self._n_head = Request(), 0
        self._is_new = self._is_in_head = True
        self._until(TIMEOUT, lambda: self._refuse(408, "timeout", f"the request took more than {TIMEOUT} s to come"))

    def on_url(self, url: bytes) -> None:
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.lines.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method().decode()
        request.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.lines}
        request.is_old = self._parser.get_http_version() == "1.0"
        self._is_in_head, self._n_head = False, 0
        if int(request.headers.get("content-length", 0)) > self._max_body:
            self._refuse_body()
        elif request.headers.get("expect", "").lower() == "100-continue" and self._task is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if len(self._request.body) + len(body) > self._max_body:
            self._refuse_body()
        elif not self._is_refused:
            self._request.body += body

    def on_message_complete(self) -> None:
        self._timer.cancel()
        if not self._is_refused and not self._late:
            self._request.stays = self._parser.should_keep_alive() and "upgrade" not in self._request.headers
            self._requests.append(self._request)
            self._next()

    # Answers

    def _next(self) -> None:
        """The requests of a connection are answered one by one. Meanwhile it is read, since who hangs up is told by
        that alone."""
        if len(self._requests) > AHEAD:
            self.transport.pause_reading()
        if self._task is None and self._requests:
            self._task = asyncio.get_running_loop().create_task(self._serve(self._requests.popleft()))

    async def _serve(self, request: Request) -> None:
        try:
            await self._pass_on(request)
        except Nowhere as error:
            self._say(error.status, error.code, str(error))
        except Exception:
            self.transport.abort()
            raise
        self._task = self._answer = None
        if self._is_refused or self.transport.is_closing():
            return
        if not request.stays:
            self.transport.close()
            return
        self.transport.resume_reading()
        self._until(IDLE, self.transport.close)
        self._next()
        if self._late and self._task is None:
            self._say(*self._late)

    async def _pass_on(self, request: Request) -> None:
        """Raises Nowhere if no server takes it; one to which nothing could be sent is not one."""
        key, tried = conversation(request.headers, bytes(request.body)), set[Server]()
        sent = request_head(request) + request.body
        while True:
            server = await self._pool.take(key, tried)
            try:
                return await self._ask(server, request, sent)
            except ConnectionRefusedError:
                tried.add(server)
            except OSError as error:
                raise Nowhere(503, "no_replica", f"no replica can be reached ({error}): ask again later") from None
            finally:
                self._pool.done(server)

    async def _ask(self, server: Server, request: Request, sent: bytes) -> None:
        answer = self._answer = _Answer(self, request, sent)
        try:
            await asyncio.get_running_loop().create_connection(lambda: answer, server.host, server.port)
            await answer.done
        finally:
            if answer.transport is not None:
                answer.transport.abort()

    def _refuse_body(self) -> None:
        self._refuse(413, "request_too_large", f"the body has more than {self._max_body} bytes: send less")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """After the requests that came before, if there are any."""
        if self._task is None:
            self._say(status, code, message)
        else:
            self._late = self._late or (status, code, message)

    def _say(self, status: int, code: str, message: str) -> None:
        """The last answer of this connection. What comes still is thrown away, so that the client gets to read it."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        body = error_body(code, message)
        lines = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        lines += [(b"retry-after", b"1")] if status in (429, 503) else []
        self.transport.write(answer_head(status, REASONS[status], lines, stays=False) + body)
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._until(LINGER, self.transport.close)

    def _after(self, seconds: float, what: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, what)

    def _until(self, seconds: float, what: Callable[[], None]) -> None:
        self._timer.cancel()
        self._timer = self._after(seconds, what)


class _Answer(asyncio.Protocol):
    """A replica's answer, on its way to the client. `done` once it has it, or was told that there is no more.

    A stream's bytes go on as they are, a read at a time: what runs for each token is what a stream loses of its rate,
    since it takes the core of a thread that decodes. Other answers are parsed to their end."""

    transport: Any = None

    def __init__(self, client: Client, request: Request, sent: bytes) -> None:
        self._client, self._request, self._sent = client, request, sent
        self._head = b""
        self._lines: list[tuple[bytes, bytes]] = []
        self._reason = b""
        self._out: list[bytes] = []
        self._is_chunked = self._is_events = self._has_begun = False
        self._chunks: Chunks | None = None  # of a stream that goes on as it is
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        import httptools

        self.transport = transport
        self._parser = httptools.HttpResponseParser(self)
        transport.write(self._sent)
        self._sent = b""

    def data_received(self, data: bytes) -> None:
        if self._chunks is not None:
            self._pass_on(self._chunks, data)
        elif self._has_begun:
            self._parse(data)
        else:
            self._begin(data)

    def _begin(self, data: bytes) -> None:
        self._head += data
        end = self._head.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(self._head) > MAX_HEAD:
                self.transport.abort()
            return
        head, body = self._head[:end], self._head[end:]
        self._parse(head)
        if body and not self.transport.is_closing():
            self.data_received(body)

    def _parse(self, data: bytes) -> None:
        import httptools

        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()
        self._flush()

    def _pass_on(self, chunks: Chunks, data: bytes) -> None:
        try:
            self._client.transport.write(chunks.feed(data))
        except ValueError:
            self.transport.abort()
        if chunks.is_whole:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Before the end: the replica is gone."""
        if self.done.done():
            return
        if not self._has_begun:
            self.done.set_exception(Nowhere(503, "replica_gone", "the replica that had the request is gone: ask again"))
        elif self._is_events and self._is_chunked:
            self.on_body(error_event("replica_gone", "the replica that wrote this is gone: ask again"))
            self.on_message_complete()
        else:  # so that nobody takes it for whole
            self._client.transport.abort()
            self._end()

    def _flush(self) -> None:
        if self._out:
            self._client.transport.write(b"".join(self._out))
            self._out.clear()

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    # What the parser found

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        headers, status = dict(self._lines), self._parser.get_status_code()
        has_body = self._request.method != "HEAD" and status not in (204, 304)
        if b"content-length" not in headers and has_body:
            self._is_chunked = not self._request.is_old
            self._request.stays = self._request.stays and self._is_chunked
        self._is_events = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if self._is_events and self._is_chunked and headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            self._chunks = Chunks()
        stays, is_chunked = self._request.stays, self._is_chunked
        self._out.append(answer_head(status, self._reason, self._lines, stays=stays, is_chunked=is_chunked))
        self._has_begun = True
        if not has_body:
            self.on_message_complete()

    def on_body(self, body: bytes) -> None:
        self._out.append(b"%x\r\n%b\r\n" % (len(body), body) if self._is_chunked else body)

    def on_message_complete(self) -> None:
        if self.done.done():
            return
        if self._is_chunked:
            self._out.append(b"0\r\n\r\n")
        self._flush()
        self._end()
