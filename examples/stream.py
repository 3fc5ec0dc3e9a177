"""Pieces as they come, and how much was skipped for each token. --then changes the policy in mid-answer.

python stream.py [MODEL] [-p TEXT] [--skip SPEC] [--then SPEC] [-n 64]
"""

from __future__ import annotations

import argparse

import pyskip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("-p", "--prompt", default="The old mill")
    parser.add_argument("--skip", default="0.25")
    parser.add_argument("--then", help="from the middle of the answer on")
    parser.add_argument("-n", type=int, default=64)
    args = parser.parse_args()

    llm = pyskip.Llama(args.model, skip=args.skip, n_ctx=1024, verbose=False)
    llm.start_trace()
    chunks = llm.create_completion(args.prompt, max_tokens=args.n, temperature=0, stream=True)
    for chunk in chunks:
        print(chunk["choices"][0]["text"], end="", flush=True)
        if args.then and llm.skip_stats().n_tokens >= args.n // 2:
            llm.skip, args.then = args.then, None  # the KV cache stays: attention ran for every token

    trace = llm.take_trace()  # of tokens that were decoded under a policy other than off
    print("\n\nposition  blocks skipped")
    for pos, skipped in zip(trace.positions, trace.skipped, strict=True):
        print(f"{pos:8}  {'#' * int(skipped.sum())}")


if __name__ == "__main__":
    main()
