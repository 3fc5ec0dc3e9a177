"""pyskip serve and those who mean it no good, or have no patience: keys, sizes, queues, slow and vanishing clients,
signals."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import ALTERNATE, Running, open_served, running

from pyskip.cli.main import run
from pyskip.server.limits import Limits

pytestmark = pytest.mark.loopback

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "w1 w2 w3"}]
ENDLESS = {"messages": MESSAGES, "max_tokens": 100_000, "temperature": 0, "min_tokens": 100_000}
SHORT = {"messages": MESSAGES, "max_tokens": 3, "temperature": 0}


@contextmanager
def served(path: Path, **settings: Any) -> Iterator[Running]:
    with running({"m": open_served(path, n_ctx=16384)}, Limits(**{"grace": 0.5, **settings})) as server:
        yield server


def wait_until(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def connect(server: Running, body: Any, path: str = CHAT, length: int | None = None) -> socket.socket:
    """A client of its own pace: has sent this request, and reads nothing."""
    raw = json.dumps(body).encode() if not isinstance(body, bytes) else body
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length or len(raw)}"
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    sock.sendall(head.encode() + b"\r\n\r\n" + raw)
    return sock


def received(sock: socket.socket) -> bytes:
    """All that comes until the server closes."""
    data = b""
    with sock:
        while part := sock.recv(65536):
            data += part
    return data


def test_api_key(tiny: Path) -> None:
    with served(tiny, api_key="sesame") as server:
        key = {"Authorization": "Bearer sesame"}
        assert server.post(CHAT, SHORT, headers=key).status_code == 200
        assert server.get("/metrics", headers=key).status_code == 200
        for path in (CHAT, "/v1/completions", "/v1/embeddings", "/nothing"):
            for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "sesame"}):
                answer = server.post(path, SHORT, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        for path in ("/metrics", "/v1/models", "/pyskip/models", "/openapi.json"):
            assert server.get(path).status_code == 401
        assert server.get("/health").status_code == 200
        assert server.get("/").status_code in (200, 404)
        assert server.get("/page/nothing.js").status_code == 404


def test_a_name_that_was_made_to_lead_here(tiny: Path) -> None:
    with served(tiny, hosts=frozenset({"localhost", "[::1]"})) as server:
        for host, status in (
            ("localhost", 200), ("LOCALHOST:8000", 200), ("[::1]:80", 200),
            ("evil.test", 403), ("localhost.evil.test:80", 403), ("127.0.0.1", 403), ("localhost:80:80", 403),
        ):  # fmt: skip
            assert server.get("/v1/models", headers={"Host": host}).status_code == status
            assert server.get("/", headers={"Host": host}).status_code == status


def test_queue(tiny: Path) -> None:
    """One decodes, two wait, the next is told to come back."""
    with served(tiny, max_queue=2) as server:
        turns = server.service.turns
        running = connect(server, ENDLESS)
        wait_until(lambda: turns.is_busy)
        waiting = [connect(server, SHORT) for _ in range(2)]
        wait_until(lambda: turns.n_waiting == 2)
        answer = server.post(CHAT, SHORT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert "pyskip_queue_depth 2.0" in server.get("/metrics").text
        running.close()
        for sock in waiting:
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
            sock.close()


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_goes_away_ends_its_generation(tiny: Path, is_streamed: bool) -> None:
    with served(tiny) as server:
        turns = server.service.turns
        sock = connect(server, {**ENDLESS, "stream": is_streamed})
        wait_until(lambda: turns.is_busy)
        if is_streamed:
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        waiting = connect(server, SHORT)
        left = connect(server, SHORT)
        wait_until(lambda: turns.n_waiting == 2)
        left.close()
        wait_until(lambda: turns.n_waiting == 1)
        sock.close()
        assert waiting.recv(100).startswith(b"HTTP/1.1 200")
        waiting.close()
        wait_until(lambda: not turns.is_busy)
        metrics = server.get("/metrics").text
        generated = next(line for line in metrics.splitlines() if line.startswith("pyskip_generated_tokens_total"))
        assert 0 < float(generated.split()[-1]) < 16_000  # what was generated counts, and it was not all
        status = "200" if is_streamed else "499"
        assert f'pyskip_requests_total{{path="{CHAT}",status="{status}"}}' in metrics


def test_a_long_prompt_is_left_at_once(tiny: Path) -> None:
    with served(tiny) as server:
        sock = connect(server, {"messages": [{"role": "user", "content": "w1 " * 4000}]})
        wait_until(lambda: server.service.turns.is_busy)
        sock.close()
        wait_until(lambda: not server.service.turns.is_busy, 5)
        assert server.post(CHAT, SHORT).status_code == 200


def test_large_bodies(tiny: Path) -> None:
    with served(tiny, max_body=1000) as server:
        assert server.post(CHAT, SHORT).status_code == 200
        answer = server.post(CHAT, {"messages": [{"role": "user", "content": "x" * 1000}]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        claimed = connect(server, b"{", length=10**12)
        assert received(claimed).startswith(b"HTTP/1.1 413")
        chunked = server.client.post(server.url + CHAT, content=iter([b"x" * 600] * 3))
        assert chunked.status_code == 413
        odd = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        odd.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {'9' * 30}\r\n\r\n".encode())
        assert received(odd).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))
        assert server.post(CHAT, SHORT).status_code == 200


def test_slow_clients(tiny: Path) -> None:
    """Those that say nothing, half a head, or half a body; and they are in nobody's way."""
    with served(tiny, timeout=1.0) as server:
        began = time.monotonic()
        silent = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        half_head = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        half_head.sendall(b"POST /v1/chat")
        half_body = connect(server, b'{"messages"', length=1000)
        assert server.post(CHAT, SHORT).status_code == 200
        assert received(half_body).startswith(b"HTTP/1.1 408")
        for sock in (silent, half_head):
            with suppress(ConnectionResetError):
                assert received(sock) == b""
        assert 0.5 < time.monotonic() - began < 20


