"""The steps of `make results`: what is measured, and with what settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

import pyskip
from pyskip.bench import Arm, Test, run_bench
from pyskip.evaluation.tasks import read_text
from pyskip.policy import parse_skip
from pyskip.system import physical_cores

from . import page
from .setup import EXACT, FORMATS, ROOT, Setup, evaluate, pyskip_json, save, sha256

__all__ = ["run"]

UNPATCHED = ROOT / "build" / "reference" / "lib"
LOAD_UNPATCHED = {"LLAMA_CPP_LIB_PATH": str(UNPATCHED)}
HEADLINE = (0.1, 0.25, 0.4)
PAPER = {0.1: (0.984, 2), 0.25: (0.97, 2), 0.4: (0.95, 4)}  # threshold and run of `cosine` that about meet these rates
HEADLINE_WINDOWS, UNPATCHED_WINDOWS = 80, 20
# Flags of `pyskip calibrate`; FIT stands for the text to fit on.
CALIBRATIONS = ("", "--text FIT", "--text FIT --harm 0")
CALIBRATION_RATES, CALIBRATION_WINDOWS = (0.1, 0.2, 0.3), 12
N_CTX = 512
ARM_WINDOWS = 4  # of the text, to choose arms on
SEARCHES = 4  # rounds of the search for thresholds, 2 windows each
CLOSE = 0.003  # a rate that is met so closely is found


def measure_headline(setup: Setup) -> None:
    """What the README shows: the profile, and the paper's policy at about the same rates."""
    chosen = [("profile", rate, str(rate)) for rate in HEADLINE]
    chosen += [("cosine", rate, "cosine:threshold={},run={}".format(*PAPER[rate])) for rate in HEADLINE]
    rows = evaluate(setup, "headline", "text", HEADLINE_WINDOWS, [spec for _, _, spec in chosen])
    save_rows(setup, "headline", "headline", HEADLINE_WINDOWS, chosen, rows, more=compare_unpatched(setup))


def compare_unpatched(setup: Setup) -> dict[str, Any]:
    """Perplexity by pyskip, dense, and by unpatched llama.cpp, if that is built."""
    if not (UNPATCHED / "libllama.so").exists():
        return {}
    ours = evaluate(setup, "headline", "text", UNPATCHED_WINDOWS, [])["off"]["ppl"]
    script = [str(ROOT / "tests" / "support" / "perplexity.py"), str(setup.path), str(setup.inputs["text"])]
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
    inner = slice(page.COLD, -page.COLD)
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
        page.write(setup.out)
    else:
        MEASURES[step](setup)
