"""When to take a smaller quantisation, when to skip, when both: speed and quality of one model's files on this machine.

    python benchmarks/frontier.py FILE ... --text KIND=FILE [--text ...] [--profile FILE] [--skip SPEC ...]
                                  [--windows N] [--rounds N] [-t N] [-d DEPTH] [-o FILE]

FILEs are quantisations of one model. The first is what the others are compared with, and what the profile was made for;
its profile serves the others too, since their blocks compute nearly the same. Quality is taken on each --text: the same
windows of 256 tokens for every point, the second half of each scored, perplexity as a ratio and KL divergence to the
first file, dense. Under `prompt=` windows are longer: a prompt of as many tokens as is timed is skipped, and what is
scored is the 128 tokens that follow. Speed is taken in turns: in every round each point takes its turn, and the order
rotates; see benchmarks/peers.py. With --depth both are taken behind so many tokens of the text, dense, and prompts are
not timed: the place for `attn=`. -o keeps what other models and machines left in the file; benchmarks/frontier_page.py
makes docs/frontier.md of it.

Memory: all files are loaded at once for the turns, about twice their size.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peers import N_CONTEXT, commit, earlier, order, stored
from peers_arms import ArmError, Pyskip, Sample, Worker, parse_tests

from pyskip import Llama
from pyskip.errors import PyskipError
from pyskip.evaluation.score import score
from pyskip.evaluation.tasks import read_text
from pyskip.models.gguf_info import inspect
from pyskip.models.profile import Profile
from pyskip.runtime.decoding import Decoder, PolicyArm, decoding_arms
from pyskip.runtime.engine import Floats
from pyskip.system import cpu_name

N_SCORED = 128  # of a window, its last tokens
Windows = dict[str, list[list[int]]]  # by kind of text
LogP = dict[tuple[int, ...], npt.NDArray[np.float32]]  # by the tokens of a window
Point = tuple[Path, str]  # file, skip


@contextmanager
def profile_for(model: Path, profile: Path) -> Iterator[Path]:
    """The profile, or a copy that says that it was made for `model`."""
    own, wanted = Profile(profile).fingerprint, inspect(model).fingerprint
    if own == wanted:
        yield profile
        return
    with tempfile.NamedTemporaryFile(suffix=".skip.gguf") as copy:
        copy.write(profile.read_bytes().replace(own.encode(), wanted.encode(), 1))
        copy.flush()
        yield Path(copy.name)


def windows_of(llm: Llama, texts: Sequence[tuple[str, Path]], n: int, n_before: int) -> Windows:
    """n windows of each text, spread over it: n_before tokens and what is scored. Raises ValueError if a text is too
    short."""
    windows: Windows = {}
    start = llm.tokenize(b"", add_bos=True)  # BOS, if the vocabulary wants one
    for kind, path in texts:
        tokens = llm.tokenize(read_text(path).encode(), add_bos=False, special=False)
        size = n_before + N_SCORED - len(start)
        step = len(tokens) // n
        if step < size:
            raise ValueError(f"{path}: found {len(tokens)} tokens, expected at least {n * size}: lower --windows")
        windows[kind] = [start + tokens[i * step : i * step + size] for i in range(n)]
    return windows


def is_prompt_rate(skip: str) -> bool:
    """Whether it is the prompt that is skipped, and what follows is dense."""
    return "prompt=" in skip


def prompt_counts(llm: Llama) -> tuple[int, int]:
    """Blocks of prompts: skipped, all."""
    stats = llm.skip_stats()
    n_skipped = sum(stats.prompt_skipped)
    return n_skipped, n_skipped + sum(stats.prompt_evaluated)


@dataclass
class Tally:
    """What an arm did on one kind of text, token by token."""

    log_p: list[npt.NDArray[np.float64]] = field(default_factory=list)
    dense_log_p: list[npt.NDArray[np.float32]] = field(default_factory=list)
    kld: list[npt.NDArray[np.float64]] = field(default_factory=list)
    n_skipped: int = 0  # FFN blocks, without attention
    n_attention: int = 0
    n: int = 0  # blocks that could have been

    def result(self) -> dict[str, float]:
        ppl, dense_ppl = (float(np.exp(-np.concatenate(p).mean())) for p in (self.log_p, self.dense_log_p))
        return {
            "ppl": round(ppl, 4),
            "dense_ppl": round(dense_ppl, 4),
            "kld": round(float(np.concatenate(self.kld).mean()), 5),
            "skip_rate": round(self.n_skipped / self.n, 4),
            "attention_rate": round(self.n_attention / self.n, 4),
        }


def score_window(llm: Llama, arm: PolicyArm, window: list[int], logits: Floats, dense: LogP, tally: Tally) -> None:
    """The last N_SCORED tokens of a window, by the logits of all but the very last. `dense` is filled where it has none
    of it."""
    is_first = tuple(window) not in dense
    if is_first:
        dense[tuple(window)] = np.empty(logits.shape, np.float32)
    reference, targets = dense[tuple(window)], window[1 - N_SCORED :]
    scores = score(logits, targets, reference, is_dense=is_first)
    tally.log_p.append(scores.log_p)
    tally.dense_log_p.append(reference[np.arange(len(targets)), targets])
    tally.kld.append(scores.kld)
    n_tokens, skipped = arm.take()
    n_layer = len(skipped) // 2
    if is_prompt_rate(str(arm.policy)):
        n_skipped, n = prompt_counts(llm)
    else:
        n_skipped, n = int(skipped[:n_layer].sum()), n_tokens * n_layer
    tally.n_skipped, tally.n_attention = tally.n_skipped + n_skipped, tally.n_attention + int(skipped[n_layer:].sum())
    tally.n += n


def quality(
    llm: Llama, skips: Sequence[str], windows: Windows, long_windows: Windows, depth: int, dense: LogP
) -> dict[str, dict[str, Any]]:
    """Of off and each skip, by kind of text; of rates for prompts on the long windows. Behind a context (depth) what is
    decoded of it, dense, serves all arms. `dense` is filled by the first Llama's off."""
    found: dict[str, dict[str, Any]] = {skip: {} for skip in ("off", *skips)}
    n_max = max(len(window) for some in (windows, long_windows) for window in next(iter(some.values())))
    with decoding_arms(llm, skips, n_max) as (decoder, arms):
        of_prompts = [arm for arm in arms if is_prompt_rate(str(arm.policy))]
        others = [arm for arm in arms if arm not in of_prompts]
        for kind in windows:
            tallies = {arm: Tally() for arm in arms}
            for arm in of_prompts:
                score_prompts(llm, decoder, (arms[0], arm), long_windows[kind], dense, tallies[arm])
            for window in windows[kind]:
                first = len(window) - N_SCORED
                for arm, logits in decoder.under_each(others, window, depth, first, is_shared=True):
                    score_window(llm, arm, window, logits, dense, tallies[arm])
            for skip, arm in zip(found, arms, strict=True):
                found[skip][kind] = tallies[arm].result()
    return found


