"""Upstream's own tests on unpatched llama.cpp and on pyskip's, side by side: `make upstream-test` calls this.

    python tests/upstream/run.py [--only REGEX] [--resume] [--timeout SECONDS] [--page FILE]

One binary of each test runs on either set of libraries. That is the same as building it from either tree as long as no
test includes a file that a patch changes, which is checked. --resume keeps what an interrupted run had done, --page
writes the tables into the section "Results" of FILE, docs/reference/upstream-tests.md.

Exit 0: nothing passes unpatched and fails patched. 1: something does, or an error. 2: usage. 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path

from pyskip.binding.library import BUILD
from pyskip.models import resolve
from pyskip.system import cpu_name

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "upstream-tests"
TREE, BINARIES, RESULTS = WORK / "tree", WORK / "cmake", WORK / "results.json"
TITLE, HEADING = "# Upstream's own tests", "## Results"
LIBRARIES = {
    "unpatched": ROOT / "build" / "reference" / "lib",
    "patched": Path(sysconfig.get_path("platlib")) / "pyskip" / "lib",
}
DOWNLOADS, TOOL = "downloads what it needs", "a tool: it has no pass or fail"
# What does not run here, by the name of its source or of its registration, and why.
LEFT_OUT = {
    "test-arg-parser": "fetches a web page at its end",
    "test-backend-sampler": "its cases run one by one",
    "test-backend-sampler-logit_bias": "expects a word that only upstream's model says",
    "test-c": "checks at compile time that llama.h is C: it was built",
    "test-chat-analysis": TOOL,
    "test-double-float": "upstream has switched it off: slow; of rounding, without llama.cpp",
    "test-download-model": f"{DOWNLOADS}: the demo model stands in",
    "test-export-graph-ops": TOOL,
    "test-fusion": "compares with a baseline of Metal",
    "test-gbnf-validator": TOOL,
    "test-gguf-model-data": DOWNLOADS,
    "test-grammar-llguidance": "needs a library in Rust, downloaded",
    "test-lora-conversion-inference": DOWNLOADS,
    "test-quant-type-selection": DOWNLOADS,
    "test-quantize-stats": TOOL,
    "test-rpc-multi-server": "of the RPC back end, which pyskip does not build",
    "test-rset-release": "of Metal",
    "test-tokenizer-1-bpe": "upstream has switched it off: slow",
    "test-tokenizer-random": "compares with tokenizers that it downloads",
    "test-tokenizers-ggml-vocabs": DOWNLOADS,
    "test-tokenizers-repo": DOWNLOADS,
}
Results = dict[str, dict[str, dict[str, str | float]]]


class Failure(Exception):
    """One line: what was found, what was expected, what to do."""


def search_path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def tool(name: str) -> str:
    """ctest or ninja, of the virtual environment if it has them."""
    found = shutil.which(name, path=search_path())
    if not found:
        raise Failure(f"{name} not found: run `make upstream-test`, which installs it")
    return found


def environment(side: str) -> dict[str, str]:
    libraries = os.pathsep.join([str(LIBRARIES[side]), str(BINARIES / "bin")])
    own = {"LD_LIBRARY_PATH": libraries, "LLAMACPP_TEST_MODELFILE": str(resolve("demo")), "GGML_NO_BACKTRACE": "1"}
    return {**os.environ, "PATH": search_path(), **own}  # test-jinja-py asks for a python3 with jinja2


def registered() -> dict[str, str]:
    """Tests by name, and the name of the program that each runs, which mostly is its source's too."""
    command = [tool("ctest"), "--test-dir", str(BINARIES), "--show-only=json-v1"]
    done = subprocess.run(command, capture_output=True, text=True)
    tests = json.loads(done.stdout or "{}").get("tests", [])
    if not tests:
        raise Failure(f"no tests in {BINARIES}: run `make upstream-test`, which builds them")
    return {test["name"]: Path(test.get("command", [""])[0]).name for test in tests}


def left_out(tests: dict[str, str]) -> dict[str, str]:
    """Every test of upstream's folder that does not run, with its reason."""
    sources = {path.stem for path in (TREE / "tests").glob("test-*") if path.suffix in (".cpp", ".c", ".py", ".sh")}
    unrun = sources - set(tests.values())
    unrun = {name for name in unrun if not any(test == name or test.startswith(f"{name}-") for test in tests)}
    unrun |= LEFT_OUT.keys() & tests.keys()
    return {
        name: LEFT_OUT.get(name, "unknown: new in this release, see tests/upstream/run.py") for name in sorted(unrun)
    }


def check_sides() -> None:
    """Each side loads its own libraries, and no test knows which."""
    for side, folder in LIBRARIES.items():
        library = folder / "libllama.so"
        if not library.is_file():
            raise Failure(f"no {library}: run `make upstream-test`, which builds it")
        if (b"pyskip_set_policy" in library.read_bytes()) != (side == "patched"):
            raise Failure(f"{library} is not the {side} build: run `make clean`, then `make upstream-test`")
        command = ["ldd", str(BINARIES / "bin" / "test-llama-archs")]
        loads = subprocess.run(command, env=environment(side), capture_output=True, text=True).stdout
        if f"=> {library} " not in loads:
            raise Failure(f"upstream's tests do not load {library}: see `{' '.join(command)}`")
    series = (ROOT / "patches" / "series").read_text().split()
    patched = {
        name for patch in series for name in re.findall(r"^--- a/(\S+)", (ROOT / "patches" / patch).read_text(), re.M)
    }
    built_from = subprocess.run(
        [tool("ninja"), "-C", str(BINARIES), "-t", "deps"], capture_output=True, text=True
    ).stdout
    if not built_from.strip():
        raise Failure(f"{BINARIES} does not say what it was built from: remove it and run `make upstream-test`")
    for name in sorted(patched):
        if f"{TREE / name}\n" in built_from:
            raise Failure(f"a test includes {name}, which a patch changes: one binary cannot serve for both sides")


