"""Thousands of requests to a server from a few clients: the same answers throughout, and flat memory. Used by
tests/faults/run.py."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
from siege import CHAT, Served

__all__ = ["flood"]

N_CLIENTS = 4
EVERY = 50  # requests between two looks at its memory


class Flood:
    def __init__(self, served: Served, policies: Sequence[str], n: int, tell: Callable[[str], None]) -> None:
        self.served, self.policies, self.n, self.tell = served, policies, n, tell
        self.first: dict[tuple[str, int], str] = {}
        self.at: list[int] = []
        self.rss: list[int] = []  # bytes
        self.wrong: list[str] = []
        self._numbers, self._lock = itertools.count(), threading.Lock()

    def run(self) -> None:
        threads = [threading.Thread(target=self._client) for _ in range(N_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self) -> None:
        with httpx.Client(base_url=self.served.url, timeout=120, verify=False) as client:
            while (i := next(self._numbers)) < self.n and len(self.wrong) < 10:
                try:
                    self._ask(client, i)
                except httpx.TransportError as error:
                    self.wrong.append(f"request {i}: {error!r}")
                if i % EVERY == EVERY - 1:
                    self._look(i)

    def _ask(self, client: httpx.Client, i: int) -> None:
        """Whole and streamed answers by turns, and now and then one that is refused."""
        policy, prompt, is_streamed = self.policies[i % len(self.policies)], i // 4 % 5, i // 20 % 2 == 1
        body = {"messages": [{"role": "user", "content": f"w{prompt} w3"}], "max_tokens": 4, "temperature": 0}
        is_bad = i % 25 == 24
        answer = client.post(CHAT, json={**body, "stream": is_streamed, "skip": "bogus" if is_bad else policy})
        if is_bad:
            if answer.status_code != 400:
                self.wrong.append(f"request {i}: {answer.status_code}, expected 400")
            return
        if is_streamed:
            events = [json.loads(line[6:]) for line in answer.text.split("\n") if line.startswith("data: {")]
            text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
        else:
            text = answer.json()["choices"][0]["message"]["content"]
        with self._lock:
            before = self.first.setdefault((policy, prompt), text)
        if before != text:
            self.wrong.append(f"request {i}, {policy}: {text!r}, before {before!r}")

    def _look(self, i: int) -> None:
        with self._lock:
            self.at.append(i)
            self.rss.append(self.served.rss_bytes())
            if i % 1000 == 999:
                self.tell(f"served: {i + 1}/{self.n}, {self.rss[-1] >> 20} MiB")

    def slope(self) -> float:
        """Bytes a request, after the first fifth."""
        warm = len(self.at) // 5
        return float(np.polyfit(self.at[warm:], self.rss[warm:], 1)[0])


def flood(
    model: Path, policies: Sequence[str], n: int, tell: Callable[[str], None]
) -> tuple[str, str, tuple[str, ...]]:
    """What was done, what came of it, what was wrong."""
    served = Served(model)
    run = Flood(served, policies, n, tell)
    run.run()
    slope = run.slope()
    status, said = served.stop()
    if status or said:
        run.wrong.append(f"the server ended with {status}: {said[-300:]}")
    if slope >= 1024:
        run.wrong.append(f"memory grows by {slope:.0f} bytes a request")
    done = f"{n:,} by {N_CLIENTS} clients, {len(policies)} policies in turn, half of them streams, each 25th refused"
    came = f"{slope:.0f} bytes of its memory a request after the first fifth, {run.rss[-1] >> 20} MiB at the end"
    return done, f"{came}; {len(run.first)} answers, each the same throughout", tuple(run.wrong)