def score_prompts(
    llm: Llama, decoder: Decoder, arms: tuple[PolicyArm, PolicyArm], windows: Sequence[list[int]], dense: LogP,
    tally: Tally,
) -> None:  # fmt: skip
    """What follows a prompt that is skipped: arms are off and one with a rate for prompts."""
    off, arm = arms
    for window in windows:
        first = len(window) - N_SCORED
        if tuple(window) not in dense:
            decoder.begin(off)
            score_window(llm, off, window, decoder.decode(window, 0, first), dense, Tally())
        decoder.begin(arm)
        llm.mark_generated(first)
        llm.reset_skip_stats()
        score_window(llm, arm, window, decoder.decode(window, 0, first), dense, tally)


def qualities(args: argparse.Namespace, profiles: dict[Path, str | None]) -> dict[Point, dict[str, Any]]:
    windows: Windows = {}
    long_windows: Windows = {}
    dense: LogP = {}
    found: dict[Point, dict[str, Any]] = {}
    n_ctx = max(N_SCORED, args.prompt, args.depth) + N_SCORED
    for model, profile in profiles.items():
        print(f"frontier: quality of {model.name}", file=sys.stderr, flush=True)
        with closing(
            Llama(str(model), n_ctx=n_ctx, n_batch=n_ctx, profile=profile, n_threads=args.threads, verbose=False)
        ) as llm:
            windows = windows or windows_of(llm, args.text, args.windows, args.depth or N_SCORED)
            long_windows = long_windows or windows_of(llm, args.text, args.windows, args.prompt)
            skips = args.skip if profile else ()
            for skip, kinds in quality(llm, skips, windows, long_windows, args.depth, dense).items():
                found[model, skip] = kinds
    return found