def run_test(name: str, side: str, timeout: int) -> dict[str, str | float]:
    log = WORK / "logs" / f"{name}.{side}.txt"
    log.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "junit.xml"
        command = [tool("ctest"), "--test-dir", str(BINARIES), "--quiet", "-R", f"^{re.escape(name)}$"]
        # what a fixture would set up is another row of the table, or left out
        command += ["-FA", ".*", "--timeout", str(timeout), "--output-junit", str(report)]
        command += [f"--test-output-size-{kind}={1 << 20}" for kind in ("passed", "failed")]
        subprocess.run(command, env=environment(side), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        case = ElementTree.parse(report).getroot().find("testcase") if report.is_file() else None
    if case is None:
        raise Failure(f"ctest did not run {name}: run `{' '.join(command)}` to see why")
    log.write_text(case.findtext("system-out") or "")
    said = [child.get("message") or "fails" for child in case if child.tag in ("failure", "skipped")]
    status = "passes" if case.get("status") == "run" and not said else (said or ["fails"])[0].lower()
    return {"status": status, "seconds": round(float(case.get("time") or 0), 1)}


def cell(result: dict[str, str | float]) -> str:
    return f"{result['status']} ({result['seconds']:.1f} s)"


def run_all(names: list[str], results: Results, timeout: int) -> None:
    width = max(map(len, names), default=len("test"))
    print(f"{'test':{width}}  {'unpatched':18}  patched", flush=True)
    for name in names:
        row = results.setdefault(name, {})
        print(f"{name:{width}}", end="", flush=True)
        for side in LIBRARIES:
            if side not in row:
                row[side] = run_test(name, side, timeout)
                RESULTS.write_text(json.dumps({"build": BUILD, "tests": results}, indent=1))
            print(f"  {cell(row[side]):18}", end="", flush=True)
        print(flush=True)


def differences(results: Results, worse: bool) -> list[str]:
    """Tests that pass on one side only: on the unpatched one if it is worse."""
    good, bad = ("unpatched", "patched") if worse else ("patched", "unpatched")
    return [name for name, row in results.items() if row[good]["status"] == "passes" and row[bad]["status"] != "passes"]


def summary(results: Results, names: list[str]) -> str:
    n_both = sum(all(result["status"] == "passes" for result in row.values()) for row in results.values())
    neither = [name for name, row in results.items() if all(r["status"] != "passes" for r in row.values())]
    lines = [f"{len(results)} tests: {n_both} pass on both sides."]
    lines += [f"On neither: {', '.join(neither)}."] if neither else []
    for worse, text in ((True, "unpatched only"), (False, "patched only")):
        lines.append(f"Pass {text}: {', '.join(differences(results, worse)) or 'none'}.")
    missing = [name for name in names if name not in results]
    lines += [f"No result yet: {', '.join(missing)}."] if missing else []
    return " ".join(lines)


def section(page: Path, results: Results, said: str, reasons: dict[str, str]) -> str:
    rows = "\n".join(
        f"| `{name}` | {cell(row['unpatched'])} | {cell(row['patched'])} |" for name, row in results.items()
    )
    return f"""{HEADING}

Written by `make upstream-test UPSTREAM_TEST_ARGS="--page {page}"`.
{BUILD}; {cpu_name()}, {date.today()}.

{said}

| test | unpatched | patched |
|---|---|---|
{rows}

Not run:

| test | why |
|---|---|
{chr(10).join(f"| `{name}` | {why} |" for name, why in reasons.items())}
"""


def write_page(page: Path, text: str) -> None:
    """Put the section in the place of the one that is there, or at the end."""
    old = page.read_text() if page.is_file() else f"{TITLE}\n"
    before, heading, after = old.partition(HEADING)
    _, following, rest = after.partition("\n## ")
    page.write_text(f"{before.rstrip()}\n\n{text}" + (f"\n## {rest}" if heading and following else ""))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=re.compile, default=re.compile(""), metavar="REGEX")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--timeout", type=int, default=1200, metavar="SECONDS")
    parser.add_argument("--page", type=Path, metavar="FILE")
    args = parser.parse_args()
    try:
        every = registered()
        check_sides()
        here = [name for name in every if name not in LEFT_OUT]
        kept = json.loads(RESULTS.read_text()) if args.resume and RESULTS.is_file() else {}
        results: Results = kept["tests"] if kept.get("build") == BUILD else {}
        run_all([name for name in here if args.only.search(name)], results, args.timeout)
        results = {name: results[name] for name in here if len(results.get(name, {})) == len(LIBRARIES)}
        said = summary(results, here)
        print(f"\n{said} What each printed: {WORK / 'logs'}")
        if args.page:
            write_page(args.page, section(args.page, results, said, left_out(every)))
    except KeyboardInterrupt:
        print("\npyskip: interrupted; --resume goes on from here", file=sys.stderr)
        return 130
    except Failure as error:
        print(f"pyskip: {error}", file=sys.stderr)
        return 1
    return 1 if differences(results, worse=True) else 0


if __name__ == "__main__":
    sys.exit(main())
