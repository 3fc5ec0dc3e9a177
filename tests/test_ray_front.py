"""The front of replicas on one machine (pyskip/ray/front.py and what is under it), over sockets, before servers that
are made here. No Ray: with it tests/test_ray.py tries the whole."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import httpx
import pytest
from serving import free_port

from pyskip.errors import PyskipError
from pyskip.ray.directory import Membership
from pyskip.ray.local import LocalFront

pytestmark = pytest.mark.loopback

Behaviour = Callable[[socket.socket, bytes], None]


def whole(connection: socket.socket) -> bytes:
    """A request, with its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    n = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < n:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def upstream(behave: Behaviour) -> Iterator[str]:
    """A server that gets each request whole and answers as it likes, then closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        def one(connection: socket.socket) -> None:
            with connection:
                if request := whole(connection):
                    behave(connection, request)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def echo(connection: socket.socket, request: bytes) -> None:
    head, _, body = request.partition(b"\r\n\r\n")
    told = json.dumps({"head": head.decode(), "body": body.decode()}).encode()
    connection.sendall(
        b"HTTP/1.1 201 Made\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(told) + told
    )


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def served(stack: ExitStack, *behaviours: Behaviour, **limits: int) -> tuple[str, int, list[Membership]]:
    """The front's host and port, with replicas that behave so."""
    address = ("127.0.0.1", free_port())
    bounds = {"max_requests": 8, "max_queue": 8, "max_body": 1000, **limits}
    front = LocalFront(address[0], address[1], **bounds)
    stack.callback(front.close)
    members = [Membership(str(front.directory), stack.enter_context(upstream(one))) for one in behaviours]
    for member in members:
        stack.callback(member.leave)
        assert member.load() == 0  # so that it is there
    return *address, members


def said(address: tuple[str, int], data: bytes) -> bytes:
    """All that comes back until the front closes."""
    with closing(socket.create_connection(address, 10)) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def test_a_request_and_its_answer(stack: ExitStack) -> None:
    host, at, _ = served(stack, echo)
    with httpx.Client(base_url=f"http://{host}:{at}", verify=False) as client:
        for _ in range(2):  # over one connection
            answer = client.post(
                "/v1/x?a=b", json={"a": "b" * 500}, headers={"X-Mine": "y", "Connection": "keep-alive"}
            )
            assert (answer.status_code, answer.reason_phrase) == (201, "Made")
            assert answer.headers["connection"] == "keep-alive"
            told = answer.json()
            assert told["head"].startswith("POST /v1/x?a=b HTTP/1.1\r\n")
            assert "x-mine: y" in told["head"]
            assert told["head"].endswith("connection: close")
            assert json.loads(told["body"]) == {"a": "b" * 500}
        assert client.get("/health").json()["body"] == ""


def test_a_body_in_chunks_and_two_requests_at_once(stack: ExitStack) -> None:
    host, at, _ = served(stack, echo)
    post = (
        b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        + chunk(b"12")
        + chunk(b"3")
        + b"0\r\n\r\n"
    )
    got = said((host, at), post + b"GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Made\r\n")
    assert b'"body": "123"' in got
    assert got.index(b"POST /a") < got.index(b"GET /b")


