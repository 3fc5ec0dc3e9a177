"""Requests that wait for a server's slots: a simulation of what `pyskip serve` does step by step, fed with times that
were measured. Used by capacity.py.

A replica is a queue with as many servers as it has slots (M/G/k, if requests come at random), whose speed depends on
how many are busy: a step decodes a token of every slot that generates, and up to a batch of tokens of prompts besides,
short prompts first. They are rows of one batch, which reads the weights once: what a step takes is a matter of how many
rows it has. A request's first token comes with the step in which its prompt ends.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Arrival", "Outcome", "Service", "arrivals", "quantile", "simulate"]


@dataclass(frozen=True)
class Service:
    """What a replica's steps take. curve: rows of a step -> its seconds, as measured, by rows; between two straight,
    beyond the last in proportion. beside: seconds of a request that are no step's: its connection, its way into tokens,
    the first one's to the client."""

    n_slots: int
    curve: Sequence[tuple[int, float]]
    n_batch: int = 512  # rows of a step, at most
    beside: float = 0.0

    def seconds(self, n_rows: int) -> float:
        at = bisect_left(self.curve, n_rows, key=lambda point: point[0])
        if at == len(self.curve):
            n, seconds = self.curve[-1]
            return seconds * n_rows / n
        n, seconds = self.curve[at]
        if n == n_rows or at == 0:
            return seconds
        before, least = self.curve[at - 1]
        return least + (seconds - least) * (n_rows - before) / (n - before)


@dataclass(frozen=True)
class Arrival:
    at: float  # seconds
    n_prompt: int  # tokens to be computed; those that are cached are none
    n_generated: int


@dataclass(frozen=True)
class Outcome:
    first: float  # seconds from a request's arrival to its first token
    whole: float  # to its last


@dataclass
class _Slot:
    arrival: Arrival
    number: int
    n_prompt: int  # tokens left to compute
    n_left: int  # tokens left to generate
    first: float = 0.0


def arrivals(per_second: float, n: int, lengths: Sequence[tuple[int, int]], seed: int) -> list[Arrival]:
    """n requests that come at random (a Poisson process), each of one of these lengths: prompt, generated."""
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(n):
        at += rng.expovariate(per_second)
        found.append(Arrival(at, *rng.choice(lengths)))
    return found


def simulate(service: Service, requests: Sequence[Arrival]) -> list[Outcome]:
    """What becomes of each request, in their order. They must be in the order of their arrival."""
    outcomes: list[Outcome | None] = [None] * len(requests)
    coming, queue, slots, now = deque(enumerate(requests)), deque[tuple[int, Arrival]](), list[_Slot](), 0.0
    while coming or queue or slots:
        while coming and coming[0][1].at <= now:
            queue.append(coming.popleft())
        while queue and len(slots) < service.n_slots:
            number, arrival = queue.popleft()
            slots.append(_Slot(arrival, number, arrival.n_prompt, arrival.n_generated))
        if not slots:
            now = coming[0][1].at
            continue
        generating = [slot for slot in slots if slot.n_prompt == 0]
        room, n_prompt, ended = service.n_batch - len(generating), 0, []
        for slot in sorted((slot for slot in slots if slot.n_prompt), key=lambda slot: slot.n_prompt):
            n = min(room - n_prompt, slot.n_prompt)
            slot.n_prompt, n_prompt = slot.n_prompt - n, n_prompt + n
            ended += [slot] if n and slot.n_prompt == 0 else []
        now += service.seconds(len(generating) + n_prompt)
        for slot in ended:
            slot.first = now
        for slot in (*generating, *ended):
            slot.n_left -= 1
            if slot.n_left <= 0:
                came = slot.arrival.at - service.beside
                outcomes[slot.number] = Outcome(slot.first - came, now - came)
                slots.remove(slot)
    return [outcome for outcome in outcomes if outcome is not None]


def quantile(values: Sequence[float], q: float) -> float:
    """Straight between the two that are nearest."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
