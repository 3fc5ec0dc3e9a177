"""What a request must get past before the app sees it: the API key, and the size and pace of its body."""

from __future__ import annotations

import asyncio
import hmac
import re
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import APIError, as_api_error
from .metrics import Metrics

__all__ = ["Guard", "Limits"]

OPEN_PATHS = ("/", "/health")  # without a key
OPEN_FOLDER = "/page/"
LINGER = 16 << 20  # bytes beyond the limit
CSP = (  # of the page: files of its own, nothing inline, nobody else's
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", CSP),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]


@dataclass(frozen=True)
class Limits:
    """What the server lets pass."""

    api_key: str | None = None
    hosts: frozenset[str] | None = None  # that a request may call the server by; None: any
    max_queue: int = 256  # requests that wait
    max_body: int = 1 << 20  # bytes
    max_tokens: int | None = None  # to generate for one request; None: as many as fit the context
    timeout: float = 30.0  # seconds for a client to send a request, and to take what it is sent
    grace: float = 30.0  # seconds for requests to be answered once the server was told to stop


class Guard:
    """Middleware: the outermost, so that it sees every status."""

    def __init__(self, app: ASGIApp, settings: Limits, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        try:
            try:
                self._check_host(scope)
                self._check_key(scope)
                body = await self._body(scope, receive)
            except APIError as error:
                await error.response()(scope, receive, send_noting)
                return
            try:
                await self._app(scope, _replayed(body, receive), send_noting)
            except Exception as error:
                answer = as_api_error(error)
                if status:  # too late to say it
                    raise
                await answer.response()(scope, receive, send_noting)
        finally:
            route = scope.get("route")
            self._metrics.answered(getattr(route, "path", "other"), status or 499)  # nginx's: the client has gone

    def _check_host(self, scope: Scope) -> None:
        """To a browser, a site whose name was made to lead here is of the same origin: it could ask and read."""
        hosts = self._settings.hosts
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
        if hosts is not None and re.sub(r":\d+$", "", host) not in hosts:
            raise APIError(
                403,
                f"without an API key the server answers to {', '.join(sorted(hosts))}, found the host {host!r:.60}",
                code="invalid_host",
                headers={"Connection": "close"},
            )

    def _check_key(self, scope: Scope) -> None:
        key, path = self._settings.api_key, scope["path"]
        if key is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + key.encode()):
            raise APIError(
                401,
                "no API key, or another one, expected the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """What is too large is read a while longer: whoever is still sending hears no answer."""
        limit = self._settings.max_body
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > limit + LINGER:
            raise _too_large(limit)
        body, n = bytearray(), 0
        deadline = asyncio.get_running_loop().time() + self._settings.timeout
        more = True
        while more:
            left = deadline - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(receive(), left)
            except asyncio.TimeoutError:
                raise APIError(
                    408,
                    f"the body did not come within {self._settings.timeout:g} s",
                    code="request_timeout",
                    headers={"Connection": "close"},
                ) from None
            if message["type"] == "http.disconnect":
                raise APIError(400, "the client has gone")
            part = message.get("body", b"")
            n += len(part)
            if n <= limit:
                body += part
            elif n > limit + LINGER:
                break
            more = message.get("more_body", False)
        if n > limit:
            raise _too_large(limit)
        return bytes(body)


def _too_large(limit: int) -> APIError:
    return APIError(
        413,
        f"the body has more than {limit} bytes: send less, or start the server with a larger --max-body",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    is_read = False

    async def replay() -> Any:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
