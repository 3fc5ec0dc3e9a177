"""What Ray Serve costs in front of one replica: seconds a request, and the rate of a stream, beside `pyskip serve`
alone.

    python benchmarks/ray_overhead.py [MODEL] [-n N] [-r ROUNDS] [-t N] [-o FILE.json]

Two servers of the same model and threads, in turns; the one that is not asked idles. A request asks for one token
behind a prompt that is cached, a stream for N, by the client's clock. Needs pyskip[ray].
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import yaml
from server import ask, free_port, server

from pyskip.binding.library import BUILD
from pyskip.models import resolve
from pyskip.system import cpu_name, physical_cores

N_REQUESTS = 20  # of a round
PROMPT = "The history of bread, from the first grains to the modern bakery:"


def request_seconds(client: httpx.Client, url: str) -> float:
    """Of one token, the median of a round."""
    body, samples = {"prompt": PROMPT, "n_predict": 1, "temperature": 0}, []
    for _ in range(N_REQUESTS):
        began = time.perf_counter()
        client.post(f"{url}/completion", json=body).raise_for_status()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)


def stream_rate(url: str, n: int) -> float:
    first, last, _ = ask(url, PROMPT, n, {})
    return (n - 1) / (last - first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("-n", type=int, default=128, help="tokens of a stream")
    parser.add_argument("-r", "--rounds", type=int, default=10)
    parser.add_argument("-t", "--threads", type=int, default=physical_cores())
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    model = str(resolve(args.model))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        told = {"model": model, "cores": args.threads, "flags": ["--skip", "off"]}
        application = {"name": "pyskip", "import_path": "pyskip.ray:app", "args": told}
        (folder / "serve.yaml").write_text(yaml.safe_dump({"applications": [application]}))
        urls = {}
        for name, what in (
            ("server", [model, "--skip", "off", "-t", str(args.threads)]),
            ("ray", ["--ray", str(folder / "serve.yaml")]),
        ):
            port = free_port()
            command = [sys.executable, "-m", "pyskip", "serve", *what, "--port", str(port)]
            urls[name] = stack.enter_context(server(name, command, port))
        client = stack.enter_context(httpx.Client(timeout=600))
        rows: dict[str, dict[str, list[float]]] = {name: {"request": [], "stream": []} for name in urls}
        for round_ in range(args.rounds + 1):  # the first is not counted
            for name in sorted(urls, reverse=bool(round_ % 2)):
                sample = request_seconds(client, urls[name]), stream_rate(urls[name], args.n)
                if round_:
                    for key, value in zip(("request", "stream"), sample, strict=True):
                        rows[name][key].append(value)
    alone, behind = rows["server"], rows["ray"]
    more = statistics.median(b - a for a, b in zip(alone["request"], behind["request"], strict=True))
    share = statistics.median(b / a for a, b in zip(alone["stream"], behind["stream"], strict=True))
    for name, row in rows.items():
        seconds, rate = (statistics.median(row[key]) for key in ("request", "stream"))
        print(f"{name}: {seconds * 1000:.1f} ms a request, {rate:.1f} tokens/s")
    print(f"Ray: {more * 1000:+.1f} ms a request, {share:.3f} of the streaming rate")
    if args.output:
        made = {"build": BUILD, "cpu": cpu_name(), "date": datetime.date.today().isoformat(), "n_threads": args.threads}
        args.output.write_text(json.dumps({"model": Path(model).name, **made, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
