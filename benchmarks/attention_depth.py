"""Decode rates with attention skipped, at several depths of context, beside what bytes and operations allow.

    python benchmarks/attention_depth.py [MODEL] [-d 0,2048,8192] [--rounds 10] [-n 32] [-t N] [--json]

At each depth each arm decodes n tokens behind the same context, in turns, round by round: `off`, the attention of every
second layer skipped, the FFN of every second layer, both. K and V are computed in all of them. The context is decoded
with all skipped that can be: what is in the cache has no part in how long it takes to read. A speed-up is the median
over rounds of the ratio to `off` in the same round.

Allowed by bytes: what a token reads, all of it over the rest; by operations: the same of multiplications. Skipped
attention saves the weights of Q and of the output, and the layer's part of the cache; where Q, K and V are one weight,
the output's and the cache.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import gguf

import pyskip
from pyskip.binding.library import BUILD
from pyskip.models import resolve
from pyskip.system import cpu_name, physical_cores

TOKEN = 3  # decoded again and again: what it says has no part in how long it takes
SAVED = re.compile(r"blk\.(\d+)\.(attn_q\.|attn_output\.|ffn_)")


@dataclass(frozen=True)
class Work:
    """What a token reads (bytes) and multiplies, in all and by layer."""

    all: float
    attention: dict[int, float]  # that is saved if it is skipped
    ffn: dict[int, float]

    def allowed(self, attention: tuple[int, ...], ffn: tuple[int, ...]) -> float:
        """The speed-up if time goes by it."""
        saved = sum(self.attention[il] for il in attention) + sum(self.ffn[il] for il in ffn)
        return self.all / (self.all - saved)


@dataclass(frozen=True)
class Row:
    depth: int
    arm: str
    skip: str
    tps: float  # median
    speedup: float  # median over rounds, against off
    spread: float  # largest - smallest ratio
    allowed_by_bytes: float
    allowed_by_operations: float


def work_of(path: str, depth: int) -> tuple[Work, Work]:
    """By bytes, with an f16 cache, and by multiplications. Embeddings are looked up; experts count whole."""
    reader = gguf.GGUFReader(path)
    info = pyskip.inspect(path)
    has_output = any(t.name == "output.weight" for t in reader.tensors)
    sums: list[float] = [0.0, 0.0]
    attention: list[dict[int, float]] = [{}, {}]
    ffn: list[dict[int, float]] = [{}, {}]
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight" and has_output:
            continue
        found = SAVED.match(tensor.name)
        for k, amount in enumerate((float(tensor.n_bytes), float(tensor.n_elements))):
            sums[k] += amount
            if found:
                by_layer = ffn[k] if found[2] == "ffn_" else attention[k]
                by_layer[int(found[1])] = by_layer.get(int(found[1]), 0.0) + amount
    n_head = int(reader.fields[f"{info.architecture}.attention.head_count"].contents())
    kv_bytes = depth * info.kv_bytes_per_token / info.n_layer
    products = depth * 2 * n_head * (info.n_embd / n_head)  # scores and mix
    for k, amount in enumerate((kv_bytes, products)):
        sums[k] += info.n_layer * amount
        attention[k] = {il: attention[k].get(il, 0.0) + amount for il in range(info.n_layer)}
        ffn[k] = {il: ffn[k].get(il, 0.0) for il in range(info.n_layer)}
    return Work(sums[0], attention[0], ffn[0]), Work(sums[1], attention[1], ffn[1])


def decode(llm: pyskip.Llama, depth: int, n: int) -> float:
    """Tokens/s of n tokens behind the first `depth`."""
    if not llm.engine.cut(depth, 0):
        sys.exit("attention_depth: the model's memory cannot be cut (a recurrent state), expected a KV cache")
    llm.n_tokens = depth
    llm.eval([TOKEN])  # another graph is built
    start = time.perf_counter()
    for _ in range(n):
        llm.eval([TOKEN])
    return n / (time.perf_counter() - start)


def measure(llm: pyskip.Llama, path: str, depth: int, rounds: int, n: int) -> list[Row]:
    attention, ffn = llm.skippable_attention[1::2], llm.skippable_layers[1::2]
    arms: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "off": ((), ()),
        "half of attention": (attention, ()),
        "half of FFNs": ((), ffn),
        "half of both": (attention, ffn),
    }
    policies = {
        name: pyskip.Static(own_ffn, own) if own or own_ffn else pyskip.Off() for name, (own, own_ffn) in arms.items()
    }
    llm.skip = pyskip.Static(llm.skippable_layers, llm.skippable_attention)  # K and V alone: 32k of them in a minute
    llm.reset()
    llm.engine.clear()
    if depth:
        llm.eval([TOKEN] * depth)
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, policy in policies.items():
            llm.skip = policy
            taken[name].append(decode(llm, depth, n))
    by_bytes, by_operations = work_of(path, depth + n // 2)
    rows = []
    for name, (own, own_ffn) in arms.items():
        ratios = [a / b for a, b in zip(taken[name], taken["off"], strict=True)]
        rows.append(Row(depth, name, str(policies[name]), statistics.median(taken[name]), statistics.median(ratios),
                        max(ratios) - min(ratios), by_bytes.allowed(own, own_ffn),
                        by_operations.allowed(own, own_ffn)))  # fmt: skip
    return rows


def show(rows: list[Row]) -> None:
    print("| depth | skipped | tokens/s | speed-up | spread | allowed by bytes | by operations | of what bytes allow |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        share = row.speedup / row.allowed_by_bytes
        print(f"| {row.depth} | {row.arm} | {row.tps:.1f} | {row.speedup:.3f} | {row.spread:.3f} | "
              f"{row.allowed_by_bytes:.3f} | {row.allowed_by_operations:.3f} | {share:.3f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("-d", "--depths", default="0,2048,8192")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("-n", type=int, default=32)
    parser.add_argument("-t", "--threads", type=int, default=physical_cores())
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    path, depths = str(resolve(args.model)), [int(depth) for depth in args.depths.split(",")]
    llm = pyskip.Llama(path, n_ctx=max(depths) + args.n + 8, n_threads=args.threads, verbose=False)
    rows: list[Row] = []
    for depth in depths:
        rows += measure(llm, path, depth, args.rounds, args.n)
        print(f"attention_depth: {depth} done", file=sys.stderr)
    if args.json:
        document: dict[str, Any] = {"results": [asdict(row) for row in rows], "model": args.model, "n": args.n,
                                    "rounds": args.rounds, "n_threads": args.threads, "cpu": cpu_name(),
                                    "build": BUILD}  # fmt: skip
        print(json.dumps(document, indent=1))
    else:
        print(f"{args.model}, {args.threads} threads, {cpu_name()}, {BUILD}\n")
        show(rows)


if __name__ == "__main__":
    main()