def test_a_client_of_http_1_0_gets_no_chunks(stack: ExitStack) -> None:
    def behave(connection: socket.socket, request: bytes) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"one ") + chunk(b"two") + b"0\r\n\r\n"
        )

    host, at, _ = served(stack, behave)
    head, _, body = said((host, at), b"GET / HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body == b"one two"


def test_the_head_alone(stack: ExitStack) -> None:
    def behave(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n")

    host, at, _ = served(stack, behave)
    with httpx.Client(base_url=f"http://{host}:{at}", verify=False) as client:
        for _ in range(2):
            answer = client.head("/")
            assert (answer.status_code, answer.headers["content-length"], answer.content) == (200, "7", b"")


def test_a_stream_comes_as_it_is_written(stack: ExitStack) -> None:
    seen = threading.Semaphore(0)

    def behave(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(20):
            connection.sendall(chunk(b"data: %d\n\n" % i))
            assert seen.acquire(timeout=5)  # the client has it before there is another one
        connection.sendall(b"0\r\n\r\n")

    host, at, _ = served(stack, behave)
    with httpx.Client(base_url=f"http://{host}:{at}", verify=False) as client, client.stream("GET", "/") as stream:
        got = []
        for line in stream.iter_lines():
            if line:
                got.append(line)
                seen.release()
    assert got == [f"data: {i}" for i in range(20)]


@pytest.mark.parametrize("events", [True, False])
def test_a_replica_that_dies_while_it_writes(stack: ExitStack, events: bool) -> None:
    kind = b"text/event-stream" if events else b"application/json"

    def behave(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind)
        connection.sendall(chunk(b"data: 1\n\n") + b"20\r\nda")  # in the middle of the next

    host, at, _ = served(stack, behave)
    with httpx.Client(base_url=f"http://{host}:{at}", verify=False) as client:
        if not events:
            with pytest.raises(httpx.RemoteProtocolError):
                client.get("/")
            return
        lines = client.get("/").text.split("\n\n")
    assert lines[0] == "data: 1"
    assert lines[1].startswith("data: {")  # what came of the next is left out
    assert json.loads(lines[1][6:])["error"]["code"] == "replica_gone"
    assert lines[2:] == [""]


def test_a_replica_that_dies_before_it_writes(stack: ExitStack) -> None:
    n_asked = []
    host, at, _ = served(stack, lambda connection, request: n_asked.append(1))
    got = said((host, at), b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    assert got.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nretry-after: 1\r\n" in got
    assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == "replica_gone"
    assert n_asked == [1]  # it is not handed on: the next replica need not die of it


def test_a_replica_where_nothing_listens_is_passed_over(stack: ExitStack) -> None:
    address = ("127.0.0.1", free_port())
    front = LocalFront(*address, max_requests=8, max_queue=8, max_body=1000)
    stack.callback(front.close)
    dead = Membership(str(front.directory), f"http://127.0.0.1:{free_port()}")
    stack.callback(dead.leave)
    assert dead.load() == 0
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", verify=False) as client:
        assert client.get("/").json()["error"]["code"] == "replica_gone"
        alive = Membership(str(front.directory), stack.enter_context(upstream(echo)))
        stack.callback(alive.leave)
        assert alive.load() == 0
        for i in range(20):
            assert client.post("/", json={"prompt_cache_key": str(i)}).status_code == 201
        alive.leave()


def test_turns_reach_the_same_replica_and_who_leaves_gets_none(stack: ExitStack) -> None:
    def named(name: bytes) -> Behaviour:
        return lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + name)

    host, at, members = served(stack, named(b"a"), named(b"b"))
    with httpx.Client(base_url=f"http://{host}:{at}", verify=False) as client:

        def ask(i: int) -> str:
            return client.post("/", json={"messages": [{"role": "user", "content": f"w{i}"}]}).text

        first = [ask(i) for i in range(40)]
        assert set(first) == {"a", "b"}
        assert [ask(i) for i in range(40)] == first
        members[0].leave()
        assert {ask(i) for i in range(40)} == {"b"}


def test_requests_are_refused(stack: ExitStack) -> None:
    host, at, _ = served(stack, echo)
    for data, status in (
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000, 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"x" * 600) * 2, 413),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: %b\r\n" % (b"y" * 1000) * 600, 431),
    ):
        got = said((host, at), data)
        assert got.split(b" ")[1] == b"%d" % status, (data[:60], got)
        assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["message"]


def test_a_refusal_waits_for_the_answer_before_it(stack: ExitStack) -> None:
    host, at, _ = served(stack, echo)
    got = said((host, at), b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n")
    assert [line[9:12] for line in got.split(b"HTTP/1.1 ")[1:] for line in [b"HTTP/1.1 " + line]] == [b"201", b"400"]


def test_more_than_the_replicas_take(stack: ExitStack) -> None:
    go = threading.Event()

    def behave(connection: socket.socket, request: bytes) -> None:
        assert go.wait(10)
        echo(connection, request)

    host, at, (member,) = served(stack, behave, max_requests=2, max_queue=3)
    url = f"http://{host}:{at}"
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(httpx.get, url, verify=False, timeout=20) for _ in range(5)]
        while member.load() < 5:
            pass
        refused = httpx.get(url, verify=False)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert refused.headers["retry-after"] == "1"
        go.set()
        assert [one.result().status_code for one in asked] == [201] * 5
    assert member.load() == 0


def test_a_client_that_goes_takes_its_request_along(stack: ExitStack) -> None:
    gone = threading.Event()

    def behave(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"one"))
        try:
            while connection.recv(100):
                pass
        except ConnectionResetError:
            pass
        gone.set()

    host, at, (member,) = served(stack, behave)
    with closing(socket.create_connection((host, at), 10)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(1000)
        assert member.load() == 1
    assert gone.wait(10)
    assert member.load() == 0


def test_a_slow_client_slows_the_replica(stack: ExitStack) -> None:
    """What it does not read yet is not kept here."""
    sent, n = [0], 64

    def behave(connection: socket.socket, request: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (n << 20))
        for _ in range(n):
            connection.sendall(bytes(1 << 20))
            sent[0] += 1

    host, at, _ = served(stack, behave)
    with closing(socket.create_connection((host, at), 10)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        before = -1
        while before != sent[0]:
            before = sent[0]
            threading.Event().wait(0.3)
        assert sent[0] < n // 2
        got = 0
        while part := connection.recv(1 << 20):
            got += len(part)
    assert got > n << 20


def test_after_the_end_began(stack: ExitStack) -> None:
    go, begun = threading.Event(), threading.Event()

    def behave(connection: socket.socket, request: bytes) -> None:
        begun.set()
        assert go.wait(10)
        echo(connection, request)

    address = ("127.0.0.1", free_port())
    front = LocalFront(*address, max_requests=8, max_queue=8, max_body=1000)
    stack.callback(front.close)
    member = Membership(str(front.directory), stack.enter_context(upstream(behave)))
    stack.callback(member.leave)
    url = f"http://127.0.0.1:{address[1]}"
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(httpx.get, url, verify=False)
        assert begun.wait(10)
        front.refuse()
        refused = httpx.get(url, verify=False)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        go.set()
        assert asked.result().status_code == 201


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(PyskipError, match=rf"cannot listen at 127\.0\.0\.1:{number} .*: choose another --port"):
            LocalFront("127.0.0.1", number, max_requests=8, max_queue=8, max_body=1000)
