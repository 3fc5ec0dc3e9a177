"""When to take a smaller quantisation, when to skip, when both: speed and quality of one model's files on this machine.

    python benchmarks/frontier.py FILE ... --text KIND=FILE [--text ...] [--profile FILE] [--skip SPEC ...]
                                  [--windows N] [--rounds N] [-t N] [-o FILE]

FILEs are quantisations of one model. The first is what the others are compared with, and what the profile was made for;
its profile serves the others too, since their blocks compute nearly the same. Quality is taken on each --text: the same
windows of 256 tokens for every point, the second half of each scored, perplexity as a ratio and KL divergence to the
first file, dense. Under `prompt=` windows are longer: a prompt of as many tokens as is timed is skipped, and what is
scored is the 128 tokens that follow. Speed is taken in turns: in every round
each point takes its turn, and the order rotates; see benchmarks/peers.py. -o keeps what other models and machines left
in the file; benchmarks/frontier_page.py makes docs/frontier.md of it.

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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peers import N_CONTEXT, commit, cpu_name, earlier, order, stored
from peers_arms import ArmError, Pyskip, Sample, Worker, parse_tests

from pyskip import Llama
from pyskip.errors import PyskipError
from pyskip.evaluation.score import score
from pyskip.evaluation.tasks import read_text
from pyskip.models.gguf_info import inspect
from pyskip.models.profile import Profile
from pyskip.runtime.decoding import Decoder, PolicyArm, decoding_arms

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


def scored(
    llm: Llama, decoder: Decoder, arm: PolicyArm, is_prompt: bool, windows: Sequence[list[int]], dense: LogP
) -> dict[str, float]:
    """Of an arm on windows of one kind of text; where `dense` has none of a window, it is filled."""
    log_p, dense_log_p, kld, n_skipped, n = [], [], [], 0, 0
    llm.reset_skip_stats()
    for window in windows:
        first = len(window) - N_SCORED
        decoder.begin(arm)
        if is_prompt:
            llm.mark_generated(first)  # what is scored is what follows
        logits = decoder.decode(window, 0, first)
        is_first = tuple(window) not in dense
        if is_first:
            dense[tuple(window)] = np.empty(logits.shape, np.float32)
        reference, targets = dense[tuple(window)], window[first + 1 :]
        scores = score(logits, targets, reference, is_dense=is_first)
        n_tokens, skipped = arm.take()
        skipped = skipped[: len(skipped) // 2]  # FFNs, without attention
        log_p.append(scores.log_p)
        dense_log_p.append(reference[np.arange(len(targets)), targets])
        kld.append(scores.kld)
        n_skipped, n = n_skipped + int(skipped.sum()), n + n_tokens * len(skipped)
    if is_prompt:
        n_skipped, n = prompt_counts(llm)
    ppl, dense_ppl = (float(np.exp(-np.concatenate(p).mean())) for p in (log_p, dense_log_p))
    return {
        "ppl": round(ppl, 4),
        "dense_ppl": round(dense_ppl, 4),
        "kld": round(float(np.concatenate(kld).mean()), 5),
        "skip_rate": round(n_skipped / n, 4),
    }


def quality(
    llm: Llama, skips: Sequence[str], windows: Windows, long_windows: Windows, dense: LogP
) -> dict[str, dict[str, Any]]:
    """Of each skip, and of off, by kind of text; of rates for prompts on the long windows. `dense` is filled by the
    first Llama's off."""
    found: dict[str, dict[str, Any]] = {}
    n_max = max(len(window) for some in (windows, long_windows) for window in next(iter(some.values())))
    with decoding_arms(llm, skips, n_max) as (decoder, arms):
        if not dense and any(map(is_prompt_rate, skips)):
            for some in long_windows.values():
                scored(llm, decoder, arms[0], False, some, dense)
        for arm, skip in zip(arms, ("off", *skips), strict=True):
            is_prompt = is_prompt_rate(skip)
            by_kind = long_windows if is_prompt else windows
            found[skip] = {kind: scored(llm, decoder, arm, is_prompt, some, dense) for kind, some in by_kind.items()}
    return found


def qualities(args: argparse.Namespace, profiles: dict[Path, str | None]) -> dict[Point, dict[str, Any]]:
    windows: Windows = {}
    long_windows: Windows = {}
    dense: LogP = {}
    found: dict[Point, dict[str, Any]] = {}
    n_ctx = max(N_SCORED, args.prompt) + N_SCORED
    for model, profile in profiles.items():
        print(f"frontier: quality of {model.name}", file=sys.stderr, flush=True)
        with closing(
            Llama(str(model), n_ctx=n_ctx, n_batch=n_ctx, profile=profile, n_threads=args.threads, verbose=False)
        ) as llm:
            windows = windows or windows_of(llm, args.text, args.windows, N_SCORED)
            long_windows = long_windows or windows_of(llm, args.text, args.windows, args.prompt)
            for skip, kinds in quality(llm, args.skip if profile else (), windows, long_windows, dense).items():
                found[model, skip] = kinds
    return found


def speeds(
    args: argparse.Namespace, profiles: dict[Path, str | None]
) -> tuple[dict[Point, dict[str, list[Sample]]], str]:
    """Samples of each point by kind of test, and the instruction set."""
    tests = parse_tests([args.prompt], [args.n_gen])
    n_max = max(args.prompt, args.n_gen)
    taken: dict[Point, dict[str, list[Sample]]] = {}
    with ExitStack() as stack:
        arms: list[Pyskip] = []
        of: dict[int, Point] = {}
        tokens: list[int] = []
        for model, profile in profiles.items():
            setup = {"model": str(model), "profile": profile, "n_ctx": n_max + 8}
            worker = stack.enter_context(Worker("fast", sys.executable, setup))
            text = read_text(args.text[0][1])[: 64 * n_max]
            tokens = tokens or list(worker.ask({"do": "tokenize", "text": text})["tokens"])[: N_CONTEXT + n_max]
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
        "model": args.name or args.files[0].stem,
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
                "prompt_ts": [round(s.tokens_s, 3) for s in turns[model, skip]["pp"]],
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
