"""A model that drafts for itself (`--lossless`) beside the same model without, in turns.

    python benchmarks/lossless.py [MODEL] [-n TOKENS] [-r ROUNDS] [-t N] [--temp T] [--always] [--compare TOKENS]

Each round decodes -n tokens behind each of some prompts, dense and with drafts, one after the other; which is first
changes from round to round. Times are those of tokens after the first. Printed: what loading measured, and by prompt
tokens/s of both, median and quartiles of the rounds' ratios, and how many drafted tokens were accepted. --always drafts
where nothing is gained, too. Fails if the texts of a prompt differ at temperature 0.

--compare decodes greedily instead, dense and with drafts, -n tokens behind each of many prompts, until so many tokens
were compared. Printed: how many came out the same, and of each prompt whose texts part, where, and how far apart the
two likeliest tokens' logits are there. Fails if any does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np

import pyskip
from pyskip.binding.library import llama_cpp
from pyskip.models import resolve
from pyskip.system import physical_cores

PROMPTS = {
    "prose": "Once upon a time, in a village by the sea, there lived a girl who",
    "code": "def merge_sort(items):\n    if len(items) < 2:\n        return items\n",
    "list": "The numbers from one to one hundred: one, two, three, four, five,",
}

FORMS = (
    "Write a short story about {}.\n\n", "The history of {} begins in", "A list of ten facts about {}:\n1.",
    "def describe_{}(items):\n", "Question: what is known of {}?\nAnswer:",
)  # fmt: skip
TOPICS = (
    "bread", "rivers", "clocks", "whales", "paper", "bridges", "volcanoes", "chess", "glass", "maps", "bees",
    "railways", "salt", "telescopes", "gardens", "music", "ships", "dictionaries", "mountains", "coins",
)  # fmt: skip


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


def gap(llm: pyskip.Llama, tokens: list[int]) -> float:
    """How far apart the logits of the two likeliest tokens are behind these, decoded densely one by one."""
    llm.reset()
    for token in tokens:
        llm.eval([token])
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(llm.ctx, -1), (llm.n_vocab(),))
    second, first = np.sort(logits)[-2:]
    return float(first - second)


def compare(llm: pyskip.Llama, n_tokens: int, n: int) -> int:
    """How many prompts' texts part, of as many as give n_tokens tokens, n each."""
    drafts, n_same, n_parted, n_prompts = llm.draft_model, 0, 0, 0
    for form in FORMS:
        for topic in TOPICS:
            if n_same >= n_tokens:
                break
            prompt = form.format(topic)
            llm.draft_model = None
            dense, _ = decode(llm, prompt, n, 0.0)
            llm.draft_model = drafts
            own, _ = decode(llm, prompt, n, 0.0)
            n_prompts += 1
            at = next((i for i, (a, b) in enumerate(zip(dense, own, strict=False)) if a != b), len(dense))
            n_same += at
            if dense != own:
                n_parted += 1
                llm.draft_model = None
                apart = gap(llm, llm.tokenize(prompt.encode()) + dense[:at])
                print(f"{prompt!r} parts at token {at}, where the two likeliest are {apart:.4f} apart", flush=True)
            print(f"lossless: {n_same} tokens the same, {n_parted} prompts part", file=sys.stderr, flush=True)
    print(f"{n_prompts} prompts, {n_same} tokens the same, {n_parted} prompts part; "
          f"{llm.n_accepted} of {llm.n_drafted} drafted tokens accepted")  # fmt: skip
    return n_parted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("-n", type=int, default=128)
    parser.add_argument("-r", "--rounds", type=int, default=6, help="2 or more")
    parser.add_argument("-t", "--threads", type=int, default=physical_cores())
    parser.add_argument("--temp", type=float, default=0.0)
    parser.add_argument("--kernels", default="fast")
    parser.add_argument("--always", action="store_true")
    parser.add_argument("--compare", type=int, metavar="TOKENS", default=0)
    args = parser.parse_args()
    llm = pyskip.Llama(
        str(resolve(args.model)), n_ctx=args.n + 64, n_threads=args.threads, n_threads_batch=args.threads,
        kernels=args.kernels, lossless="always" if args.always else True, verbose=False,
    )  # fmt: skip
    assert llm.lossless is not None
    if args.compare:
        print(llm.lossless.line)
        return int(compare(llm, args.compare, args.n) > 0)
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
