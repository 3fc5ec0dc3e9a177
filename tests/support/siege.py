"""What a server meets: 200 clients at a time with policies of their own, others that vanish, dawdle, or talk nonsense.
Used by tests/faults/run.py."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import httpx

__all__ = ["CHAT", "Served", "besiege"]

CHAT = "/v1/chat/completions"
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1e308,
    10**400,
    "",
    "x" * 5000,
    [],
    [[]],
    {},
    [{}],
    {"a": {"b": []}},
    "\x00",
    "\ud800",
)


class Served:
    """The server as a process of its own, on a free port of the loopback."""

    def __init__(self, model: Path) -> None:
        command = ["serve", str(model), "-t", "1", "-c", "512", "--port", "0", "--timeout", "5", "--max-queue", "1000"]
        command += ["--", "--no-cache-prompt"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyskip", *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert self.process.stderr
        for line in self.process.stderr:
            if " at http://" in line:
                self.url = line.split(" at ")[1].split(";")[0]
                self.port = int(self.url.rpartition(":")[2])
                return
        raise RuntimeError("the server did not start")

    def stop(self) -> tuple[int, str]:
        """Its exit code, and what it said meanwhile."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=120)
        return self.process.returncode, said

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def besiege(model: Path, policies: Sequence[str], n: int, seed: int) -> tuple[str, str, tuple[str, ...]]:
    """What was done, what came of it, what was wrong."""
    bodies = [
        {"messages": [{"role": "user", "content": text}], "skip": skip, "max_tokens": 24, "temperature": 0}
        for skip in policies
        for text in ("w1 w2", "w3 " * 60)
    ]
    alone = []
    for body in bodies:
        served = Served(model)
        answer = httpx.post(served.url + CHAT, json=body, timeout=60)
        answer.raise_for_status()
        alone.append(answer.json()["choices"][0]["message"]["content"])
        served.stop()
    served = Served(model)
    siege = Siege(served, bodies, alone, Random(seed))
    asyncio.run(siege.run(n))
    status, said = served.stop()
    if status or said:
        siege.wrong.append(f"the server ended with {status}: {said[-300:]}")
    done = f"{n} requests at a time under {len(policies)} policies, half of them streams, beside {siege.n_others(n)}"
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(siege.statuses.items()))
    came = (
        f"{siege.n_same} of {n} answers are those that a server just started gives; malformed ones "
        f"in OpenAI's shape, {statuses}; then it answers as before and ends with {status}"
    )
    return done, came, tuple(siege.wrong)


class Siege:
    def __init__(self, served: Served, bodies: list[dict[str, Any]], alone: list[str], rng: Random) -> None:
        self.served, self.bodies, self.alone, self.rng = served, bodies, alone, rng
        self.wrong: list[str] = []
        self.statuses: Counter[int] = Counter()
        self.n_same = 0

    def n_others(self, n: int) -> str:
        return f"{n // 4} clients that vanish, {n // 10} that dawdle and {n} malformed bodies"

    async def run(self, n: int) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=self.served.url, timeout=300, limits=limits) as client:
            tasks = [self._ask(client, i) for i in range(n)]
            tasks += [self._vanish() for _ in range(n // 4)]
            tasks += [self._dawdle() for _ in range(n // 10)]
            tasks += [self._babble(client) for _ in range(n)]
            self.rng.shuffle(tasks)
            await asyncio.gather(*tasks)
            await self._ask(client, 0)
            self.n_same -= 1
            metrics = (await client.get("/metrics")).text
            for gauge in ("pyskip_queue_depth 0\n", "pyskip_requests_running 0\n"):
                if gauge not in metrics:
                    self.wrong.append(f"no {gauge} when all was over")

    async def _ask(self, client: httpx.AsyncClient, i: int) -> None:
        which = i % len(self.bodies)
        stream = i // len(self.bodies) % 2 == 1
        answer = await client.post(CHAT, json={**self.bodies[which], "stream": stream})
        if answer.status_code != 200:
            self.wrong.append(f"request {i}: {answer.status_code} {answer.text[:200]}")
            return
        if stream:
            events = [line[6:] for line in answer.text.split("\n") if line.startswith("data: {")]
            text = "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events)
        else:
            text = answer.json()["choices"][0]["message"]["content"]
        if text == self.alone[which]:
            self.n_same += 1
        else:
            self.wrong.append(f"request {i}, {self.bodies[which]['skip']}: {text!r}, alone {self.alone[which]!r}")

    async def _connect(self, body: bytes, length: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.served.port)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        writer.write(f"{head}{length}\r\n\r\n".encode() + body)
        return reader, writer

    async def _vanish(self) -> None:
        body = json.dumps(
            {**self.rng.choice(self.bodies), "max_tokens": 400, "stream": self.rng.random() < 0.5}
        ).encode()
        _, writer = await self._connect(body, len(body))
        await asyncio.sleep(self.rng.uniform(0, 2))
        writer.transport.abort()

    async def _dawdle(self) -> None:
        """A byte now and then: until the server's patience ends."""
        reader, writer = await self._connect(b"{", 1000)
        with suppress(ConnectionError):
            for _ in range(40):
                writer.write(b" ")
                await writer.drain()
                if reader.at_eof():
                    break
                await asyncio.sleep(0.25)
            answer = await reader.read()
            if answer and not answer.startswith(b"HTTP/1.1 408"):
                self.wrong.append(f"to a client that dawdles: {answer[:200]!r}")
        writer.close()

    async def _babble(self, client: httpx.AsyncClient) -> None:
        raw = self._malformed()
        try:
            answer = await client.post(CHAT, content=raw, headers={"Content-Type": "application/json"})
        except httpx.TransportError as error:
            self.wrong.append(f"to {raw[:200]!r}: {error!r}")
            return
        self.statuses[answer.status_code] += 1
        try:
            told = answer.json()["error"]
            if not 400 <= answer.status_code < 500 or set(told) != {"message", "type", "param", "code"}:
                raise KeyError
        except (KeyError, ValueError):
            if answer.status_code != 200:  # what was changed did not matter
                self.wrong.append(f"to {raw[:200]!r}: {answer.status_code} {answer.text[:200]}")

    def _malformed(self) -> bytes:
        rng = self.rng
        body = dict(rng.choice(self.bodies))
        for _ in range(rng.randint(1, 3)):
            fields = ("messages", "skip", "max_tokens", "temperature", "stop", "stream", "top_k", "top_p", "tools", "n")
            more = ("response_format", "tool_choice", "logit_bias", "seed", "stream_options", "grammar", "model")
            body[rng.choice((*fields, *more))] = rng.choice(ODD)
        raw = json.dumps(body).encode()
        kind = rng.randrange(6)
        if kind == 0:
            raw = raw[: rng.randrange(len(raw))]
        elif kind == 1:
            at = rng.randrange(len(raw))
            raw = raw[:at] + rng.randbytes(3) + raw[at + 1 :]
        elif kind == 2:
            raw = b'{"messages": ' + b"[" * rng.choice((10, 1000, 100_000))
        elif kind == 3:
            raw = raw + b" " * (1 << 20)
        return raw
