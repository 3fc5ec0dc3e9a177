"""A model that drafts for itself (`--lossless`) beside the same model without, in turns.

    python benchmarks/lossless.py [MODEL] [-n TOKENS] [-r ROUNDS] [-t N] [--temp T] [--always]

Each round decodes -n tokens behind each of some prompts, dense and with drafts, one after the other; which is first
changes from round to round. Times are those of tokens after the first. Printed: what loading measured, and by prompt
tokens/s of both, median and quartiles of the rounds' ratios, and how many drafted tokens were accepted. --always drafts
where nothing is gained, too. Fails if the texts of a prompt differ at temperature 0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import pyskip
from pyskip.models import resolve
from pyskip.system import physical_cores

PROMPTS = {
    "prose": "Once upon a time, in a village by the sea, there lived a girl who",
    "code": "def merge_sort(items):\n    if len(items) < 2:\n        return items\n",
    "list": "The numbers from one to one hundred: one, two, three, four, five,",
}


def decode(llm: pyskip.Llama, prompt: str, n: int, temp: float) -> tuple[list[int], float]:
    """Tokens, and seconds of those after the first."""
    tokens: list[int] = []
    llm.set_seed(1)
    generator = llm.generate(llm.tokenize(prompt.encode()), temp=temp)
    start = 0.0
    for token in generator:
        tokens.append(token)
        start = start or time.perf_counter()
        if len(tokens) == n:
            break
    seconds = time.perf_counter() - start
    generator.close()
    return tokens, seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("-n", type=int, default=128)
    parser.add_argument("-r", "--rounds", type=int, default=6, help="2 or more")
    parser.add_argument("-t", "--threads", type=int, default=physical_cores())
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--kernels", default="fast")
    parser.add_argument("--always", action="store_true")
    args = parser.parse_args()
    llm = pyskip.Llama(
        str(resolve(args.model)), n_ctx=args.n + 64, n_threads=args.threads, n_threads_batch=args.threads,
        kernels=args.kernels, lossless="always" if args.always else True, verbose=False,
    )  # fmt: skip
    assert llm.lossless is not None
    print(f"{llm.lossless.line}\n\n| prompt | dense t/s | lossless t/s | ratio | accepted |\n|---|---|---|---|---|")
    drafts = llm.draft_model
    status = 0
    for name, prompt in PROMPTS.items():
        rates: dict[bool, list[float]] = {False: [], True: []}
        said: dict[bool, list[int]] = {}
        llm.reset_skip_stats()
        for round_ in range(args.rounds + 1):  # the first is not counted
            for drafting in (round_ % 2 == 0, round_ % 2 == 1):
                llm.draft_model = drafts if drafting else None
                said[drafting], seconds = decode(llm, prompt, args.n, args.temp)
                if round_:
                    rates[drafting].append((len(said[drafting]) - 1) / seconds)
            print(f"lossless: {name}, round {round_} of {args.rounds}", file=sys.stderr, flush=True)
        ratios = [one / other for one, other in zip(rates[True], rates[False], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        dense, own = (statistics.median(rates[drafting]) for drafting in (False, True))
        counts = f"{llm.n_accepted} of {llm.n_drafted}"
        print(f"| {name} | {dense:.1f} | {own:.1f} | {middle:.3f} ({low:.3f} to {high:.3f}) | {counts} |", flush=True)
        if args.temp == 0.0 and said[True] != said[False]:
            print(f"lossless: {name}: the texts differ", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