def speeds(
    args: argparse.Namespace, profiles: dict[Path, str | None]
) -> tuple[dict[Point, dict[str, list[Sample]]], str]:
    """Samples of each point by kind of test, and the instruction set."""
    tests = parse_tests([] if args.depth else [args.prompt], [args.n_gen])
    n_max = max(args.prompt, args.n_gen)
    n_before = args.depth or N_CONTEXT
    taken: dict[Point, dict[str, list[Sample]]] = {}
    with ExitStack() as stack:
        arms: list[Pyskip] = []
        of: dict[int, Point] = {}
        tokens: list[int] = []
        for model, profile in profiles.items():
            setup = {"model": str(model), "profile": profile, "n_ctx": n_max + 8, "depth": args.depth}
            worker = stack.enter_context(Worker("fast", sys.executable, setup))
            text = read_text(args.text[0][1])[: 64 * (n_before + n_max)]
            tokens = tokens or list(worker.ask({"do": "tokenize", "text": text})["tokens"])[: n_before + n_max]
            worker.ask({"do": "set_tokens", "tokens": tokens})
            for skip in ("off", *(args.skip if profile else ())):
                arms.append(Pyskip(worker, skip))
                of[id(arms[-1])] = model, skip
        for round_ in range(args.rounds):
            for arm in order(arms, round_):
                model, skip = of[id(arm)]
                print(
                    f"frontier: round {round_ + 1} of {args.rounds}, {model.name}, {skip}", file=sys.stderr, flush=True
                )
                for test, sample in arm.turn(tests, args.threads).items():
                    taken.setdefault((model, skip), {}).setdefault(test.kind, []).append(sample)
        return taken, str(arms[0].worker.about["instructions"])


def run(args: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        profiles: dict[Path, str | None] = {
            model: str(stack.enter_context(profile_for(model, args.profile))) if args.profile else None
            for model in args.files
        }
        kinds = qualities(args, profiles)
        turns, instructions = speeds(args, profiles)
    return {
        "model": (args.name or args.files[0].stem) + (f" behind {args.depth:,} tokens" if args.depth else ""),
        "cpu": cpu_name(),
        "n_cores": os.cpu_count(),
        "instructions": instructions,
        "n_threads": args.threads,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "reference": args.files[0].name,
        "profile_bytes": args.profile.stat().st_size if args.profile else 0,
        "n_tokens": args.windows * (N_SCORED - 1),
        "n_prompt": args.prompt,
        "points": [
            {
                "file": model.name,
                "bytes": model.stat().st_size,
                "skip": skip,
                "decode_skip_rate": round(float(np.mean([s.skip_rate for s in turns[model, skip]["tg"]])), 4),
                "decode_ts": [round(s.tokens_s, 3) for s in turns[model, skip]["tg"]],
                "prompt_ts": [round(s.tokens_s, 3) for s in turns[model, skip].get("pp", [])],
                "texts": texts,
            }
            for (model, skip), texts in kinds.items()
        ],
    }


def kind_and_file(text: str) -> tuple[str, Path]:
    kind, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected KIND=FILE, for instance wiki=wiki.txt")
    return kind, Path(path)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="GGUF files of one model, the best one first"
    )
    parser.add_argument("--text", action="append", required=True, type=kind_and_file, metavar="KIND=FILE")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="of the first file")
    parser.add_argument("--skip", action="append", default=[], metavar="SPEC", help="may be given repeatedly")
    parser.add_argument("--name", help="of the model (default: the first file's)")
    parser.add_argument("--windows", type=int, default=4, help="of each text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    parser.add_argument("-p", "--prompt", type=int, default=256)
    parser.add_argument("-n", "--n-gen", type=int, default=32)
    parser.add_argument("-d", "--depth", type=int, default=0, help="tokens of context before what is decoded")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # workers end with us, whoever ends us
    try:
        args = parsed(argv)
        new = run(args)
        runs = stored(args.output)["runs"]
        at = earlier(runs, new)
        runs = [r for i, r in enumerate(runs) if i != at] + [new]
        text = json.dumps({"runs": runs}, indent=1) + "\n"
        if args.output:
            args.output.write_text(text)
        else:
            print(text, end="")
    except (ArmError, PyskipError, OSError, ValueError) as error:
        print(f"frontier: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("frontier: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
