"""The records of architectures.py for both builds, and what is known of the architectures that cannot skip.

Used by test_architectures.py, and by architectures_page.py, which writes docs/architectures.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyskip.system import physical_cores

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = Path(__file__).with_name("architectures.py")
MAKE_ARCHS = ROOT / "build" / "native-tests" / "make-archs"

# Decoders with an FFN that pyskip does not find.
LANES = "hyper-connections: the stream has several lanes, and the FFN is mixed into them, not added"
NOT_COVERED = {
    "arctic+experts": "two FFNs a layer, dense and experts, each added by itself",
    "deepseek4+experts": LANES,
    "glm5-next+experts": LANES,
    "hrm_text": "the same FFN runs several times a token: cycles share its weights",
    "hy_v4+experts": LANES,
    "qwen4exp+experts": LANES,
}

# Decoders with nothing to skip.
NO_BLOCK = {
    "mamba": "state-space layers without an FFN",
    "mamba2": "state-space layers without an FFN",
    "refact+experts": "llama.cpp leaves the experts of this architecture out of its graph",
}

# What make-archs cannot make.
DRAFT = "a draft beside another model"
NOT_MADE = {
    "clip": "an image encoder beside another model",
    "dflash": DRAFT,
    "eagle3": DRAFT,
    "gemma4-assistant": DRAFT,
    "gptj": "llama.cpp names it and has no graph for it",
}

# Attention that pyskip does not find: it runs.
BESIDE = "attention and FFN are added to each other before the stream"
NO_ATTENTION = {
    "falcon": BESIDE,
    "kimi-k3+experts": "the stream begins anew at checkpoints: there attention is not added to it",
    "phi2": BESIDE,
    "plamo": BESIDE,
    "smallthinker+experts": "the FFN begins before attention ends: its router reads the stream that attention reads",
}

# Skipping works, and calibrate and eval refuse.
NO_TEXT = {"t5": "an encoder-decoder does not continue a text"}

Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Collected:
    """By model: what make-archs said, what pyskip did and what unpatched llama.cpp did; how commands ended."""

    made: dict[str, str]
    found: Records
    reference: Records
    commands: Records

    def able(self) -> Records:
        """The models that can skip."""
        return {name: record for name, record in self.found.items() if "layers" in record}

    def coverage(self) -> tuple[int, int]:
        """Architectures of which a model can skip, of all decoders with an FFN."""
        covered = {record["architecture"] for record in self.able().values()}
        missed = {self.found[name]["architecture"] for name in NOT_COVERED}
        return len(covered), len(covered | missed)


def collect(reference_lib: Path, *, commands: bool = False) -> Collected:
    """Makes the models (about 1 GB, for as long as this runs) and examines them, each on one thread: minutes. commands:
    gives them to the command line too."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        models.mkdir()
        quiet = {**os.environ, "GGML_NO_BACKTRACE": "1", "OMP_NUM_THREADS": "1"}
        said = subprocess.run(
            [str(MAKE_ARCHS), str(models)], env=quiet, capture_output=True, text=True, check=True
        ).stdout
        made = dict(line.split("\t", 1) for line in said.splitlines())
        found = _examine("pyskip", models, quiet)
        found_file = Path(folder) / "found.json"
        found_file.write_text(json.dumps(found))
        unpatched = {**quiet, "LLAMA_CPP_LIB_PATH": str(reference_lib)}
        reference = _examine("reference", models, unpatched, found_file)
        return Collected(made, found, reference, _examine("commands", models, quiet, found_file) if commands else {})


def _examine(build: str, models: Path, env: dict[str, str], *more: Path) -> Records:
    n = physical_cores()
    outs = [models.parent / f"{build}.{k}.json" for k in range(n)]
    shares = [
        subprocess.Popen(
            [sys.executable, *map(str, (SCRIPT, build, models, f"{k}/{n}", out, *more))],
            env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for k, out in enumerate(outs)
    ]  # fmt: skip
    for share in shares:
        said = share.communicate()[1]
        assert share.returncode == 0, said
    return {name: record for out in outs for name, record in json.loads(out.read_text()).items()}
