"""Heads of HTTP/1.1 messages as the front writes them, and errors in OpenAI's shape, as the server's own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Protocol

__all__ = ["MAX_HEAD", "OWN_HEADERS", "REASONS", "answer_head", "error_body", "error_event", "request_head"]

MAX_HEAD = 64 << 10  # bytes of a request's head
# What is a connection's own and is not passed on (RFC 9110, 7.6.1)
OWN_HEADERS = {"connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade"}
REASONS = {int(status): status.phrase.encode() for status in HTTPStatus}
Lines = Iterable[tuple[bytes, bytes]]  # names in lower case


class Asked(Protocol):
    method: str
    target: bytes
    lines: list[tuple[bytes, bytes]]
    body: bytearray


def _own(lines: Lines, more: set[bytes]) -> list[tuple[bytes, bytes]]:
    """Those that are passed on. What `Connection` names is the connection's, too."""
    lines = list(lines)
    own = {name.encode() for name in OWN_HEADERS} | more
    own |= {name.strip().lower() for key, value in lines if key == b"connection" for name in value.split(b",")}
    return [line for line in lines if line[0] not in own]


def _written(first: bytes, lines: Lines) -> bytes:
    return b"\r\n".join([first, *(name + b": " + value for name, value in lines), b"", b""])


def request_head(request: Asked) -> bytes:
    """For a connection of its own. The body is sent at once, whichever way it came."""
    lines = _own(request.lines, {b"content-length", b"expect"})
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        lines.append((b"content-length", b"%d" % len(request.body)))
    lines.append((b"connection", b"close"))
    return _written(request.method.encode() + b" " + request.target + b" HTTP/1.1", lines)


def answer_head(status: int, reason: bytes, lines: Lines, *, stays: bool, is_chunked: bool = False) -> bytes:
    """stays: the connection is for another request, too."""
    kept = _own(lines, set())
    if is_chunked:
        kept.append((b"transfer-encoding", b"chunked"))
    kept.append((b"connection", b"keep-alive" if stays else b"close"))
    return _written(b"HTTP/1.1 %d %b" % (status, reason), kept)


def error_body(code: str, message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": code}}).encode()


def error_event(code: str, message: str) -> bytes:
    """The same as the last event of a stream."""
    return b"data: " + error_body(code, message) + b"\n\n"