def test_a_client_that_does_not_read(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is decoded to its end and the next one's turn comes; what does not go out ends the connection."""
    (tmp_path / "large.js").write_bytes(b"x" * 30_000_000)  # more than sockets hold
    monkeypatch.setattr("pyskip.server.app.PAGE", tmp_path)
    with served(tiny, timeout=1.0) as server:
        unread = connect(server, {**ENDLESS, "max_tokens": 500, "stream": True})
        wait_until(lambda: server.service.turns.is_busy)
        assert server.post(CHAT, SHORT).status_code == 200
        unread.close()
        stuck = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        stuck.sendall(b"GET /page/large.js HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.5)
        assert len(server.server.server_state.connections) == 2  # and the one of these tests' client
        wait_until(lambda: len(server.server.server_state.connections) == 1)
        with suppress(ConnectionResetError):
            assert len(received(stuck)) < 30_000_000


def test_max_tokens(tiny: Path) -> None:
    with served(tiny, max_tokens=5) as server:
        for asked in ({}, {"max_tokens": 900}, {"max_completion_tokens": 900}):
            body = {key: value for key, value in SHORT.items() if key != "max_tokens"}
            assert server.post(CHAT, {**body, **asked}).json()["usage"]["completion_tokens"] == 5
        assert server.post(CHAT, SHORT).json()["usage"]["completion_tokens"] == 3


def test_metrics(tiny: Path) -> None:
    with served(tiny) as server:
        server.post(CHAT, {**SHORT, "max_tokens": 9, "skip": ALTERNATE})
        server.post(CHAT, {**SHORT, "max_tokens": 9, "skip": "off"})
        server.post(CHAT, "{")
        server.get("/no/such/path")
        text = server.get("/metrics").text
        values = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"
        }
        for il in range(6):
            blocks = f'pyskip_ffn_blocks_total{{layer="{il}",model="m",outcome='
            skipped = 8 if il in (2, 4) else 0
            assert values[blocks + '"skipped"}'] == skipped
            assert values[blocks + '"evaluated"}'] == 16 - skipped
        assert values['pyskip_generated_tokens_total{model="m"}'] == 18
        assert values['pyskip_prompt_tokens_total{model="m"}'] == 2 * 31
        assert values['pyskip_tokens_per_second_count{model="m"}'] == 2
        assert values['pyskip_queue_seconds_count{model="m"}'] == 2
        assert values[f'pyskip_requests_total{{path="{CHAT}",status="200"}}'] == 2
        assert values[f'pyskip_requests_total{{path="{CHAT}",status="400"}}'] == 1
        assert values['pyskip_requests_total{path="other",status="404"}'] == 1
        assert values["pyskip_queue_depth"] == 0


def test_many_at_a_time(tiny: Path) -> None:
    """More than are ever running: each gets the answer that it gets alone."""
    skips = ("off", "static:1,3", ALTERNATE)
    bodies = [
        {**SHORT, "skip": skip, "messages": [{"role": "user", "content": f"w{n}"}]} for skip in skips for n in (1, 2)
    ]
    with served(tiny) as server:
        alone = [server.post(CHAT, body).json()["choices"] for body in bodies]
        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(lambda i: server.post(CHAT, bodies[i % 6]).json()["choices"], range(60)))
        for i, answer in enumerate(answers):
            assert answer == alone[i % 6]


