"""pyskip serve and those who mean it no good, or have no patience: keys, names, sizes, queues, clients that are slow or
vanish, signals."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import make_random
from serving import ALTERNATE, Running, running, start, wait_until
from vocabulary import add_bytes

from pyskip.cli.main import run

pytestmark = pytest.mark.loopback

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "w1 w2 w3"}]
ENDLESS = {"messages": MESSAGES, "max_tokens": 10_000, "temperature": 0, "ignore_eos": True}
SHORT = {"messages": MESSAGES, "max_tokens": 3, "temperature": 0}
LONGER = ("--", "--override-kv", "llama.context_length=int:65536")  # the tiny model says 512
PROCESSING = "llamacpp:requests_processing"


@contextmanager
def served(path: Path, *args: str) -> Iterator[Running]:
    at = args.index("--") if "--" in args else len(args)
    with running(str(path), "-c", "16384", "--grace", "0.5", *args[:at], *LONGER, *args[at + 1 :]) as server:
        yield server


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Running]:
    with served(tiny, "--timeout", "2", "--max-body", "60000") as server:
        yield server


def connect(server: Running, body: Any, path: str = CHAT, length: int | None = None) -> socket.socket:
    """A client of its own pace: has sent this request, and reads nothing."""
    raw = json.dumps(body).encode() if not isinstance(body, bytes) else body
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    sock.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % (length or len(raw)) + raw)
    return sock


def received(sock: socket.socket) -> bytes:
    """All that comes until the server closes."""
    data = b""
    with sock, suppress(ConnectionError):
        while part := sock.recv(65536):
            data += part
    return data


def test_api_key(tiny: Path) -> None:
    with served(tiny, "--api-key", "sesame") as server:
        for key in ({"Authorization": "Bearer sesame"}, {"X-Api-Key": "sesame"}):
            assert server.post(CHAT, SHORT, headers=key).status_code == 200
            assert server.get("/metrics", headers=key).status_code == 200
        for path in (CHAT, "/v1/completions", "/v1/embeddings", "/tokenize", "/nothing"):
            for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "Bearer sesamesesame"}):
                answer = server.post(path, SHORT, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        for path in ("/metrics", "/v1/models", "/pyskip/models", "/props", "/slots"):
            assert server.get(path).status_code == 401
        assert server.get("/health").status_code == 200
        assert server.get("/").status_code == 200
        assert server.get("/", headers={"Host": "any.test"}).status_code == 200  # with a key names do not matter


def test_a_name_that_was_made_to_lead_here(server: Running) -> None:
    for host, status in (
        ("localhost", 200), ("LOCALHOST:8000", 200), ("[::1]:80", 200), ("127.0.0.1", 200),
        ("evil.test", 403), ("localhost.evil.test:80", 403), ("localhost:80:80", 403), ("", 403),
    ):  # fmt: skip
        assert server.get("/v1/models", headers={"Host": host}).status_code == status, host
        assert server.get("/", headers={"Host": host}).status_code == status


def test_the_pages_of_others_may_not_ask(server: Running) -> None:
    own = server.url
    for origin, status in ((own, 200), ("http://evil.test", 403), ("null", 403), ("http://localhost:1", 403)):
        headers = {"Origin": origin}
        assert server.post(CHAT, SHORT, headers=headers).status_code == status
        assert server.get("/v1/models", headers=headers).status_code == status
    asked_first = server.client.request("OPTIONS", own + CHAT, headers={"Origin": "http://evil.test"})
    assert asked_first.status_code == 403
    assert "access-control-allow-origin" not in asked_first.headers


def test_headers(server: Running) -> None:
    for path in ("/", "/v1/models", "/nothing"):
        headers = server.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


def test_queue(tiny: Path) -> None:
    """One decodes, two wait, the next is told to come back."""
    with served(tiny, "--max-queue", "2", "--", "--parallel", "1") as server:
        first = connect(server, ENDLESS)
        wait_until(lambda: server.metric(PROCESSING) == 1)
        waiting = [connect(server, SHORT) for _ in range(2)]
        wait_until(lambda: server.metric("pyskip_queue_depth") == 2)
        answer = server.post(CHAT, SHORT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        first.close()
        for sock in waiting:
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
            sock.close()
        wait_until(lambda: server.metric("pyskip_requests_running") == 0)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_goes_away_ends_its_generation(server: Running, is_streamed: bool) -> None:
    sock = connect(server, {**ENDLESS, "stream": is_streamed})
    wait_until(lambda: server.metric(PROCESSING) == 1)
    if is_streamed:
        assert sock.recv(100).startswith(b"HTTP/1.1 200")
    sock.close()
    wait_until(lambda: server.metric(PROCESSING) == 0, 10)


def test_a_long_prompt_is_left(server: Running) -> None:
    sock = connect(server, {"messages": [{"role": "user", "content": "w1 " * 4000}]})
    wait_until(lambda: server.metric(PROCESSING) == 1)
    sock.close()
    wait_until(lambda: server.metric(PROCESSING) == 0, 10)
    assert server.post(CHAT, SHORT).status_code == 200


def test_size(server: Running) -> None:
    large = {"messages": [{"role": "user", "content": "w" * 70_000}]}
    answer = server.post(CHAT, large)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    for chunked in (False, True):
        raw = json.dumps(large).encode()
        content = iter([raw]) if chunked else raw
        headers = {"Content-Type": "application/json"}
        with suppress(httpx.TransportError):  # it may stop reading
            assert server.client.post(server.url + CHAT, content=content, headers=headers).status_code == 413
    assert server.post(CHAT, SHORT).status_code == 200


def test_those_who_trickle(server: Running) -> None:
    """Heads and bodies, of the first request and of a second."""
    began = time.monotonic()
    raw = json.dumps(SHORT).encode()
    half = connect(server, raw[:10], length=len(raw))
    head = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    head.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
    second = connect(server, raw)
    assert second.recv(100).startswith(b"HTTP/1.1 200")
    with suppress(OSError):
        for i in range(40):
            half.sendall(raw[10 + i : 11 + i])
            head.sendall(b"X-A%d: 1\r\n" % i)
            second.sendall(b"POST"[i : i + 1] or b"x")
            time.sleep(0.1)
    said = received(half)
    assert not said or said.startswith(b"HTTP/1.1 4")
    received(head), received(second)
    assert time.monotonic() - began < 10
    assert server.post(CHAT, SHORT).status_code == 200


def test_a_slow_answer_is_not_slow_to_ask(server: Running) -> None:
    """The time that a request may take to come does not count while it is answered."""
    began = time.monotonic()
    with server.client.stream("POST", server.url + CHAT, json={**ENDLESS, "stream": True}) as answer:
        for _ in answer.iter_lines():
            if time.monotonic() - began > 3:
                break
        else:
            assert time.monotonic() - began > 3
    assert answer.status_code == 200


def test_a_streams_connection_goes_on(server: Running) -> None:
    """Nobody was told that it would end: who asks again on it would find it closed."""
    body = json.dumps({**SHORT, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        for _ in range(3):
            sock.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            data = b""
            while not data.endswith(b"\r\n0\r\n\r\n"):
                part = sock.recv(65536)
                assert part, data
                data += part
            assert data.startswith(b"HTTP/1.1 200")
            time.sleep(0.1)


def test_max_tokens(tiny: Path) -> None:
    with served(tiny, "--max-tokens", "7") as server:
        for more in ({}, {"max_tokens": 5000}, {"max_tokens": None}, {"n_predict": -1}):
            answer = server.post(CHAT, {"messages": MESSAGES, "ignore_eos": True, **more}).json()
            assert answer["usage"]["completion_tokens"] == 7
            assert answer["choices"][0]["finish_reason"] == "length"


def test_metrics(tiny: Path) -> None:
    with served(tiny) as server:
        for more in ({"skip": ALTERNATE}, {"skip": "static:attn=3"}, {"skip": "off"}, {"skip": "bogus"}):
            server.post(CHAT, {**SHORT, "max_tokens": 9, "ignore_eos": True, **more})
        server.get("/nothing")
        for il in range(6):
            blocks = f'pyskip_ffn_blocks_total{{model="tiny",layer="{il}",outcome='
            skipped = 8 if il in (2, 4) else 0
            assert server.metric(blocks + '"skipped"}') == skipped
            assert server.metric(blocks + '"evaluated"}') == 16 - skipped
            attention = f'pyskip_attention_total{{model="tiny",layer="{il}",outcome='
            skipped = 8 if il == 3 else 0
            assert server.metric(attention + '"skipped"}') == skipped
            assert server.metric(attention + '"evaluated"}') == 16 - skipped
        assert server.metric("llamacpp:tokens_predicted_total") == 27
        assert server.metric(f'pyskip_requests_total{{path="{CHAT}",status="200"}}') == 3
        assert server.metric(f'pyskip_requests_total{{path="{CHAT}",status="400"}}') == 1
        assert server.metric('pyskip_requests_total{path="other",status="404"}') == 1
        assert server.metric("pyskip_queue_depth") == 0


def test_many_at_a_time(tiny: Path) -> None:
    """More than there are slots: each is answered."""
    with served(tiny) as server, ThreadPoolExecutor(40) as pool:
        bodies = [{**SHORT, "skip": skip} for skip in ("off", "static:1,3", ALTERNATE)]
        answers = list(pool.map(lambda i: server.post(CHAT, bodies[i % 3]), range(60)))
        assert {answer.status_code for answer in answers} == {200}
        assert server.metric("pyskip_requests_running") == 0


# Signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish(tiny: Path, number: signal.Signals) -> None:
    process, url, said = start(str(tiny), "-c", "4096", "--grace", "60", "-t", "1", *LONGER)
    body = {**ENDLESS, "max_tokens": 1000}
    with httpx.Client(base_url=url, timeout=60, verify=False) as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, CHAT, json=body)
        wait_until(lambda: PROCESSING + " 1" in client.get("/metrics").text)
        process.send_signal(number)
        answer = asked.result()
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 1000
    assert (process.wait(timeout=60), said) == (0, [])


def test_the_end_of_the_grace(tiny: Path) -> None:
    process, url, said = start(str(tiny), "-c", "60000", "--grace", "0.2", "-t", "1", *LONGER)
    body = {**ENDLESS, "max_tokens": 50_000, "stream": True}
    with httpx.stream("POST", url + CHAT, json=body, timeout=60, verify=False) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        with suppress(httpx.TransportError):
            for _ in lines:
                pass
    assert (process.wait(timeout=30), said) == (0, [])


def test_a_second_signal(tiny: Path) -> None:
    process, url, said = start(str(tiny), "-c", "60000", "--grace", "600", "-t", "1", *LONGER)
    body = {**ENDLESS, "max_tokens": 50_000, "stream": True}
    with httpx.stream("POST", url + CHAT, json=body, timeout=60, verify=False) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGINT)
        for _ in range(40):  # it goes on
            next(lines)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert (process.wait(timeout=30), said) == (130, [])


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


def test_the_programs_own_command_line(tiny: Path, cli: Any) -> None:
    for args, words in (
        (("--tools", "all"), "--tools opens this machine"),
        (("--max-queue", "x"), "--max-queue is 'x'"),
        (("--skip", "static:77"), "77"),
    ):
        done = cli("serve", str(tiny), "--port", "0", "--", *args)
        assert done.returncode in (1, 2)
        assert words in done.stderr
        assert done.stderr.startswith("pyskip: ")


@pytest.mark.parametrize(("flags", "expected"), [((), [0, 1]), (("--kv-unified",), [0, 3])])
def test_a_request_gets_a_slot_beside_those_that_are_busy(
    tiny: Path, flags: tuple[str, ...], expected: list[int]
) -> None:
    """Of the others the one used the longest ago, as in a pool: there any slots are decoded together."""

    def body(i: int, **more: Any) -> dict[str, Any]:
        return {"prompt": " ".join(f"w{20 * i + j}" for j in range(20)), "ignore_eos": True, "skip": "off", **more}

    with running(str(tiny), "-c", "2048", "--", "--parallel", "4", *flags) as server, ExitStack() as stack:
        for place in (0, 3, 1, 2):
            assert server.post("/completion", body(place, n_predict=1, id_slot=place)).json()["id_slot"] == place
        streams = []  # each ends its request once nobody has it
        for i in (4, 5):
            request = body(i, n_predict=1900, stream=True)
            stream = stack.enter_context(server.client.stream("POST", server.url + "/completion", json=request))
            streams.append(stream.iter_lines())
            assert next(line for line in streams[-1] if line.startswith("data: {"))
        assert [slot["id"] for slot in server.get("/slots").json() if slot["is_processing"]] == expected


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["falcon", "gpt-4o", "deepseek-llm", "tekken"])
def test_long_texts_of_one_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str) -> None:
    """std::regex, which the rules of some vocabularies fall back to, recurses once a character. Others are answered
    meanwhile."""
    monkeypatch.setattr(make_random, "add_tokenizer", lambda writer, n_vocab: add_bytes(writer, rules, n_vocab))
    make_random.make(tmp_path / "m.gguf", make_random.SHAPES["tiny"])
    letters = ("a", "1", " ", "\n", "中", "\u0301", "!")
    with running(str(tmp_path / "m.gguf"), "--skip", "off") as server, ThreadPoolExecutor(len(letters)) as pool:

        def ask(letter: str) -> httpx.Response:
            text = letter * (900_000 // len(json.dumps(letter, ensure_ascii=False).encode()[1:-1]))
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 1}
            return server.post(CHAT, json.dumps(body, ensure_ascii=False).encode(), timeout=120)

        asked = [pool.submit(ask, letter) for letter in letters]
        n_meanwhile = 0
        while not all(answer.done() for answer in asked):
            assert server.post(CHAT, SHORT, timeout=10).status_code == 200
            usual = {"content": "the usual text " * 200}
            assert server.post("/tokenize", usual, timeout=10).status_code == 200
            n_meanwhile += 1
        for answer in asked:
            assert answer.result().status_code == 400
            assert answer.result().json()["error"]["code"] == "context_length_exceeded"
        assert n_meanwhile > 3


BOMBS: list[tuple[str, dict[str, Any], str]] = [
    ("/completion", {"grammar": "root ::= " + "(" * 60_000}, "groups"),
    ("/completion", {"grammar": "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000}, "groups"),
    ("/completion", {"grammar": 'root ::= "a"' * 30_000}, "bytes"),
    ("/completion", {"grammar": 'root ::= (((("a"?){99}){99}){99}){99}'}, "ways"),
    ("/completion", {"grammar": f'root ::= {"a " * 20}\na ::= {"b " * 20}\nb ::= {"c " * 20}\nc ::= "x"?'}, "ways"),
    ("/completion", {"json_schema": {"enum": [str(i) for i in range(8000)]}}, "ways"),
    (
        "/completion",
        {"grammar": 'root ::= "a"', "grammar_lazy": True, "grammar_triggers": [{"type": 2, "value": "(.*)*q$"}]},
        "regular expression",
    ),
    ("/completion", {"prompt": ["w1"] * 50_000}, "prompts"),
    ("/v1/embeddings", {"input": ["w1"] * 50_000}, "expected up to"),
    ("/v1/chat/completions", {"messages": MESSAGES * 5000}, "expected up to"),
    ("/completion", {"stop": ["x"] * 50_000}, "expected up to"),
    ("/detokenize", {"tokens": [10**9]}, "expected numbers"),
    ("/detokenize", {"tokens": [-1]}, "expected numbers"),
    ("/v1/chat/completions", {"tools": [{"type": "function", "function": {"name": "é" * 20_000}}]}, "bytes"),
]


@pytest.mark.parametrize(("path", "body", "words"), BOMBS, ids=[words for _, _, words in BOMBS])
def test_what_would_compute_without_end(tiny: Path, path: str, body: dict[str, Any], words: str) -> None:
    """Or recurse until a stack ends. The server goes on, and has not grown."""
    with served(tiny, "--embedding") as server:
        status = Path(f"/proc/{server.process.pid}/statm")
        server.post(CHAT, SHORT)
        before = int(status.read_text().split()[1])
        answer = server.post(path, {"prompt": "w1", "n_predict": 4, "messages": MESSAGES, **body}, timeout=20)
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]["message"]
        assert server.post(CHAT, SHORT, timeout=10).status_code == 200
        assert int(status.read_text().split()[1]) - before < 1 << 15  # 128 MiB


def test_prompts_take_a_place_each(tiny: Path) -> None:
    with served(tiny, "--max-queue", "4", "--", "--parallel", "1") as server:
        assert len(server.post("/completion", {"prompt": ["w1", "w2", "w3"], "n_predict": 1}).json()) == 3
        answer = server.post("/completion", {"prompt": ["w1"] * 6, "n_predict": 1})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(server.post, "/completion", {**ENDLESS, "prompt": ["w1"] * 3, "n_predict": 200})
            wait_until(lambda: server.metric(PROCESSING) == 1)
            assert server.post("/completion", {"prompt": ["w1"] * 3, "n_predict": 1}).status_code == 429
            assert server.post("/completion", {"prompt": ["w1"] * 2, "n_predict": 1}).status_code == 200
            assert first.result().status_code == 200


def test_many_that_send_much_and_leave(tiny: Path) -> None:
    with served(tiny) as server:
        large = {"messages": [{"role": "user", "content": "w1 " * 333_000}]}
        for sock in [connect(server, large) for _ in range(300)]:
            sock.close()
        assert server.post(CHAT, SHORT).status_code == 200
        wait_until(lambda: server.metric("pyskip_requests_running") == 0, 30)
