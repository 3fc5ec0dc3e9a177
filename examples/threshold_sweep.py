"""What the paper's policy skips, and what it costs, threshold by threshold, on a text of yours; beside the profile's
rates where the model has one.

python threshold_sweep.py [MODEL] --text FILE [--threshold 0.98 ...] [--rate 0.25 ...] [--chunks 8] [--ctx 512]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyskip
from pyskip.evaluation import evaluate_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--threshold", type=float, action="append")
    parser.add_argument("--rate", type=float, action="append")
    parser.add_argument("--chunks", type=int, default=8, help="windows of the text")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a window")
    args = parser.parse_args()

    llm = pyskip.Llama(args.model, n_ctx=args.ctx, n_batch=args.ctx, verbose=False)
    cold = min(4, pyskip.inspect(args.model).n_layer // 6)  # layers at either end that always run
    skips: list[pyskip.Policy] = [
        pyskip.Cosine(threshold, run=2, cold_start=cold, cold_end=cold)
        for threshold in args.threshold or (0.99, 0.98, 0.97, 0.96)
    ]
    if llm.profile is not None:
        skips += [pyskip.Profiled(rate=rate) for rate in args.rate or (0.1, 0.25, 0.4)]
    results = evaluate_text(llm, args.text.read_text("utf-8"), skips, n_ctx=args.ctx, chunks=args.chunks)
    print("skipped  perplexity / dense   same top  policy")
    for result in results:
        price = f"{result.ppl_ratio:.3f} ± {result.ppl_ratio_se:.3f}"
        print(f"{result.skip_rate:7.1%}  {price:>18}   {result.same_top:8.1%}  {result.skip}")


if __name__ == "__main__":
    main()
