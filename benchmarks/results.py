"""Measures what docs/results.md shows, into JSON files beside its plots, and has the page written (results_page.py).

    make results DATA=FOLDER [ONLY="STEP ..."]
    python benchmarks/results.py --text FILE --lambada FILE ... [--only STEP ...] [-o docs/results]

Steps, in this order; each needs the ones that it names to have run, in this or an earlier call:

    headline  the profile's and the paper's policy at three rates, on 80 windows of the text
    accuracy  the profile at a rate of 0.25 on every item of lambada, factoid and arc_easy
    cos       cos(x, z) of each block on the text, dense
    arms      what to compare: the layers of `static` by single ablation, the thresholds of `cosine` (cos)
    text, lambada, factoid, arc_easy, cnn     quality of each policy at each rate, by `pyskip eval` (arms)
    bench     decode rates of the policies, by pyskip.bench; wants an otherwise idle machine (arms)
    calibration  profiles that `pyskip calibrate` makes with other flags, and from other text, on the text
    page      the page and the plots

Every score goes to a journal in build/results first: after Ctrl-C the same command goes on where it was, and more
windows or items (--chunks, --items) add to what is there. On two slow cores, with the default counts, near three hours:
headline 22, accuracy 30, arms 6, text 17, lambada 19, factoid 6, arc_easy 8, cnn 13, bench 5, calibration 12.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results_page

import pyskip
from pyskip._library import BUILD
from pyskip._system import cpu_name, physical_cores
from pyskip.bench import Arm, Test, run_bench
from pyskip.errors import PyskipError
from pyskip.models import resolve
from pyskip.policy import parse_skip
from pyskip.tasks import read_text

ROOT = Path(__file__).resolve().parent.parent
UNPATCHED = ROOT / "build" / "reference" / "lib"
LOAD_UNPATCHED = {"LLAMA_CPP_LIB_PATH": str(UNPATCHED)}
PAIRS = 'JSON lines with "context" and "continuation"'
FORMATS = {
    "text": "UTF-8 text",
    "lambada": PAIRS,
    "factoid": PAIRS,
    "arc_easy": 'JSON lines with "query", "choices" and "gold"',
    "cnn": 'JSON lines with "article" and "highlights"',
}
EXACT = ("lambada", "factoid", "arc_easy")  # accuracies, of short items
FIXED = ("headline", "accuracy", "cos", "calibration")  # steps that do not go by --rates
STEPS = ("headline", "accuracy", "cos", "arms", *FORMATS, "bench", "calibration", "page")
READS = {
    "headline": ("text",),
    "accuracy": EXACT,
    "cos": ("text",),
    "arms": ("text",),
    "bench": ("text",),
    "calibration": ("text", "fit"),
    **{name: (name,) for name in FORMATS},
}
ITEMS = {"lambada": 100, "factoid": 200, "arc_easy": 60, "cnn": 8}  # by default
RATES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35)
HEADLINE = (0.1, 0.25, 0.4)
PAPER = {0.1: (0.984, 2), 0.25: (0.97, 2), 0.4: (0.95, 4)}  # threshold and run of `cosine` that about meet these rates
HEADLINE_WINDOWS, UNPATCHED_WINDOWS = 80, 20
# Flags of `pyskip calibrate`; FIT stands for the text to fit on.
CALIBRATIONS = ("--fit 12", "--fit 12 --text FIT", "--fit 12 --text FIT --harm 0")
CALIBRATION_RATES, CALIBRATION_WINDOWS = (0.1, 0.2, 0.3), 12
N_CTX = 512
ARM_WINDOWS = 4  # of the text, to choose arms on
SEARCHES = 4  # rounds of the search for thresholds, 2 windows each
CLOSE = 0.003  # a rate that is met so closely is found


@dataclass(frozen=True)
class Setup:
    model: str
    inputs: dict[str, Path]
    out: Path
    work: Path
    chunks: int
    items: int | None
    rates: tuple[float, ...]
    rounds: int

    @property
    def path(self) -> Path:
        return resolve(self.model)

    def count(self, name: str) -> int:
        """Items of a task at most."""
        return ITEMS[name] if self.items is None else self.items

    def rates_of(self, name: str) -> tuple[float, ...]:
        """The slow steps take every second rate."""
        return self.rates[::2] if name in ("cnn", "bench") else self.rates

    def load(self, name: str) -> dict[str, Any]:
        """What an earlier step found."""
        path = self.out / f"{name}.json"
        if not path.exists():
            raise PyskipError(f"{path}: no such file, expected what the step {name} writes: run --only {name} first")
        document: dict[str, Any] = json.loads(path.read_text())
        return document


# The command line that measures, and what it says


def pyskip_json(*args: str) -> dict[str, Any]:
    """The document that the command line prints."""
    done = subprocess.run([sys.executable, "-m", "pyskip", *args, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit(done.returncode)  # it has said why
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def evaluate(
    setup: Setup, journal: str, name: str, n: int | None, skips: Iterable[str], flags: Sequence[str] = ()
) -> dict[str, Any]:
    """`pyskip eval` of n windows or items (None: all): its rows by policy."""
    what = "--text" if name == "text" else "--task"
    command = ["eval", setup.model, what, str(setup.inputs[name]), *flags]
    command += ["--resume", str(setup.work / f"{journal}.jsonl")]
    command += [] if n is None else ["--chunks", str(n)]
    command += [flag for skip in skips for flag in ("--skip", skip)]
    return {row["skip"]: row for row in pyskip_json(*command)["results"]}


def save(setup: Setup, step: str, found: dict[str, Any], *, date: float | None = None, flags: str = "") -> None:
    """found, beside what it was found with. date: seconds since the epoch, now by default."""
    info = pyskip.inspect(setup.path)
    sizes = {"n_layer": info.n_layer, "n_params": info.n_params}
    day = datetime.date.fromtimestamp(time.time() if date is None else date)
    names = READS.get(step, ())
    words = [".venv/bin/python benchmarks/results.py --only", step, "--model", Path(setup.model).name]
    words += [f"--{name.replace('_', '-')} {setup.inputs[name].name}" for name in names]
    words += [] if setup.rates == RATES or step in FIXED else ["--rates", *map(str, setup.rates)]
    document = {
        "step": step,
        "command": " ".join([*words, flags]).strip(),
        "date": day.isoformat(),
        "model": {"name": info.name, "file": setup.path.name, **sizes, "fingerprint": info.fingerprint},
        "cpu": cpu_name(),
        "n_threads": physical_cores(),
        "build": BUILD,
        "inputs": {name: {"name": setup.inputs[name].name, "sha256": sha256(setup.inputs[name])} for name in names},
        **found,
    }
    setup.out.mkdir(parents=True, exist_ok=True)
    (setup.out / f"{step}.json").write_text(json.dumps(rounded(document), indent=1) + "\n")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rounded(value: Any) -> Any:
    """Six digits say more than was measured."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


