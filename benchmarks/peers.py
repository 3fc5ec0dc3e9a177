"""pyskip beside other engines on this machine: prompt and decode rates, in turns, on model files that are given.

    python benchmarks/peers.py MODEL ... [--ik PATH/llama-bench] [--llama-bench PATH] [--skip SPEC ...]
                               [-p 256,512] [-n 32] [-t 1,2] [--rounds N] [-o FILE] [--add]

Arms: pyskip with upstream's kernels and with its own (`upstream`, `fast`), pyskip `fast` under each --skip (a profile
beside the model or --profile FILE), ik_llama.cpp with its run-time repacking (--ik), llama.cpp (--llama-bench). Peers
are programs by path, whoever built them. In every round each arm takes its turn at each number of threads, and the
order rotates; each test runs once untimed before it counts. Ratios are taken within a round.

-o writes what was measured into a JSON file, beside what other models and machines left there, else a table is
printed; --add adds rounds to those that are there, so that a long measurement can be taken in pieces. --python names
another Python that has pyskip, for instance one built for AVX2 alone: then give peers built likewise.
`python benchmarks/peers_page.py` makes the table and the plot of docs/benchmarks.md of docs/results/peers.json.

Memory: pyskip's two processes stay loaded, a peer loads in its turn: three times the model, and the file itself.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from peers_arms import Arm, ArmError, LlamaBench, Pyskip, Sample, Test, Worker, parse_tests
from peers_page import table

from pyskip.errors import PyskipError
from pyskip.models import resolve
from pyskip.system import cpu_name

ROOT = Path(__file__).resolve().parent.parent
N_CONTEXT = 16  # as in peers_worker.py
N_WRITTEN = 96  # tokens, by a model that is asked for its own text: a slow machine takes seconds
Key = tuple[str, str, int]  # arm, test, threads
# of a run, what must be the same where rounds are added
FIXED = ("cpu", "instructions", "model", "model_bytes", "commit", "arms")


def order(arms: Sequence[Arm], round_: int) -> list[Arm]:
    """Every arm comes first in its turn."""
    first = round_ % len(arms)
    return [*arms[first:], *arms[:first]]


def measure(
    arms: Sequence[Arm], tests: Sequence[Test], threads: Sequence[int], rounds: range, progress: Callable[[str], None]
) -> dict[Key, list[Sample]]:
    """Samples by arm, test and threads, one a round. Ctrl-C ends with the rounds that are whole."""
    taken: dict[Key, list[Sample]] = {}
    try:
        for round_ in rounds:
            turns: dict[Key, Sample] = {}
            for n_threads in threads:
                for arm in order(arms, round_):
                    progress(f"round {round_ - rounds.start + 1} of {len(rounds)}, {n_threads} threads, {arm.name}")
                    for test, sample in arm.turn(tests, n_threads).items():
                        turns[arm.name, str(test), n_threads] = sample
            for key, sample in turns.items():
                taken.setdefault(key, []).append(sample)
    except KeyboardInterrupt:
        if not taken:
            raise
    return taken


def rows_of(taken: dict[Key, list[Sample]]) -> list[dict[str, Any]]:
    return [
        {
            "arm": arm,
            "test": test,
            "n_threads": n_threads,
            "samples_ts": [round(sample.tokens_s, 3) for sample in samples],
            "skip_rate": round(statistics.mean(sample.skip_rate for sample in samples), 4),
        }
        for (arm, test, n_threads), samples in taken.items()
    ]


def added(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A run and more rounds of the same. Raises ArmError if it is not the same."""
    for key in FIXED:
        if old[key] != new[key]:
            raise ArmError(f"--add found {key} {old[key]!r} in the file, expected {new[key]!r}: measure without --add")
    before = {(row["arm"], row["test"], row["n_threads"]): row for row in old["rows"]}
    now = [(row["arm"], row["test"], row["n_threads"]) for row in new["rows"]]
    if sorted(before) != sorted(now):
        raise ArmError("--add found other tests in the file, expected the same -p, -n and -t: measure without --add")
    rows = []
    for place, row in zip(now, new["rows"], strict=True):
        was = before[place]
        n_old, n_new = len(was["samples_ts"]), len(row["samples_ts"])
        rate = (n_old * was["skip_rate"] + n_new * row["skip_rate"]) / (n_old + n_new)
        rows.append({**row, "samples_ts": was["samples_ts"] + row["samples_ts"], "skip_rate": round(rate, 4)})
    return {**new, "rows": rows}


def earlier(runs: Sequence[dict[str, Any]], run: dict[str, Any]) -> int | None:
    """Where the file has the same model on the same machine with the same instructions."""
    names = ("cpu", "instructions", "model")
    return next((i for i, r in enumerate(runs) if all(r[name] == run[name] for name in names)), None)


