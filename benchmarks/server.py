"""What the server makes of the machine: tokens/s of one stream and of several at a time, beside llama.cpp's own server.

    python benchmarks/server.py [MODEL] [--llama-server PATH] [--skip SPEC] [--profile FILE] [--streams 1,4]
                                [-n N] [-r ROUNDS] [-t N] [--kernels fast|upstream] [-o FILE.json]

Arms, in turns: `library`, pyskip.Llama decoding N tokens in this process, as llama-bench does (one stream only);
`llama-server`, an unpatched one given by its path; `server`, pyskip serve, requests with `skip: off`; and, with --skip,
the same server with that specification. All have the same model, threads and context, and a slot for each stream;
what is not asked idles. Each stream asks for N tokens, greedy, whatever ends the text, behind a short prompt of its
own.

The rate is all tokens that were decoded, over the time from the first stream's first token to the last stream's end, by
the servers' own clocks for one stream and the client's for several.
"""

from __future__ import annotations

import argparse
import datetime
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

import pyskip
from pyskip.binding.library import BUILD
from pyskip.models import resolve
from pyskip.system import cpu_name, physical_cores

PROMPTS = (
    "A long story about a ship that is lost at sea begins like this:",
    "The history of bread, from the first grains to the modern bakery:",
    "def parse_arguments(argv):",
    "Letter to a friend who has moved to another country. Dear Anna,",
)
N_CTX = 1024  # of a stream


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def server(name: str, command: list[str], port: int) -> Iterator[str]:
    """Its address, once it answers. Raises SystemExit if it does not in ten minutes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 600
        while True:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"server: {name} did not start: {' '.join(command)}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def ask(url: str, prompt: str, n: int, more: dict[str, Any]) -> tuple[float, float, dict[str, Any]]:
    """One stream of n tokens: when its first came, when its last, and the server's timings."""
    body = {
        "prompt": prompt,
        "n_predict": n,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "cache_prompt": False,
    }
    first, last, timings = 0.0, 0.0, {}
    with httpx.stream("POST", f"{url}/completion", json={**body, "stream": True, **more}, timeout=600) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"server: {url} answers {answer.status_code} {answer.read().decode()[:200]}")
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                last = time.perf_counter()
                first = first or last
                timings = json.loads(line[6:]).get("timings", timings)
    return first, last, timings


def rate(url: str, n_streams: int, n: int, more: dict[str, Any]) -> tuple[float, float]:
    """Tokens/s of all streams together, and what was skipped of their FFN blocks."""
    with ThreadPoolExecutor(n_streams) as pool:
        prompts = [PROMPTS[i % len(PROMPTS)] for i in range(n_streams)]
        answers = list(pool.map(lambda prompt: ask(url, prompt, n, more), prompts))
    skipped = statistics.mean(float(timings.get("skip_rate", 0)) for _, _, timings in answers)
    if n_streams == 1:
        return float(answers[0][2]["predicted_per_second"]), skipped
    seconds = max(last for _, last, _ in answers) - min(first for first, _, _ in answers)
    return n_streams * (n - 1) / seconds, skipped


def library_rate(llm: pyskip.Llama, n: int) -> float:
    llm.reset()
    tokens = llm.tokenize(PROMPTS[0].encode())
    llm.eval(tokens)
    start = time.perf_counter()
    for i in range(n):
        llm.eval([tokens[i % len(tokens)]])
    return n / (time.perf_counter() - start)


def table(samples: dict[tuple[str, int], list[float]], skipped: dict[tuple[str, int], float]) -> str:
    lines = [
        "| arm | streams | tokens/s, median (quartiles) | ratio to the first | skipped |",
        "|---|---|---|---|---|",
    ]
    base: dict[int, list[float]] = {}
    for (name, n_streams), rates in samples.items():
        first = base.setdefault(n_streams, rates)
        beside = statistics.median(a / b for a, b in zip(rates, first, strict=True))
        low, middle, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else rates * 3
        lines.append(
            f"| {name} | {n_streams} | {middle:.1f} ({low:.1f} to {high:.1f}) | {beside:.3f} | "
            f"{skipped[name, n_streams]:.3f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--llama-server")
    parser.add_argument("--skip")
    parser.add_argument("--profile")
    parser.add_argument("--streams", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4])
    parser.add_argument("-n", type=int, default=96, help="tokens of a stream")
    parser.add_argument("-r", "--rounds", type=int, default=10)
    parser.add_argument("-t", "--threads", type=int, default=physical_cores())
    parser.add_argument("--kernels", choices=("fast", "upstream"), default="fast")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    model, n_slots = str(resolve(args.model)), max(args.streams)
    n_ctx, threads = str(N_CTX * n_slots), str(args.threads)
    arms: dict[str, Callable[[int], tuple[float, float]]] = {}
    with ExitStack() as stack:
        llm = pyskip.Llama(
            model, skip="off", n_ctx=N_CTX, kernels=args.kernels, verbose=False,
            n_threads=args.threads, n_threads_batch=args.threads,
        )  # fmt: skip
        stack.callback(llm.close)
        if args.llama_server:
            port = free_port()
            command = [args.llama_server, "-m", model, "--port", str(port), "-c", n_ctx, "-np", str(n_slots)]
            theirs = stack.enter_context(server("llama-server", [*command, "-t", threads, "--no-webui"], port))
            arms["llama-server"] = lambda n_streams: rate(theirs, n_streams, args.n, {})
        port = free_port()
        command = [sys.executable, "-m", "pyskip", "serve", model, "--port", str(port), "-c", n_ctx, "-t", threads]
        command += ["--skip", "off", "--kernels", args.kernels, *(("--profile", args.profile) if args.profile else ())]
        ours = stack.enter_context(server("pyskip serve", [*command, "--", "--parallel", str(n_slots)], port))
        arms["server"] = lambda n_streams: rate(ours, n_streams, args.n, {"skip": "off"})
        if args.skip:
            arms[f"server skip={args.skip}"] = lambda n_streams: rate(ours, n_streams, args.n, {"skip": args.skip})
        arms["library"] = lambda _: (library_rate(llm, args.n), 0.0)
        samples: dict[tuple[str, int], list[float]] = {}
        skipped: dict[tuple[str, int], float] = {}
        for round_ in range(args.rounds + 1):  # the first is not counted
            names = list(arms)
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                for n_streams in args.streams if name != "library" else [1]:
                    print(f"server: round {round_} of {args.rounds}, {name}, {n_streams}", file=sys.stderr, flush=True)
                    tokens_s, share = arms[name](n_streams)
                    if round_:
                        samples.setdefault((name, n_streams), []).append(tokens_s)
                        skipped[name, n_streams] = share
    ordered = {(name, n): samples[name, n] for n in args.streams for name in arms if (name, n) in samples}
    print(table(ordered, skipped))
    if args.output:
        rows = [
            {"arm": name, "streams": n, "samples_ts": rates, "skip_rate": skipped[name, n]}
            for (name, n), rates in ordered.items()
        ]
        about = {"model": Path(model).name, "n_threads": args.threads, "n_gen": args.n, "kernels": args.kernels}
        made = {"build": BUILD, "cpu": cpu_name(), "date": datetime.date.today().isoformat()}
        args.output.write_text(json.dumps({**about, **made, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
