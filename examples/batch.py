"""Many prompts decoded together: a batch with one token of each, step by step. Prompts from stdin, one a line.

python batch.py [MODEL] [--skip SPEC] [-n 32]
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

import pyskip
from pyskip.calibration.context import BatchContext


def generate(llm: pyskip.Llama, prompts: list[list[int]], n_predict: int) -> list[list[int]]:
    """The likeliest tokens after each prompt, without that which ends it."""
    n_ctx = max(map(len, prompts)) + n_predict
    answers: list[list[int]] = [[] for _ in prompts]
    with BatchContext(llm, len(prompts), n_ctx, max(n_ctx, len(prompts))) as context:
        context.skip.set_policy(llm.skip, llm.profile)
        latest = []
        for seq_id, prompt in enumerate(prompts):
            n = len(prompt)
            context.skip.set_generated_from(seq_id, n)  # what comes before is prompt, and dense
            logits = context.decode(prompt, range(n), [seq_id] * n, np.arange(n) == n - 1)
            latest.append(int(logits[0].argmax()))
        live = list(range(len(prompts)))
        while live := [s for s in live if latest[s] != llm.token_eos() and len(answers[s]) < n_predict]:
            for s in live:
                answers[s].append(latest[s])
            places = [len(prompts[s]) + len(answers[s]) - 1 for s in live]
            logits = context.decode([latest[s] for s in live], places, live, np.ones(len(live), bool))
            for s, row in zip(live, logits, strict=True):
                latest[s] = int(row.argmax())
        stats = context.skip.stats(llm.skip)
        print(f"{stats.n_tokens} tokens, {stats.rate:.1%} of FFN blocks skipped", file=sys.stderr)
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--skip", default="off")
    parser.add_argument("-n", type=int, default=32)
    args = parser.parse_args()

    llm = pyskip.Llama(args.model, skip=args.skip, n_ctx=64, verbose=False)
    prompts = [llm.tokenize(line.strip().encode()) for line in sys.stdin if line.strip()]
    for prompt, answer in zip(prompts, generate(llm, prompts, args.n), strict=True):
        print((llm.detokenize(prompt) + llm.detokenize(answer, prompt)).decode(errors="replace").strip())


if __name__ == "__main__":
    main()
