"""What a replica serves: its service times measured, first-token times under load predicted from them (queueing.py),
and measured, too.

    python benchmarks/capacity.py [MODEL] [--skip SPEC] [--loads 0.5,0.8] [--requests N] [--slots N] [-t N] [-o FILE]
    python benchmarks/capacity.py --plan FILE [--wait SECONDS]

Service times: the seconds of a step with 1 to --slots streams, what a step takes more behind a long prompt, and the
seconds of prompts of the lengths of PROMPTS, each from the server's own clocks without any other request, and what a
request takes beside them; anew after every PART requests, since a machine's speed drifts. A load is a share of what the
replica can do with all slots busy. Requests come at random, with prompts and answers of lengths as in LENGTHS, no two
prompts alike; the prediction is the simulation of the same requests on service times between those before and those
after them. --plan reads such a file and tells how many requests a replica takes before the 95th percentile of the
first-token time is longer than --wait (2 s), and how many replicas a thousand and a million users a day need.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
from queueing import Arrival, Service, arrivals, quantile, simulate

from pyskip.binding.library import BUILD
from pyskip.server.child import Child
from pyskip.system import cpu_name, physical_cores

LENGTHS = ((40, 60), (120, 80), (300, 120), (80, 30))  # tokens of prompt and answer
N_STEPS = 48  # tokens of a stream that is measured
SHORT = 4  # tokens of its prompt
PROMPTS = (16, 48, 128, 384)  # tokens of those that are measured
WARM = 3  # requests at first that are not counted
PART = 25  # requests of a load between which service times are measured anew
USERS = (1_000, 1_000_000)  # a day
PER_USER = 10  # requests of a user's day
PEAK = 3.0  # the busiest hour, in the mean of the day
WORDS = ("time", "people", "water", "house", "story", "river", "light", "music", "garden", "bread", "stone", "winter")


def prompt(rng: random.Random, n: int) -> str:
    """About n tokens of no sense, unlike any other."""
    return " ".join(rng.choice(WORDS) for _ in range(n))


# Made once: a client of its own for each request would take the server's cores for longer than a step. A connection for
# each, since the server has a thread for one that is kept.
CLIENT = httpx.Client(timeout=None, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


def ask(url: str, text: str, n: int, more: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Seconds to the first token, and the server's timings. Raises SystemExit."""
    body = {"prompt": text, "n_predict": n, "temperature": 0, "ignore_eos": True, "stream": True, **more}
    began, first, timings = time.perf_counter(), 0.0, {}
    with CLIENT.stream("POST", f"{url}/completion", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"capacity: the server answers {answer.status_code} {answer.read().decode()[:200]}")
        for line in answer.iter_lines():
            if line.startswith("data: {") and (not first or '"timings"' in line):
                event = json.loads(line[6:])
                first = first or (time.perf_counter() - began if event.get("tokens") or event.get("content") else 0.0)
                timings = event.get("timings", timings)
    return first or time.perf_counter() - began, timings


def service_times(url: str, n_slots: int, more: dict[str, Any], n_rounds: int) -> Service:
    rng = random.Random(1)
    for _ in range(WARM):
        ask(url, prompt(rng, 16), 8, more)

    def steps(n: int, n_prompt: int) -> float:
        """Seconds of a step of n streams, each with so many tokens before it and half of N_STEPS."""
        samples = []
        for _ in range(n_rounds):
            texts = [prompt(rng, n_prompt) for _ in range(n)]
            with ThreadPoolExecutor(n) as pool:
                answers = list(pool.map(lambda text: ask(url, text, N_STEPS, more), texts))
            samples.append(statistics.median(timings["predicted_per_token_ms"] for _, timings in answers) / 1000)
        return statistics.median(samples)

    streams = [(n, steps(n, SHORT)) for n in range(1, n_slots + 1)]
    per_cell, curve = without_context(streams, steps(1, PROMPTS[-1]))
    beside = []
    for n in (n for n in PROMPTS if n > n_slots):
        told = [ask(url, prompt(rng, n), 2, more) for _ in range(n_rounds)]
        n_rows = round(statistics.median(timings["prompt_n"] for _, timings in told))
        curve.append((n_rows, statistics.median(timings["prompt_ms"] for _, timings in told) / 1000))
        beside += [first - timings["prompt_ms"] / 1000 for first, timings in told]
    return Service(n_slots, rising(curve), beside=max(0.0, statistics.median(beside)), per_cell=per_cell)


def without_context(streams: list[tuple[int, float]], longest: float) -> tuple[float, list[tuple[int, float]]]:
    """What a token takes for each token before it, of steps behind short prompts and one stream's behind the longest;
    and the steps without that. It is at most half of any step: noise can say more than a step takes."""
    n_cells = SHORT + N_STEPS / 2
    most = min(seconds / n for n, seconds in streams) / 2 / n_cells
    per_cell = min(max(0.0, (longest - streams[0][1]) / (PROMPTS[-1] - SHORT)), most)
    return per_cell, [(n, seconds - n * per_cell * n_cells) for n, seconds in streams]


