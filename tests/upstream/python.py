"""llama-cpp-python's own tests, with unpatched llama.cpp and its Llama, and with pyskip's: `make upstream-python-test`

    python.py [-k EXPRESSION]

Every test must pass with pyskip's, but for DIFFERS. Models that the tests would download are the demo and tiny random
ones, and what a downloaded one is expected to say is what the demo says (SAYS). Exit 1 if anything fails.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path += [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "models")]
import make_random  # noqa: E402
from kinds import KINDS, make_kind  # noqa: E402
from suite import Outcomes, outcomes, report, unpack  # noqa: E402

from pyskip.models import resolve  # noqa: E402

BUILD = ROOT / "build" / "upstream-python"
REFERENCE = Path(os.environ.get("PYSKIP_REFERENCE_LIB", ROOT / "build" / "reference" / "lib"))
VOCABULARY = "vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf"

# What the downloaded model says, and what the demo model says in its place: the tests go on behind it.
SAYS = {
    "[9419, 11, 1814, 0]": "[19556, 28, 905, 17]",
    '" jumps over the lazy dog."': '" is a classic example of a"',
}
# Meant to fail with pyskip's, by the beginning of a test's name, with the reason.
DIFFERS: dict[str, str] = {}

# Which Llama, and which file stands for one that is downloaded, by a part of its repository's name.
PLUGIN = """
import os, sys, types

pyskip = None
if os.environ["PYSKIP_TEST_SIDE"] == "pyskip":
    import pyskip, llama_cpp
    llama_cpp.Llama = pyskip.Llama
try:
    import scipy.special
except ModuleNotFoundError:  # imported, and not used
    sys.modules["scipy"], sys.modules["scipy.special"] = types.ModuleType("scipy"), types.ModuleType("special")
    sys.modules["scipy.special"].log_softmax = None
import huggingface_hub

STAND_INS = {"Qwen": "demo", "ggml-org": "transformer", "bge": "embedding", "mamba": "recurrent", "Falcon": "hybrid"}

def stand_in(repo_id, filename):
    found = [file for part, file in STAND_INS.items() if part in repo_id]
    assert len(found) == 1, f"{repo_id}: tests/upstream/python.py has no stand-in for it"
    return os.path.abspath(f"models/{found[0]}.gguf")

huggingface_hub.hf_hub_download = stand_in
"""


def prepare(folder: Path) -> None:
    unpack("tests/", folder / "tests")
    unpack(VOCABULARY, (folder / VOCABULARY).parent)
    file = folder / "tests" / "test_llama.py"
    text = file.read_text()
    for downloaded, demo in SAYS.items():
        if downloaded not in text:
            raise RuntimeError(f"{file} asserts {downloaded} no more: bring SAYS in {__file__} up to date")
        text = text.replace(downloaded, demo)
    file.write_text(text)
    (folder / "offline_models.py").write_text(PLUGIN)
    models = folder / "models"
    models.mkdir(exist_ok=True)
    make_random.make(models / "transformer.gguf", make_random.SHAPES["tiny"])
    for kind in KINDS:
        make_kind(models / f"{kind}.gguf", kind)


def run(folder: Path, demo: Path, more: list[str]) -> tuple[Outcomes, Outcomes]:
    """Upstream's side, pyskip's."""
    if not (REFERENCE / "libllama.so").is_file():
        raise RuntimeError(f"no libllama.so in {REFERENCE}: run `make upstream-python-test`, which builds it")
    link = folder / "models" / "demo.gguf"
    link.unlink(missing_ok=True)
    link.symlink_to(demo)
    arguments = ["-q", "-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider", "-p", "offline_models"]
    arguments += ["tests", *more]
    shared = {**os.environ, "PYTHONPATH": str(folder), "GGML_NO_BACKTRACE": "1"}
    theirs = {**shared, "PYSKIP_TEST_SIDE": "upstream", "LLAMA_CPP_LIB_PATH": str(REFERENCE)}
    ours = {**shared, "PYSKIP_TEST_SIDE": "pyskip"}
    return outcomes(folder, "upstream", arguments, theirs), outcomes(folder, "pyskip", arguments, ours)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="EXPRESSION")
    args = parser.parse_args()
    try:
        prepare(BUILD)
        theirs, ours = run(BUILD, resolve("demo"), ["-k", args.k] if args.k else [])
    except RuntimeError as error:
        print(f"pyskip: {error}", file=sys.stderr)
        return 1
    return report(theirs, ours, DIFFERS, both_must_pass=True)


if __name__ == "__main__":
    sys.exit(main())
