"""What the server costs: tokens/s of create_chat_completion() in this process against the same over HTTP, in turns.

    python benchmarks/server.py [MODEL] [--skip SPEC] [-n N] [-r ROUNDS] [-t N] [-o FILE.json]

The server is a process of its own with the same model, threads and context; what is not asked idles. Each answer is
streamed, greedy, of the same text. The rate is that of decoding: from the first piece of text to the last, by
the clock of whoever reads them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

import pyskip
from pyskip.binding.library import BUILD
from pyskip.system import cpu_name, physical_cores

PROMPT = "Write a long story about a ship that is lost at sea."
OPTIONS = {"temperature": 0.0, "repeat_penalty": 1.0}


def start(model: str, args: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """The server, and its address."""
    command = [sys.executable, "-m", "pyskip", "serve", f"bench={model}", "--port", "0", "--skip", args.skip]
    process = subprocess.Popen([*command, "-t", str(args.threads), "-c", "2048"], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if " at http://" in line:
            return process, line.split(" at ")[1].split(";")[0]
    raise SystemExit("the server did not start")


def timed(pieces: Iterable[str]) -> tuple[float, str]:
    """Pieces of text a second, and the text; almost every token is a piece of its own."""
    times, text = [], ""
    for piece in pieces:
        if piece:
            times.append(time.perf_counter())
            text += piece
    return (len(times) - 1) / (times[-1] - times[0]), text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--skip", default="off")
    parser.add_argument("-n", type=int, default=128, help="tokens an answer")
    parser.add_argument("-r", "--rounds", type=int, default=15)
    parser.add_argument("-t", "--threads", type=int, default=physical_cores())
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    messages: Any = [{"role": "user", "content": PROMPT}]
    threads = {"n_threads": args.threads, "n_threads_batch": args.threads}
    llm = pyskip.Llama(args.model, skip=args.skip, n_ctx=2048, verbose=False, **threads)

    def in_process() -> Iterable[str]:
        llm.reset()
        for chunk in llm.create_chat_completion(messages, max_tokens=args.n, stream=True, **OPTIONS):
            yield chunk["choices"][0]["delta"].get("content", "")

    process, url = start(str(llm.model_path), args)
    client = httpx.Client(timeout=600)

    def over_http() -> Iterable[str]:
        body = {"messages": messages, "max_tokens": args.n, "stream": True, **OPTIONS}
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line[6:])["choices"][0]["delta"].get("content", "")

    arms: dict[str, Callable[[], Iterable[str]]] = {"create_chat_completion": in_process, "server": over_http}
    samples: dict[str, list[float]] = {name: [] for name in arms}
    try:
        texts = {name: timed(pieces())[1] for name, pieces in arms.items()}  # a first turn, not counted
        for i in range(args.rounds):
            for name in list(arms) if i % 2 else list(arms)[::-1]:
                samples[name].append(timed(arms[name]())[0])
            last = {name: round(rates[-1], 2) for name, rates in samples.items()}
            print(f"{i + 1}/{args.rounds}", last, file=sys.stderr)
    finally:
        process.terminate()
        process.wait(60)
    medians = {name: statistics.median(rates) for name, rates in samples.items()}
    shares = [b / a for a, b in zip(samples["create_chat_completion"], samples["server"], strict=True)]
    overhead = 100 * (1 - statistics.median(shares))
    result = {
        "model": Path(str(llm.model_path)).name,
        "skip": args.skip,
        "n_threads": args.threads,
        "n_gen": args.n,
        "build": BUILD,
        "cpu": cpu_name(),
        "date": datetime.date.today().isoformat(),
        "samples_ts": samples,
        "median_ts": medians,
        "overhead_percent": overhead,
        "same_text": texts["create_chat_completion"] == texts["server"],
    }
    for name, median in medians.items():
        rates = samples[name]
        print(f"{name:24} {median:8.2f} tokens/s ({min(rates):.2f} to {max(rates):.2f})")
    print(f"overhead {overhead:.1f} % (median of {args.rounds} rounds); same text: {result['same_text']}")
    if args.output:
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
