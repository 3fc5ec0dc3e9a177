"""Long prompts: what is sent before they end, and who is answered meanwhile. By the order of events, not by time."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import make_random
from serving import Running, running

pytestmark = pytest.mark.loopback

CHAT = "/v1/chat/completions"
LONG = "w1 " * 2000  # 4,000 tokens
SHORT = {"messages": [{"role": "user", "content": "w2"}], "max_tokens": 2, "temperature": 0}
STEP = 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Slow enough for a prompt to take its time."""
    path = tmp_path_factory.mktemp("long") / "m.gguf"
    shape = make_random.Shape(6, 256, 1024, 4, 2, 320, 8192, "f32")
    make_random.make(path, shape)
    flags = ("--", "--batch-size", str(STEP), "--ubatch-size", str(STEP), "--no-cache-prompt")
    with running(str(path), "-c", "8192", "--skip", "off", *flags) as server:
        yield server


class Stream:
    """A streamed answer to the long prompt, read by a thread: what came, with what else happened in between."""

    def __init__(self, server: Running, **more: Any) -> None:
        self.events: list[Any] = []
        self.headers, self.computing = threading.Event(), threading.Event()
        body = {"messages": [{"role": "user", "content": LONG}], "max_tokens": 4, "stream": True, **more}
        self._thread = threading.Thread(target=self._read, args=(server, body))
        self._thread.start()

    def _read(self, server: Running, body: dict[str, Any]) -> None:
        with server.client.stream("POST", server.url + CHAT, json=body) as answer:
            self.events.append("headers")
            self.headers.set()
            for line in answer.iter_lines():
                if line.startswith(":"):
                    self.events.append("ping")
                elif line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    progress = chunk.get("prompt_progress")
                    self.events.append(progress["processed"] if progress else "text")
                    self.computing.set()

    def end(self) -> list[Any]:
        self._thread.join(60)
        return self.events


def test_headers_come_before_the_prompt_is_computed(server: Running) -> None:
    stream = Stream(server)
    assert stream.headers.wait(30)
    assert server.metric("llamacpp:requests_processing") == 1
    assert "text" not in stream.events
    assert "text" in stream.end()


def test_progress(server: Running) -> None:
    events = Stream(server, return_progress=True).end()
    done = [event for event in events if isinstance(event, int)]
    assert done == sorted(done)
    assert len(done) > 30
    assert done[-1] > 4000
    assert events.index("text") > events.index(done[-1])


def test_pings(server: Running) -> None:
    events = Stream(server, sse_ping_interval=1, messages=[{"role": "user", "content": LONG}]).end()
    assert events.index("headers") < events.index("ping") < events.index("text")


@pytest.mark.parametrize("n_before", [0, 1, 2])
def test_a_short_request_does_not_wait_for_a_long_prompt(server: Running, n_before: int) -> None:
    """Whatever slot it gets: it is answered within a few steps of the prompt."""
    others = [server.client.stream("POST", server.url + CHAT, json={**SHORT, "stream": True}) for _ in range(n_before)]
    for other in others:
        with other as answer:
            answer.read()
    stream = Stream(server, return_progress=True)
    assert stream.computing.wait(30)
    for _ in range(3):
        before = max(event for event in stream.events if isinstance(event, int))
        assert server.post(CHAT, SHORT).status_code == 200
        after = max(event for event in stream.events if isinstance(event, int))
        assert "text" not in stream.events
        assert after - before <= 10 * STEP  # 5 batches for it, and what is sent late
    assert "text" in stream.end()
