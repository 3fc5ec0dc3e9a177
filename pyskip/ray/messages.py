"""Heads of HTTP/1.1 messages as the front writes them, chunks of bodies, and errors in OpenAI's shape, as the
server's own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Protocol

__all__ = [
    "MAX_HEAD",
    "OWN_HEADERS",
    "REASONS",
    "Chunks",
    "answer_head",
    "error_body",
    "error_event",
    "request_head",
]

MAX_HEAD = 64 << 10  # bytes of a head
MAX_SIZE_LINE = 32  # bytes of the line before a chunk
# What is a connection's own and is not passed on (RFC 9110, 7.6.1)
OWN_HEADERS = {"connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade"}
REASONS = {int(status): status.phrase.encode() for status in HTTPStatus}
Lines = Iterable[tuple[bytes, bytes]]  # names in lower case


class Chunks:
    """A chunked body (RFC 9112, 7.1) that goes on as it comes, chunk by chunk, so that one of our own may follow at any
    time. No extensions and no trailers, which the server does not write."""

    is_whole = False

    def __init__(self) -> None:
        self._rest = b""  # of a chunk that is not there yet

    def feed(self, data: bytes) -> bytes:
        """The chunks that are there, as they came. Raises ValueError if it is no such body."""
        data, at, end = self._rest + data, 0, 0
        while not self.is_whole and (end := data.find(b"\r\n", at, at + MAX_SIZE_LINE)) >= 0:
            size = int(data[at:end], 16)
            if size < 0:
                raise ValueError("a chunk of a negative size")
            if end + size + 4 > len(data):
                break
            at, self.is_whole = end + size + 4, not size
        self._rest = data[at:]
        if end < 0 and len(self._rest) >= MAX_SIZE_LINE:
            raise ValueError("a chunk without a size")
        return data[:at]


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