def commit() -> str:
    """The commit of this tree, with + where there are changes."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True, check=True)
        status = [*git, "status", "--porcelain", "--untracked-files=no", ":!docs"]
        changes = subprocess.run(status, capture_output=True, text=True, check=True)
        return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [-1]
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected whole numbers with commas between")
    return found


def tokens_of(worker: Worker, n: int, args: argparse.Namespace) -> list[int]:
    """n tokens: the text's, or what the model writes, over and over."""
    if args.text:
        tokens = list(worker.ask({"do": "tokenize", "text": args.text.read_text()[: 32 * n]})["tokens"])
        if len(tokens) < n:
            raise ArmError(f"found {len(tokens)} tokens of text, expected {n}: take a longer text, or lower -p and -n")
        return tokens[:n]
    print("peers: the model writes what is read", file=sys.stderr, flush=True)
    written = list(worker.ask({"do": "sample", "n": min(n, N_WRITTEN), "seed": args.seed})["tokens"])
    return [written[i % len(written)] for i in range(n)]


def start_pyskip(args: argparse.Namespace, model: Path, tests: Sequence[Test], stack: ExitStack) -> list[Pyskip]:
    """The arms of pyskip, without those that this build has not, which is said."""
    n_max = max(test.n for test in tests)
    setup = {"model": str(model), "profile": args.profile and str(args.profile), "n_ctx": n_max + 8}
    workers: dict[str, Worker] = {}
    for kernels in args.kernels:
        try:
            workers[kernels] = stack.enter_context(Worker(kernels, args.python, setup))
        except ArmError as error:
            if kernels == "upstream":
                raise
            print(f"peers: {error}", file=sys.stderr)
    first = next(iter(workers.values()), None)
    if first is None:
        raise ArmError("no arm of pyskip is left, expected at least one: name --kernels upstream")
    tokens = tokens_of(first, N_CONTEXT + n_max, args)
    for worker in workers.values():
        worker.ask({"do": "set_tokens", "tokens": tokens})
    skipping = workers.get("fast", first)
    return [*(Pyskip(w) for w in workers.values()), *(Pyskip(skipping, skip) for skip in args.skip)]


def run_model(args: argparse.Namespace, model: Path, n_before: int) -> dict[str, Any]:
    """n_before: rounds that there are already. Raises ArmError."""
    tests = parse_tests(args.prompt, args.n_gen)
    if not tests:
        raise ArmError("-p 0 -n 0 leaves no test, expected one: give at least one size")

    def progress(text: str) -> None:
        print(f"peers: {model.name}: {text}", file=sys.stderr, flush=True)

    with ExitStack() as stack:
        own = start_pyskip(args, model, tests, stack)
        about = own[0].worker.about
        arms: list[Arm] = [*own]
        for name, kind, path in (("llama.cpp", "llama-bench", args.llama_bench), ("ik_llama.cpp", "ik", args.ik)):
            if path:
                arms.append(LlamaBench(name, kind, path, model))
        taken = measure(arms, tests, args.threads, range(n_before, n_before + args.rounds), progress)
        return {
            "model": model.name,
            "model_bytes": model.stat().st_size,
            "cpu": cpu_name(),
            "n_cores": os.cpu_count(),
            "instructions": about["instructions"],
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "arms": [{"name": arm.name, "build": arm.build, "flags": arm.flags} for arm in arms],
            "rows": rows_of(taken),
        }


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a GGUF file, or what else pyskip takes as one")
    parser.add_argument("--ik", type=Path, metavar="PATH", help="ik_llama.cpp's llama-bench")
    parser.add_argument("--llama-bench", type=Path, metavar="PATH", help="llama.cpp's")
    parser.add_argument("--kernels", nargs="+", default=["upstream", "fast"], choices=("upstream", "fast"))
    parser.add_argument("--skip", action="append", default=[], metavar="SPEC", help="an arm; may be given repeatedly")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="of the model, where it is not beside it")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="what is read and decoded (default: the model writes)"
    )
    parser.add_argument("-p", "--prompt", type=numbers, default=[256, 512], metavar="N,N")
    parser.add_argument("-n", "--n-gen", type=numbers, default=[32], metavar="N,N")
    parser.add_argument("-t", "--threads", type=numbers, default=[1, 2], metavar="N,N")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the text that the model writes")
    parser.add_argument("--python", default=sys.executable, help="runs pyskip (default: this one)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="JSON")
    parser.add_argument("--add", action="store_true", help="to the rounds in FILE")
    args = parser.parse_args(argv)
    if args.add and not args.output:
        parser.error("--add adds to the file of -o: name one")
    return args


def stored(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {"runs": []}
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def run(args: argparse.Namespace) -> None:
    for name in args.models:
        model = Path(resolve(name))
        runs = stored(args.output)["runs"]
        n_before = max((len(r["rows"][0]["samples_ts"]) for r in runs if r["model"] == model.name), default=0)
        new = run_model(args, model, n_before if args.add else 0)
        at = earlier(runs, new)
        if at is None:
            runs.append(new)
        else:
            runs[at] = added(runs[at], new) if args.add else new
        if args.output:
            args.output.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
        else:
            print(table([new]))


def main(argv: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # workers end with us, whoever ends us
    try:
        run(parsed(argv))
    except (ArmError, PyskipError) as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"peers: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("peers: interrupted before the first round was whole", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
