"""A Hugging Face Hub on 127.0.0.1, as far as downloads need one: lists of files, searches, HEADs that redirect to
content on another host, ranges; and faults on demand. Used by test_hub*.py."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    files: dict[str, bytes]
    gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)  # claimed, if they are not the bytes' own


@dataclass
class Hub:
    """What it serves, what it does wrong, and what it was asked."""

    repos: dict[str, Repo] = field(default_factory=dict)
    status: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)  # by first part of the path
    break_after: list[int] = field(default_factory=list)  # bytes of each content response, until used up
    corrupt: bool = False
    hold_after: int | None = None  # bytes, after which nothing comes until `released`
    released: threading.Event = field(default_factory=threading.Event)
    is_silent: bool = False  # takes questions and answers none
    token: str | None = None  # the one that opens gated repositories
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""
    content_url: str = ""

    def fault(self, path: str) -> tuple[int, dict[str, str]] | None:
        for start, answers in self.status.items():
            if path.startswith(start) and answers:
                return answers.pop(0)
        return None

    def asked(self, method: str, part: str) -> list[dict[str, str]]:
        """The headers of the requests whose path has that part."""
        return [headers for m, path, headers in self.requests if m == method and part in path]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a failed command leaves, after its notes."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert not any("Traceback" in line or "\r" in line for line in lines)
    return lines[-1]


def incomplete(env: dict[str, str]) -> list[Path]:
    """The partial files in the cache."""
    return list(Path(env["HF_HOME"]).rglob("*.incomplete"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, has_body: bool) -> None:
        url = urlsplit(self.path)
        self.hub.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.hub.is_silent:
            self.hub.released.wait(60)
        fault = self.hub.fault(url.path)
        if fault is not None:
            self._send(fault[0], fault[1], b"<html>fault</html>" if has_body else b"")
        elif url.path == "/api/models":
            query = parse_qs(url.query)
            word, owner = query.get("search", [""])[0].lower(), query.get("author", [""])[0]
            with_gguf = [name for name, repo in self.hub.repos.items() if any(".gguf" in path for path in repo.files)]
            self._json([{"id": name} for name in with_gguf if word in name.lower() and name.startswith(owner)])
        elif url.path.startswith("/api/models/"):
            self._info(url.path.removeprefix("/api/models/").partition("/revision/")[0])
        elif url.path.startswith("/content/"):
            self._content(url.path.removeprefix("/content/"))
        else:
            name, _, rest = url.path[1:].partition("/resolve/")
            self._resolve(name, rest.partition("/")[2])

    def _info(self, name: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._send(401, {"X-Error-Code": "RepoNotFound"})
            return
        siblings = []
        for path, content in repo.files.items():
            size = repo.sizes.get(path, len(content))
            lfs = {"sha256": sha256(content), "size": size, "pointerSize": 133}
            siblings.append({"rfilename": path, "size": size, "blobId": "0" * 40, "lfs": lfs})
        self._json({"id": name, "sha": COMMIT, "siblings": siblings})

    def _resolve(self, name: str, path: str) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._send(404, {"X-Error-Code": "RepoNotFound"})
        elif repo.gated and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            self._send(403 if self.headers.get("authorization") else 401, {"X-Error-Code": "GatedRepo"})
        elif path not in repo.files:
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            content = repo.files[path]
            where = f"{self.hub.content_url}/content/{name}/{path}?signature=secret"
            size = str(repo.sizes.get(path, len(content)))
            linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": size, "X-Repo-Commit": COMMIT}
            self._send(302, {"Location": where, **linked})

    def _content(self, path: str) -> None:
        owner, name, file = path.split("/", 2)
        content = self.hub.repos[f"{owner}/{name}"].files[file]
        if self.hub.corrupt:
            content = bytes(len(content))
        start = int(self.headers.get("range", "bytes=0-")[6:].partition("-")[0])
        self.send_response(206 if "range" in self.headers else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if "range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = len(content)
        if self.hub.break_after:
            end = start + self.hub.break_after.pop(0)
        if self.hub.hold_after is not None and start < self.hub.hold_after < end:
            self.wfile.write(content[start : self.hub.hold_after])
            start = self.hub.hold_after
            self.hub.released.wait(60)
        self.wfile.write(content[start:end])
        self.close_connection = self.close_connection or end < len(content)

    def _json(self, document: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(document).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients that go away are part of the tests."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    hosts = ("127.0.0.1", "127.0.0.2")  # HEADs follow within a host
    servers = [Server((host, 0), handler) for host in hosts]
    hub.url, hub.content_url = (f"http://{host}:{s.server_port}" for host, s in zip(hosts, servers, strict=True))
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