def rising(curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """More rows take no less: what says otherwise is noise."""
    found: list[tuple[int, float]] = []
    for n, seconds in sorted(curve):
        if not found or n > found[-1][0]:
            found.append((n, max(seconds, found[-1][1] if found else 0.0)))
    return found


def mean(services: Sequence[Service]) -> Service:
    """Of measurements of the same rows."""
    curves = zip(*(service.curve for service in services), strict=True)
    curve = [(points[0][0], statistics.mean(seconds for _, seconds in points)) for points in curves]
    beside, per_cell = (statistics.mean(getattr(one, name) for one in services) for name in ("beside", "per_cell"))
    return replace(services[0], curve=curve, beside=beside, per_cell=per_cell)


def capacity(service: Service) -> float:
    """Requests a second with all slots busy."""
    n_prompt, n_generated = (statistics.mean(length) for length in zip(*LENGTHS, strict=True))
    n_rows, seconds = service.curve[-1]
    step = service.seconds(service.n_slots) / service.n_slots + service.per_cell * (n_prompt + n_generated / 2)
    return 1 / (n_prompt * seconds / n_rows + (n_generated - 1) * step)


def load_run(url: str, requests: list[Arrival], more: dict[str, Any], seed: int) -> tuple[list[float], list[Arrival]]:
    """First-token times of requests that come when they should, and what they were in tokens."""
    rng, began = random.Random(seed), time.perf_counter()
    texts = [prompt(rng, request.n_prompt) for request in requests]
    found: list[tuple[float, dict[str, Any]]] = [(0.0, {})] * len(requests)

    def one(i: int) -> None:
        found[i] = ask(url, texts[i], requests[i].n_generated, more)

    threads = []
    for i, request in enumerate(requests):
        time.sleep(max(0.0, began + request.at - time.perf_counter()))
        threads.append(threading.Thread(target=one, args=(i,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    counted = [
        Arrival(request.at, timings["prompt_n"], timings["predicted_n"])
        for request, (_, timings) in zip(requests, found, strict=True)
    ]
    return [first for first, _ in found], counted


def percentiles(firsts: list[float]) -> dict[str, float]:
    return {"p50": quantile(firsts, 0.5), "p95": quantile(firsts, 0.95)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    more = {"skip": args.skip, "cache_prompt": False}
    n_ctx = ["-c", str(args.context)] if args.context else []
    server = Child([args.model, "-t", str(args.threads), *n_ctx, "--", "--parallel", str(args.slots)])
    rows, services = [], []
    try:
        services.append(service_times(server.url, args.slots, more, args.rounds))
        for load in map(float, args.loads.split(",")):
            parts: list[dict[str, Any]] = []
            while (n_left := args.requests - sum(len(part["measured"]) for part in parts)) > 0:
                per_second, seed = load * capacity(services[-1]), int(1000 * load) + len(parts)
                wanted = arrivals(per_second, min(PART, n_left), LENGTHS, seed)
                measured, counted = load_run(server.url, wanted, more, seed)
                services.append(service_times(server.url, args.slots, more, args.rounds))
                predicted = [outcome.first for outcome in simulate(mean(services[-2:]), counted)]
                parts.append({"per_second": per_second, "measured": measured, "predicted": predicted})
                told = ", ".join(f"{rows} {seconds * 1000:.1f}" for rows, seconds in services[-1].curve)
                print(f"capacity: load {load}, {n_left} to go; ms of rows: {told}", file=sys.stderr, flush=True)
            rows.append({"load": load, **summary(parts), "parts": parts})
        service = mean(services)
    finally:
        server.stop()
    made = {"build": BUILD, "cpu": cpu_name(), "date": datetime.date.today().isoformat(), "n_threads": args.threads}
    return {"model": args.model, "skip": args.skip, "service": asdict(service), "rows": rows, **made}


def summary(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a load's requests, all together."""
    sides = {side: [first for part in parts for first in part[side]] for side in ("measured", "predicted")}
    found = {side: percentiles(firsts) for side, firsts in sides.items()}
    return {
        "per_second": statistics.mean(part["per_second"] for part in parts),
        "n": len(sides["measured"]),
        **found,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Of first-token times, measured beside predicted."""
    lines = [f"{'load':>5} {'requests/s':>10} {'of 100':>6} {'measured':>9} {'predicted':>9} {'ratio':>6}"]
    for row in rows:
        for share in ("p50", "p95"):
            measured, predicted = row["measured"][share], row["predicted"][share]
            lines.append(
                f"{row['load']:>5} {row['per_second']:>10.2f} {share[1:]:>6} {measured:>7.3f} s {predicted:>7.3f} s "
                f"{predicted / measured:>6.2f}"
            )
    return "\n".join(lines)


def plan(service: Service, wait: float) -> dict[str, Any]:
    """The rate at which the 95th percentile comes to `wait`, by halving, and replicas for USERS."""
    low, high = 0.0, capacity(service)
    for _ in range(12):
        middle = (low + high) / 2
        firsts = [outcome.first for outcome in simulate(service, arrivals(middle, 4000, LENGTHS, seed=5))]
        low, high = (middle, high) if quantile(firsts, 0.95) <= wait else (low, middle)
    peaks = {n: n * PER_USER * PEAK / 86400 for n in USERS}
    needed = {str(n): max(1, -int(-peak // low)) if low else None for n, peak in peaks.items()}
    return {"per_second": low, "capacity": capacity(service), "replicas": needed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--skip", default="off", help="of every request")
    parser.add_argument("--loads", default="0.5,0.8", help="shares of what the replica can do")
    parser.add_argument("--requests", type=int, default=300, help="of each load")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="samples of each service time")
    parser.add_argument("--context", type=int, help="tokens of a request's context")
    parser.add_argument("-t", "--threads", type=int, default=physical_cores())
    parser.add_argument("--plan", type=Path, metavar="FILE.json", help="what a file of measurements means for users")
    parser.add_argument("--wait", type=float, default=2.0, help="seconds that a first token may take, for 95 of 100")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    if args.plan:
        document = json.loads(args.plan.read_text())
        print(json.dumps({"skip": document["skip"], **plan(Service(**document["service"]), args.wait)}))
        return 0
    document = measure(args)
    print(table(document["rows"]))
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
