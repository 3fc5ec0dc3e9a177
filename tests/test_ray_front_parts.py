"""What the front of replicas on one machine is made of: when there is one, who gets a request, and what of a message
goes on. No sockets: those are in tests/test_ray_front.py."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from pyskip.ray.messages import Chunks, answer_head, request_head
from pyskip.ray.pool import Nowhere, Pool, Server
from pyskip.ray.run import is_local

# When there is one

OURS = {"import_path": "pyskip.ray:app", "route_prefix": "/", "args": {}}


@pytest.mark.parametrize(
    ("config", "env", "expected"),
    [
        ({"applications": [OURS]}, {}, True),
        ({"applications": [OURS], "http_options": {"host": "127.0.0.1", "port": 1}}, {}, True),
        ({"applications": [OURS]}, {"RAY_ADDRESS": "auto"}, False),
        ({"applications": [OURS], "http_options": {"ssl_keyfile": "k"}}, {}, False),
        ({"applications": [OURS], "proxy_location": "EveryNode"}, {}, False),
        ({"applications": [OURS, OURS]}, {}, False),
        ({"applications": []}, {}, False),
        ({"applications": [{**OURS, "route_prefix": "/a"}]}, {}, False),
        ({"applications": [{**OURS, "import_path": "other:app"}]}, {}, False),
        ({"applications": [{**OURS, "deployments": []}]}, {}, False),
    ],
)
def test_when_there_is_a_front(config: dict[str, Any], env: dict[str, str], expected: bool) -> None:
    assert is_local(config, env) is expected


# Who gets a request


def servers(n: int) -> list[Server]:
    return [Server(str(i), "127.0.0.1", i) for i in range(n)]


def pool_of(members: list[Server], **limits: Any) -> Pool:
    pool = Pool(**{"max_requests": 4, "max_queue": 4, "patience": 5, **limits})
    for server in members:
        pool.join(server)
    return pool


def test_a_conversation_stays_where_it_is() -> None:
    async def placed(pool: Pool, keys: list[str]) -> dict[str, str]:
        found = {}
        for key in keys:
            server = await pool.take(key)
            pool.done(server)
            found[key] = server.name
        return found

    async def main() -> None:
        members, keys = servers(4), [f"conversation {i}" for i in range(400)]
        pool = pool_of(members)
        before = await placed(pool, keys)
        assert before == await placed(pool, keys)
        assert min(Counter(before.values()).values()) > 60  # of 100
        pool.leave(members[0])
        after = await placed(pool, keys)
        assert {key for key in keys if before[key] != after[key]} == {key for key in keys if before[key] == "0"}

    asyncio.run(main())


def test_what_is_no_conversation_is_spread() -> None:
    async def main() -> None:
        members = servers(3)
        pool = pool_of(members)
        for _ in range(6):
            await pool.take("")
        assert [server.n_requests for server in members] == [2, 2, 2]

    asyncio.run(main())


def test_a_full_server_and_a_full_queue() -> None:
    async def main() -> None:
        members = servers(2)
        pool = pool_of(members, max_requests=1, max_queue=2)
        first, second = await pool.take("a"), await pool.take("a")
        assert {first, second} == set(members)
        waiting = [asyncio.create_task(pool.take("a")) for _ in range(2)]
        await asyncio.sleep(0)
        assert pool.load(first) == 2  # its own, and half of those that wait
        with pytest.raises(Nowhere, match="every replica has all the requests") as refused:
            await pool.take("a")
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
        pool.done(second)
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [second]
        third = Server("third", "127.0.0.1", 3)
        pool.join(third)
        assert await pending.pop() is third

    asyncio.run(main())


def test_who_gives_up_wakes_the_next() -> None:
    async def main() -> None:
        (only,) = members = servers(1)
        pool = pool_of(members, max_requests=1)
        await pool.take("")
        first, second = (asyncio.create_task(pool.take("")) for _ in range(2))
        await asyncio.sleep(0)
        pool.done(only)  # wakes the first,
        first.cancel()  # which has gone
        assert await asyncio.wait_for(second, 1) is only

    asyncio.run(main())


def test_nobody_there() -> None:
    async def main() -> None:
        pool = pool_of([], patience=0.01)
        with pytest.raises(Nowhere) as late:
            await pool.take("")
        assert (late.value.status, late.value.code) == (503, "no_replica")
        members = servers(2)
        pool = pool_of(members)
        with pytest.raises(Nowhere) as gone:
            await pool.take("", members)
        assert gone.value.code == "replica_gone"
        pool.close()
        with pytest.raises(Nowhere) as closed:
            await pool.take("")
        assert closed.value.code == "shutting_down"

    asyncio.run(main())


# Chunks


BODY = b"5\r\nab\r\nc\r\n0a\r\n0123456789\r\n1\r\n\n\r\n0\r\n\r\n"


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, len(BODY)])
def test_chunks_go_on_as_they_came(n: int) -> None:
    chunks, got = Chunks(), list[bytes]()
    for i in range(0, len(BODY), n):
        assert not chunks.is_whole
        got.append(chunks.feed(BODY[i : i + n]))
    assert chunks.is_whole
    assert b"".join(got) == BODY
    ends, at = {0}, 0
    for part in (b"5\r\nab\r\nc\r\n", b"0a\r\n0123456789\r\n", b"1\r\n\n\r\n", b"0\r\n\r\n"):
        at += len(part)
        ends.add(at)
    assert {len(b"".join(got[:i])) for i in range(len(got))} <= ends  # whole ones alone


@pytest.mark.parametrize(
    "data", [b"\r\n", b"x\r\n\r\n", b"-1\r\n\r\n", b"1" * 100, b"HTTP/1.1 200 OK and more than a size\r\n"]
)
def test_what_is_no_chunk(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"size|literal"):
        Chunks().feed(data)


# Heads


def test_heads_leave_out_what_is_the_connections() -> None:
    lines = [(b"host", b"localhost"), (b"connection", b"close, x-own"), (b"x-own", b"1"), (b"te", b"trailers")]
    lines += [(b"content-length", b"9"), (b"authorization", b"Bearer k")]

    class Asked:
        method, target, body = "POST", b"/v1/x?a=b", bytearray(b"12")

    Asked.lines = lines  # type: ignore[attr-defined]
    assert request_head(Asked()) == (  # type: ignore[arg-type]
        b"POST /v1/x?a=b HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer k\r\ncontent-length: 2\r\n"
        b"connection: close\r\n\r\n"
    )
    assert answer_head(200, b"OK", lines[:2], stays=True, is_chunked=True) == (
        b"HTTP/1.1 200 OK\r\nhost: localhost\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n"
    )
