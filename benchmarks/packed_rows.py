"""What skipping by some rows of a batch saves: time of the FFN part of a step.

    python benchmarks/packed_rows.py [MODEL] [--profile FILE] [--rows 8,16,32,128] [--share 0.3] [-r ROUNDS] [-t N]

A step decodes one token of each of --rows sequences in one batch. Four arms take turns: no row skips; of each block
--share of the rows, drawn at random, is left out (`random:rate=SHARE`); likewise, with the profile's stand-in in its
place (`stand_in=1`); all rows skip all blocks (`static`). The last leaves what is not FFN, so that

    (some - all) / (none - all)

is the FFN part's time, stand-ins and gates included, beside none skipping; 1 - share would lose nothing. Median and
quartiles of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np

import pyskip
from pyskip.models import resolve
from pyskip.models.profile import Profile
from pyskip.policy import Off, Policy, Random, Static
from pyskip.runtime.batch import BatchContext
from pyskip.system import physical_cores

N_STEPS = 16  # of each arm in a round


def ratios(llm: pyskip.Llama, n_rows: int, share: float, n_rounds: int) -> list[tuple[list[float], float]]:
    """Without and with a stand-in: (some - all) / (none - all) of each round, and the share that skipped."""
    some_rows = [Random(rate=share, warmup=0), Random(rate=share, warmup=0, stand_in=True)]
    all_rows = Static(llm.skippable_layers)
    wanted = np.ones(n_rows, dtype=np.bool_)
    found: list[list[float]] = [[], []]
    skipped: list[list[float]] = [[], []]
    with BatchContext(llm, n_rows, 4 * (N_STEPS + 1) * (n_rounds + 1), n_rows) as context:
        pos = 0

        def step() -> float:
            """Seconds of one step."""
            nonlocal pos
            tokens = [(7 * pos + 31 * seq_id) % 1000 + 100 for seq_id in range(n_rows)]
            start = time.perf_counter()
            context.decode(tokens, [pos] * n_rows, range(n_rows), wanted)
            pos += 1
            return time.perf_counter() - start

        def turn(policy: Policy, profile: Profile | None = None) -> float:
            """Seconds of N_STEPS steps; the first, which builds the graph anew, is not counted."""
            context.skip.set_policy(policy, profile)
            context.skip.reset_counters()
            return sum([step() for _ in range(N_STEPS + 1)][1:])

        for round_ in range(n_rounds + 1):  # the first is not counted
            none = turn(Off())
            some = []
            for i, policy in enumerate(some_rows):
                some.append(turn(policy, llm.profile if policy.stand_in else None))
                skipped[i].append(context.skip.stats(policy).rate)
            all_ = turn(all_rows)
            if round_:
                for i, seconds in enumerate(some):
                    found[i].append((seconds - all_) / (none - all_))
            print(f"packed_rows: {n_rows} rows, round {round_} of {n_rounds}", file=sys.stderr, flush=True)
    return [(of, statistics.mean(rates)) for of, rates in zip(found, skipped, strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--rows", type=lambda text: [int(part) for part in text.split(",")], default=[8, 16, 32, 128])
    parser.add_argument("--profile", help="[default: the model's own]")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("-r", "--rounds", type=int, default=20, help="2 or more")
    parser.add_argument("-t", "--threads", type=int, default=physical_cores())
    parser.add_argument("--kernels", default="fast")
    args = parser.parse_args()
    llm = pyskip.Llama(
        str(resolve(args.model)), n_ctx=64, n_threads=args.threads, n_threads_batch=args.threads,
        kernels=args.kernels, profile=args.profile, skip="off", verbose=False,
    )  # fmt: skip
    print(
        "| rows | skipping | FFN time beside none skipping | with a stand-in: skipping | FFN time |\n"
        "|---|---|---|---|---|"
    )
    for n_rows in args.rows:
        cells = []
        for found, share in ratios(llm, n_rows, args.share, args.rounds):
            low, middle, high = statistics.quantiles(found, n=4)
            cells.append(f"{share:.3f} | {middle:.3f} ({low:.3f} to {high:.3f})")
        print(f"| {n_rows} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
