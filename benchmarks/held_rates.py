"""Whether a rate that is asked for is what is skipped: over any 256 tokens of texts, and of the model's own answers.

    python benchmarks/held_rates.py MODEL --text KIND=FILE [--text ...] [--questions FILE.jsonl] [--rate R ...]
                                    [--profile FILE] [--tokens N] [--answers N] [-t N]

For each rate and kind: what was skipped in all, and of the windows of 256 tokens that begin at every token the one with
the least and the one with the most. A text's tokens are decoded as if the model had generated them. --questions: JSON
lines with `turns`, as MT-bench has them; the first turn of some, spread over the file, is answered at temperature 0.7,
past the answer's end if it is short.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from frontier import kind_and_file

from pyskip import Llama
from pyskip.errors import PyskipError
from pyskip.evaluation.tasks import read_text
from pyskip.runtime.generation import chat_tokens

N_WINDOW = 256
Shares = npt.NDArray[np.float64]  # of its blocks that each token skipped


def shares(llm: Llama, n: int) -> Shares:
    """Of the last n tokens that were decoded."""
    return np.asarray(llm.take_trace(llm.n_ctx()).skipped.mean(axis=1)[-n:], np.float64)


def of_text(llm: Llama, path: Path, n: int) -> Shares:
    """Raises ValueError if the text is too short."""
    tokens = llm.tokenize(read_text(path)[: 16 * n].encode())[:n]
    if len(tokens) < n:
        raise ValueError(f"{path}: found {len(tokens)} tokens, expected {n}: lower --tokens")
    llm.reset()
    llm.mark_generated(0)
    llm.eval(tokens)
    return shares(llm, n)


def of_answers(llm: Llama, questions: Sequence[str], n: int) -> Iterator[Shares]:
    for question in questions:
        prompt = chat_tokens(llm, [{"role": "user", "content": question}])
        llm.reset()
        llm.set_seed(1)
        llm.mark_generated(len(prompt))
        for _, _ in zip(range(n + 1), llm.generate(prompt, temp=0.7), strict=False):
            pass
        yield shares(llm, n)


def windows(share: Shares) -> Shares:
    sums = np.concatenate([[0.0], np.cumsum(share)])
    return (sums[N_WINDOW:] - sums[:-N_WINDOW]) / N_WINDOW


def row(kind: str, rate: float, found: Sequence[Shares]) -> str:
    spread = np.concatenate([windows(share) for share in found])
    mean = float(np.concatenate(found).mean())
    return f"| {kind} | {rate} | {mean:.1%} | {spread.min():.1%} to {spread.max():.1%} |"


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", action="append", default=[], type=kind_and_file, metavar="KIND=FILE")
    parser.add_argument("--questions", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--rate", action="append", type=float, help="default: 0.1 and 0.25")
    parser.add_argument("--profile", metavar="FILE")
    parser.add_argument("--tokens", type=int, default=640, help="of each text and answer, at least 257")
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("-t", "--threads", type=int)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    n = args.tokens
    questions = (
        [json.loads(line)["turns"][0] for line in args.questions.read_text().splitlines()] if args.questions else []
    )
    asked = questions[:: max(1, len(questions) // args.answers)][: args.answers]
    llm = Llama(args.model, n_ctx=n + 1024, profile=args.profile, n_threads=args.threads, verbose=False)
    try:
        llm.start_trace(llm.n_ctx())
        print("| text | rate | skipped | least to most over 256 tokens |\n|---|---|---|---|")
        for rate in args.rate or (0.1, 0.25):
            llm.skip = rate
            for kind, path in args.text:
                print(row(kind, rate, [of_text(llm, path, n)]), flush=True)
            if asked:
                print(row("answers", rate, list(of_answers(llm, asked, n))), flush=True)
    finally:
        llm.close()


def main(argv: Sequence[str] | None = None) -> int:
    try:
        run(parsed(argv))
    except (PyskipError, OSError, ValueError, KeyError) as error:
        print(f"held_rates: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("held_rates: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
