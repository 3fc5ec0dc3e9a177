"""What stands for the commands in the documentation's shell blocks when test_docs.py runs them: the first argument says
for which one.

pyskip   is run, with the settings of SMALL after its own: few tokens, few windows. Of several values click takes the
         last. `serve` goes to the background, is waited for, and is ended when the page is done.
make     looks up the target and what it would do (make -n).
llm      is run with a few tokens, and with no plugin but pyskip's.
cp       writes over nothing: model.gguf stays the tiny model.
pip      looks up the extra that is asked for.
python   runs what is no program of the repository; for one of those it looks up the file and its options: they take
         minutes, and tests of their own run them.

Nothing else is on the PATH but what test_docs.TOOLS lists.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

SMALL = {
    "chat": ["-n", "4", "-t", "1"],
    "generate": ["-n", "4", "-t", "1"],
    "bench": ["-n", "2", "-r", "1", "-t", "1"],
    "eval": ["--chunks", "1", "-c", "64", "-n", "4", "-t", "1"],
    "calibrate": ["--fit", "2", "--curve", "1", "--harm", "0", "-t", "1"],
    "serve": ["-t", "1"],
}


def pyskip(args: list[str]) -> int:
    if args and args[0] == "serve":
        return serve(args)
    from pyskip.cli.main import main

    sys.argv = ["pyskip", *args, *SMALL.get(args[0] if args else "", [])]
    if "--help" in args:
        sys.argv = ["pyskip", *args]
    main()
    return 0


def serve(args: list[str]) -> int:
    """Starts it, and comes back when it answers. Its process id goes into the file `servers` of the page's folder."""
    command = [sys.executable, "-m", "pyskip", *args, *SMALL["serve"], "--port", os.environ["DOCS_PORT"]]
    server = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    with open("servers", "a") as file:
        file.write(f"{server.pid}\n")
    for _ in range(1200):
        time.sleep(0.1)
        if server.poll() is not None:
            return server.returncode or 1
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{os.environ['DOCS_PORT']}/health", timeout=5):
                return 0
        except OSError:
            continue
    print("pyskip serve does not answer", file=sys.stderr)
    return 1


def llm(args: list[str]) -> int:
    if args[:1] == ["pyskip"] or "-m" not in args:
        few, typed = [], ""
    else:
        few, typed = ["-o", "max_tokens", "4", "-o", "n_threads", "1"], "Hello\nquit\n" if args[0] == "chat" else ""
    env = {**os.environ, "LLM_LOAD_PLUGINS": "pyskip", "LLM_USER_PATH": str(Path.cwd() / "llm")}
    return subprocess.run([sys.executable, "-m", "llm", *args, *few], env=env, input=typed, text=True).returncode


def cp(args: list[str]) -> int:
    return subprocess.run(["/bin/cp", "-n", *args]).returncode


def make(args: list[str]) -> int:
    made = subprocess.run(["/usr/bin/make", "-n", "-C", str(ROOT), *args], capture_output=True, text=True)
    sys.stderr.write(made.stderr)
    return made.returncode


def pip(args: list[str]) -> int:
    """Looks whether pyproject.toml has the extras of pyskip that an installation asks for."""
    stated = re.search(
        r"^\[project\.optional-dependencies\]\n(.*?)^\[", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    assert stated
    extras = set(re.findall(r"^([\w-]+) = \[", stated[1], re.M))
    wanted = {extra for arg in args for group in re.findall(r"pyskip\[(.*?)\]", arg) for extra in group.split(",")}
    if not wanted <= extras:
        print(f"pyproject.toml has no extra {', '.join(sorted(wanted - extras))}", file=sys.stderr)
        return 1
    return 0


def python(args: list[str]) -> int:
    if args[:2] == ["-m", "pip"]:
        return pip(args[2:])
    if args[:2] == ["-m", "pyskip"]:
        return pyskip(args[2:])
    program = ROOT / args[0] if args else ROOT
    if not program.is_file() or program.is_relative_to(ROOT / "examples"):
        return subprocess.run([sys.executable, *args]).returncode
    shown = subprocess.run([sys.executable, str(program), "--help"], capture_output=True, text=True)
    unknown = [arg for arg in args[1:] if re.match(r"--?[a-z]", arg) and arg.split("=")[0] not in shown.stdout]
    if shown.returncode or unknown:
        print(f"{args[0]} has no option {', '.join(unknown)}: {shown.stderr}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    stands_for = {"pyskip": pyskip, "make": make, "llm": llm, "cp": cp, "pip": pip, "python": python}
    sys.exit(stands_for[sys.argv[1]](sys.argv[2:]))