# Signals, by the command line


def start(*args: str) -> tuple[subprocess.Popen[str], str]:
    """The server as a process, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pyskip", "serve", *args, "--port", "0", "-t", "1"],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr
    for line in process.stderr:
        if " at http://" in line:
            return process, line.split(" at ")[1].split(";")[0]
    pytest.fail("it did not start")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish(tiny: Path, number: signal.Signals) -> None:
    process, url = start(str(tiny), "-c", "4096", "--grace", "60")
    assert httpx.get(url + "/v1/models", headers={"Host": "evil.test"}, verify=False).status_code == 403
    body = {**ENDLESS, "max_tokens": 1000, "model": "tiny"}
    with httpx.Client(base_url=url, timeout=60, verify=False) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, CHAT, json=body)
        wait_until(lambda: "pyskip_requests_running 1" in client.get("/metrics").text)
        process.send_signal(number)
        answer = asked.result()
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 1000
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "")


def test_the_end_of_the_grace(tiny: Path) -> None:
    process, url = start(str(tiny), "-c", "60000", "--grace", "0.2")
    with httpx.Client(base_url=url, timeout=60, verify=False) as client, ThreadPoolExecutor(1) as pool:
        with client.stream("POST", CHAT, json={**ENDLESS, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            waiting = pool.submit(client.post, CHAT, json=SHORT)
            wait_until(lambda: "pyskip_queue_depth 1" in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        assert waiting.result().status_code == 503
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")


def test_a_second_signal(tiny: Path) -> None:
    process, url = start(str(tiny), "-c", "60000", "--grace", "600")
    body = {**ENDLESS, "stream": True}
    with httpx.stream("POST", url + CHAT, json=body, timeout=60, verify=False) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        for _ in range(40):  # it goes on
            next(lines)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "")


def test_command_line(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", str(tiny), "--port", str(port)]) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"127.0.0.1:{port}" in said
    for args, status, words in (
        (("a=demo", "a=demo"), 2, "two models are named 'a'"),
        ((str(tmp_path / "none.gguf"),), 1, "none.gguf"),
        (("demo", "--api-key", ""), 2, "--api-key"),
        (("demo", "--skip", "bogus"), 1, "bogus"),
        (("demo", "--host", "no such host"), 1, "no such host"),
    ):
        assert run(["serve", *args, "--port", "0"] if "--host" not in args else ["serve", *args]) == status
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert words in said


def test_a_missing_extra_is_named(tiny: Path) -> None:
    code = "import sys; sys.modules['uvicorn'] = None; sys.argv[1:] = ['serve']; import pyskip.cli.main as m; m.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "pyskip: pyskip serve needs uvicorn, not installed: pip install 'pyskip[server]'\n"