# Steps


def measure_headline(setup: Setup) -> None:
    """What the README shows: the profile, and the paper's policy at about the same rates."""
    chosen = [("profile", rate, str(rate)) for rate in HEADLINE]
    chosen += [("cosine", rate, "cosine:threshold={},run={}".format(*PAPER[rate])) for rate in HEADLINE]
    rows = evaluate(setup, "headline", "text", HEADLINE_WINDOWS, [spec for _, _, spec in chosen])
    save_rows(setup, "headline", "headline", HEADLINE_WINDOWS, chosen, rows, more=compare_unpatched(setup))


def compare_unpatched(setup: Setup) -> dict[str, Any]:
    """Perplexity by pyskip, dense, and by unpatched llama.cpp, where that is built."""
    if not (UNPATCHED / "libllama.so").exists():
        return {}
    ours = evaluate(setup, "headline", "text", UNPATCHED_WINDOWS, [])["off"]["ppl"]
    script = [str(ROOT / "tests" / "perplexity.py"), str(setup.path), str(setup.inputs["text"])]
    theirs = subprocess.run(
        [sys.executable, *script, str(N_CTX), str(UNPATCHED_WINDOWS)], env={**os.environ, **LOAD_UNPATCHED},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return {"unpatched": {"n": UNPATCHED_WINDOWS, "ppl": float(theirs.stdout), "ppl_off": ours}}


def save_rows(
    setup: Setup, step: str, journal: str, n: int, chosen: list[tuple[str, float, str]], rows: dict[str, Any],
    warmup: int = 16, flags: str = "", more: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """The rows that were chosen, by policy and nominal rate, beside the dense one."""
    compared = [{"policy": p, "nominal": rate, **rows[str(parse_skip(spec))]} for p, rate, spec in chosen]
    found = {"warmup": warmup, "n": n, "dense": rows["off"], "rows": compared, **(more or {})}
    save(setup, step, found, date=(setup.work / f"{journal}.jsonl").stat().st_mtime, flags=flags)


def measure_accuracy(setup: Setup) -> None:
    """Every item of the short tasks (--items: so many), without a warm-up, within which the shortest would end."""
    skip = "profile:rate=0.25,warmup=0"
    rows = {name: evaluate(setup, f"accuracy-{name}", name, setup.items, [skip]) for name in EXACT}
    tasks = {name: {"dense": r["off"], "row": r[skip]} for name, r in rows.items()}
    save(setup, "accuracy", {"tasks": tasks}, flags="" if setup.items is None else f"--items {setup.items}")


def measure_cos(setup: Setup) -> None:
    """cos(x, z) of the scored tokens, by layer."""
    policy = "cosine:threshold=2,run=1,cold_start=0,cold_end=0,warmup=0"  # tests every block and skips none
    llm = pyskip.Llama(
        setup.path, skip=policy, n_ctx=N_CTX, n_batch=N_CTX, n_ubatch=N_CTX, logits_all=True, verbose=False
    )
    tokens = llm.tokenize(read_text(setup.inputs["text"]).encode(), add_bos=True, special=False)
    n = min(ARM_WINDOWS, len(tokens) // N_CTX)
    llm.start_trace(N_CTX)
    found = []
    for i in range(n):
        llm.reset()
        llm.mark_generated(0)
        llm.eval(tokens[i * N_CTX : (i + 1) * N_CTX])
        found.append(llm.take_trace(N_CTX).similarity[N_CTX // 2 :])
    llm.close()
    similarity = np.concatenate(found).astype(np.float64)
    low, high = np.quantile(similarity, (0.1, 0.9), axis=0)
    values = {"mean": similarity.mean(axis=0).tolist(), "p10": low.tolist(), "p90": high.tolist()}
    save(setup, "cos", {"n_tokens": len(similarity), "skip": policy, **values})


def choose_arms(setup: Setup) -> None:
    """The layers of `static`, cheapest first, and a threshold of `cosine` for each rate."""
    n_layer = pyskip.inspect(setup.path).n_layer
    n = min(ARM_WINDOWS, setup.chunks)
    rows = evaluate(setup, "arms", "text", n, [f"static:{il}" for il in range(n_layer)])
    ratios = [float(rows[f"static:{il}"]["ppl_ratio"] or "inf") for il in range(n_layer)]
    found = {
        "n_windows": n,
        "single": [ratio if np.isfinite(ratio) else None for ratio in ratios],
        "order": sorted(range(n_layer), key=lambda il: ratios[il]),
        "thresholds": find_thresholds(setup, min(2, n)),
    }
    save(setup, "arms", found, date=(setup.work / "arms.jsonl").stat().st_mtime, flags=f"--chunks {setup.chunks}")


def find_thresholds(setup: Setup, n: int) -> dict[str, float]:
    """A threshold for each rate, on n windows: a grid over the cosines, then again and again between its points."""
    cos = setup.load("cos")
    inner = slice(results_page.COLD, -results_page.COLD)
    low, high = min(cos["p10"][inner]), max(cos["p90"][inner])
    wanted = np.linspace(low, high, 9).tolist()
    met: dict[float, float] = {}  # rates by threshold
    for _ in range(SEARCHES):
        new = sorted({round(t, 5) for t in wanted} - set(met))
        if not new:
            break
        specs = {t: str(parse_skip(f"cosine:threshold={t},run=1")) for t in new}
        rows = evaluate(setup, "arms", "text", n, specs.values())
        met.update({t: rows[spec]["skip_rate"] for t, spec in specs.items()})
        falling = sorted(met, reverse=True)
        far = [rate for rate in setup.rates if min(abs(r - rate) for r in met.values()) > CLOSE]
        wanted = np.interp(far, [met[t] for t in falling], falling).tolist()

    def nearest(rate: float) -> float:
        return min(met, key=lambda t: abs(met[t] - rate))

    return {str(rate): nearest(rate) for rate in setup.rates}


def policies(arms: dict[str, Any], rates: Sequence[float], warmup: int) -> list[tuple[str, float, str]]:
    """What is compared: policy, nominal rate, specification."""
    n_layer = arms["model"]["n_layer"]
    chosen = []
    for rate in rates:
        layers = sorted(arms["order"][: max(1, round(rate * n_layer))])
        threshold = arms["thresholds"][str(rate)]
        chosen += [
            ("random", rate, f"random:rate={rate},seed=1,warmup={warmup}"),
            ("static", rate, f"static:{','.join(map(str, layers))}"),
            ("cosine", rate, f"cosine:threshold={threshold},run=1,warmup={warmup}"),
            ("profile", rate, f"profile:rate={rate},warmup={warmup}"),
        ]
    return chosen


def measure_quality(setup: Setup, name: str) -> None:
    """Every policy at every rate, on one of the inputs. Short items, within a warm-up's length, are taken without."""
    warmup = 0 if name in EXACT else 16
    chosen = policies(setup.load("arms"), setup.rates_of(name), warmup)
    n = setup.chunks if name == "text" else setup.count(name)
    rows = evaluate(setup, name, name, n, [spec for _, _, spec in chosen])
    flags = f"--chunks {n}" if name == "text" else f"--items {n}"
    save_rows(setup, name, name, n, chosen, rows, warmup, flags)


def measure_speed(setup: Setup) -> None:
    """Decode rates in turns on the text, behind as many tokens as are before the scored ones of a window. Without
    warm-ups, which would be a quarter of what is timed."""
    chosen = [p for p in policies(setup.load("arms"), setup.rates_of("bench"), 0) if p[0] != "random"]
    arms = [Arm("off", "off"), *(Arm(f"{p} {rate}", spec) for p, rate, spec in chosen)]
    if (UNPATCHED / "libllama.so").exists():
        arms.append(Arm("unpatched", None, env=LOAD_UNPATCHED))
    result = run_bench(
        setup.path, arms, [Test("tg", 64, depth=N_CTX // 2)], rounds=setup.rounds, n_threads=physical_cores(),
        text=read_text(setup.inputs["text"]), progress=show,
    )  # fmt: skip
    named = {f"{p} {rate}": {"policy": p, "nominal": rate} for p, rate, _ in chosen}
    rows = [{"policy": row.arm, "nominal": None, **named.get(row.arm, {}), **asdict(row)} for row in result.rows]
    save(setup, "bench", {"rounds": result.rounds, "rows": rows}, flags=f"--rounds {setup.rounds}")


def measure_calibrations(setup: Setup) -> None:
    """Profiles by closed form, made here unless they are there already."""
    kept = setup.work / f"calibrations-{sha256(setup.inputs['fit'])[:8]}.json"
    made: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    found = []
    for i, flags in enumerate(CALIBRATIONS):
        profile = setup.work / f"calibration-{i}.skip.gguf"
        if flags not in made:
            words = [str(setup.inputs["fit"]) if word == "FIT" else word for word in flags.split()]
            made[flags] = pyskip_json("calibrate", setup.model, *words, "-o", str(profile))
            kept.write_text(json.dumps(made))
        top = made[flags]["curve"][-1]["rate"]
        skips = [str(rate) for rate in CALIBRATION_RATES if rate <= top]
        rows = evaluate(
            setup, "calibration", "text", CALIBRATION_WINDOWS, skips, ["--profile", str(profile)]
        )  # fmt: skip
        found.append({
            "flags": flags, "seconds": made[flags]["seconds"], "n_tokens": made[flags]["n_tokens"],
            "rows": [row for skip, row in rows.items() if skip != "off"],
        })  # fmt: skip
    save(setup, "calibration", {"n": CALIBRATION_WINDOWS, "dense": rows["off"], "calibrations": found})


def show(done: int, total: int) -> None:
    live = sys.stderr.isatty()
    if live or done == total:
        print(f"{chr(13) if live else ''}{done}/{total} samples", end="" if done < total else "\n", file=sys.stderr)


MEASURES = {
    "headline": measure_headline,
    "accuracy": measure_accuracy,
    "cos": measure_cos,
    "arms": choose_arms,
    "bench": measure_speed,
    "calibration": measure_calibrations,
}


def run(setup: Setup, step: str) -> None:
    if step in FORMATS:
        measure_quality(setup, step)
    elif step == "page":
        results_page.write(setup.out)
    else:
        MEASURES[step](setup)


# The command line


def parse(argv: Sequence[str] | None) -> tuple[Setup, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="a path, or demo")
    for name, form in FORMATS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", f"--{name}", type=Path, metavar="FILE", help=form)
    parser.add_argument("--fit", type=Path, metavar="FILE", help="UTF-8 text to calibrate on")
    parser.add_argument("--chunks", type=int, default=16, help="windows of the text")
    parser.add_argument("--items", type=int, help=f"of each task; default {ITEMS}")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--rounds", type=int, default=10, help="of the bench")
    parser.add_argument("--only", choices=STEPS, nargs="+", default=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs" / "results", help="folder; the page beside it")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "results", help="folder of the journals")
    args = parser.parse_args(argv)
    inputs = {name: getattr(args, name) for name in (*FORMATS, "fit")}
    steps = [step for step in STEPS if step in args.only]
    for name in dict.fromkeys(name for step in steps for name in READS.get(step, ())):
        if inputs[name] is None or not inputs[name].is_file():
            found = "no file given" if inputs[name] is None else f"{inputs[name]}: no such file"
            raise PyskipError(
                f"{found}, expected {FORMATS.get(name, 'UTF-8 text')}: name it with --{name.replace('_', '-')}"
            )
    setup = Setup(args.model, inputs, args.out, args.work, args.chunks, args.items, tuple(args.rates), args.rounds)
    return setup, steps


def main(argv: Sequence[str] | None = None) -> int:
    try:
        setup, steps = parse(argv)
        setup.work.mkdir(parents=True, exist_ok=True)
        for step in steps:
            print(f"results: {step}", file=sys.stderr, flush=True)
            run(setup, step)
    except PyskipError as error:
        print(f"results: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("results: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
