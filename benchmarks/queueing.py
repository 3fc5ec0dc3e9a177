"""Requests that wait for a server's slots: a simulation of what `pyskip serve` does step by step, fed with times that
were measured. Used by capacity.py.

A replica is a queue with as many servers as it has slots (M/G/k, if requests come at random), whose speed depends on
how many are busy: a step decodes a token of every slot that generates, and up to a batch of tokens of prompts besides,
short prompts first. What it takes is a matter of how many rows are computed together, reading the weights once. A
request's first token comes with the step in which its prompt ends.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["Arrival", "Outcome", "Service", "arrivals", "quantile", "simulate"]


@dataclass(frozen=True)
class Service:
    """What a replica's steps take.

    curve: rows of a step -> its seconds, as measured, by rows; between two straight, beyond the last in proportion.
    per_cell: seconds that a generated token's attention takes for each token before it; in the curve they are left out.
    beside: seconds of a request that are no step's: its connection, its way into tokens, the first one's to the client.
    n_batch: rows of a step, at most. has_pool: one cache for all slots."""

    n_slots: int
    curve: Sequence[tuple[int, float]]
    n_batch: int = 512
    per_cell: float = 0.0
    beside: float = 0.0
    has_pool: bool = False

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
    place: int  # of n_slots
    arrival: Arrival
    number: int
    n_prompt: int  # tokens left to compute
    n_left: int  # tokens left to generate
    n_before: int  # tokens in the cache once the prompt is
    first: float = 0.0


def arrivals(per_second: float, n: int, lengths: Sequence[tuple[int, int]], seed: int) -> list[Arrival]:
    """n requests that come at random (a Poisson process), each of one of these lengths: prompt, generated."""
    rng, at, found = random.Random(seed), 0.0, []
    for _ in range(n):
        at += rng.expovariate(per_second)
        found.append(Arrival(at, *rng.choice(lengths)))
    return found


def parts(rows: Sequence[tuple[int, int]], n_batch: int) -> list[int]:
    """Rows of the batches that a step is computed in. rows: place and rows of each slot, in the order in which they are
    in the step. Each slot has a cache of its own, so that llama.cpp takes as many rows of each, of slots whose places
    follow each other: llama_batch_allocr::split_equal()."""
    if len(rows) == 1 + rows[-1][0] - rows[0][0] and all(n == 1 for _, n in rows):
        return [len(rows)]
    left, found = dict(rows), list[int]()
    while left:
        together = list[int]()
        for place in left:
            if not together or place == together[-1] + 1:
                together.append(place)
        n = min(max(1, n_batch // len(together)), *(left[place] for place in together))
        found.append(n * len(together))
        left = {place: n_rows - n * (place in together) for place, n_rows in left.items()}
        left = {place: n_rows for place, n_rows in left.items() if n_rows}
    return found


def _place(busy: Collection[int], used: Sequence[float]) -> int:
    """That leaves the fewest gaps between those that are busy, and of those the one used the longest ago:
    native/server/slots.h. used: when each was, the last time."""

    def n_runs(place: int) -> int:
        taken = {*busy, place}
        return sum(one - 1 not in taken for one in taken)

    free = [place for place in range(len(used)) if place not in busy]
    return min(free, key=lambda place: (n_runs(place), used[place]))


def simulate(service: Service, requests: Sequence[Arrival]) -> list[Outcome]:
    """What becomes of each request, in their order. They must be in the order of their arrival."""
    outcomes: list[Outcome | None] = [None] * len(requests)
    coming, queue, slots, now = deque(enumerate(requests)), deque[tuple[int, Arrival]](), list[_Slot](), 0.0
    used = [0.0] * service.n_slots
    while coming or queue or slots:
        while coming and coming[0][1].at <= now:
            queue.append(coming.popleft())
        while queue and len(slots) < service.n_slots:
            number, arrival = queue.popleft()
            place = _place({slot.place for slot in slots}, used)
            slots.append(_Slot(place, arrival, number, arrival.n_prompt, arrival.n_generated, arrival.n_prompt))
        if not slots:
            now = coming[0][1].at
            continue
        rows = _step(service, slots)
        batches = [sum(n for _, n in rows)] if service.has_pool else parts(rows, service.n_batch)
        cells = sum(slot.n_before for slot in slots if slot.first)
        now += sum(map(service.seconds, batches)) + cells * service.per_cell
        for slot in [slot for slot in slots if slot.n_prompt == 0]:
            slot.first = slot.first or now
            slot.n_before += 1
            slot.n_left -= 1
            if slot.n_left <= 0:
                came = slot.arrival.at - service.beside
                outcomes[slot.number] = Outcome(slot.first - came, now - came)
                slots.remove(slot)
                used[slot.place] = now
    return [outcome for outcome in outcomes if outcome is not None]


def _step(service: Service, slots: Sequence[_Slot]) -> list[tuple[int, int]]:
    """Place and rows of each slot in the next step: a token of those that generate, and as much as there is room for of
    prompts, short ones first, which it takes off them."""
    rows = [(slot.place, 1) for slot in sorted(slots, key=lambda slot: slot.place) if slot.n_prompt == 0]
    room = service.n_batch - len(rows)
    for slot in sorted((slot for slot in slots if slot.n_prompt), key=lambda slot: slot.n_prompt):
        n = min(room, slot.n_prompt)
        slot.n_prompt, room = slot.n_prompt - n, room - n
        rows += [(slot.place, n)] if n else []
    return rows


def quantile(values: Sequence[float], q: float) -> float:
    """Straight between the two that are nearest."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
