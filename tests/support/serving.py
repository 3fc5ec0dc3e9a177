"""The server as a process of its own, for the tests of `pyskip serve`: real sockets on the loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import httpx
import pytest

__all__ = ["ALTERNATE", "TOOL_TEMPLATE", "Running", "free_port", "running", "start", "wait_until"]

ALTERNATE = "cosine:threshold=-1,run=1,cold_start=1,cold_end=1,warmup=0"  # skips layers 2 and 4 of 6, whatever they say


# One that puts tools to the model, as many do
TOOL_TEMPLATE = """{% if tools %}<|im_start|>system
Functions: {% for tool in tools %}{{ tool | tojson }}
{% endfor %}To call one: <tool_call>{"name": NAME, "arguments": OBJECT}</tool_call><|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.content %}{{ m.content }}{% endif %}{% if m.tool_calls %}{% for call in m.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# With another program in the place of the build's own: `make sanitize`
OTHER = """
import os, pathlib
import pyskip.cli.main, pyskip.server.program
pyskip.server.program.program = lambda: pathlib.Path(os.environ["PYSKIP_TEST_PROGRAM"])
pyskip.cli.main.main()
"""
PYSKIP = ("-c", OTHER) if "PYSKIP_TEST_PROGRAM" in os.environ else ("-m", "pyskip")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    client: httpx.Client  # one: each reads the certificates of the system anew, to no use here
    said: list[str] = field(default_factory=list)  # on stderr, line by line
    before: list[str] = field(default_factory=list)  # likewise, until it listened

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def post(self, path: str, body: Any, **kwargs: Any) -> httpx.Response:
        raw = body if isinstance(body, (bytes, str)) else json.dumps(body)
        headers = {"Content-Type": "application/json", **kwargs.pop("headers", {})}
        return self.client.post(self.url + path, content=raw, headers=headers, **kwargs)

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.client.get(self.url + path, **kwargs)

    def metric(self, name: str) -> float:
        """Of GET /metrics; 0 if it is not there."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0


def start(*args: str, before: list[str] | None = None) -> tuple[subprocess.Popen[str], str, list[str]]:
    """`pyskip serve` on a free port: the process, its address, and what it goes on to say on stderr. `before` gets what
    it says until then."""
    process = subprocess.Popen(
        [sys.executable, *PYSKIP, "serve", "--port", "0", *args],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    watch = threading.Timer(120, process.kill)
    watch.start()
    said: list[str] = []
    before = [] if before is None else before
    for line in process.stderr:
        found = re.search(r" at (http://127\.0\.0\.1:\d+);", line)
        if found:
            watch.cancel()
            threading.Thread(target=_listen, args=(process.stderr, said), daemon=True).start()
            return process, found[1], said
        before.append(line)
    watch.cancel()
    process.wait()
    pytest.fail("".join(before))


def _listen(stream: IO[str], said: list[str]) -> None:
    with stream:
        said.extend(stream)


@contextmanager
def running(*args: str) -> Iterator[Running]:
    """The server of this command line, with one thread, until the block ends; then all of it has ended."""
    before: list[str] = []
    process, url, said = start("-t", "1", *args, before=before)
    try:
        with httpx.Client(timeout=60, verify=False, limits=httpx.Limits(max_connections=None)) as client:
            yield Running(process, url, client, said, before)
    finally:
        for sig in (signal.SIGTERM, signal.SIGTERM):
            if process.poll() is None:
                process.send_signal(sig)
                time.sleep(0.2)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail("the server did not end on two signals")


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
