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

ROOT = Path(__file__).resolve().parent.parent
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

# Models with nothing to skip, beside the encoders that have no KV cache.
NO_BLOCK = {
    "mamba": "state-space layers without an FFN",
    "mamba2": "state-space layers without an FFN",
    "refact+experts": "llama.cpp leaves the experts of this architecture out of its graph",
    "rwkv6": "channel mixing in place of an FFN: it reads the token before as well",
    "rwkv7": "channel mixing in place of an FFN: it reads the token before as well",
    "t5": "encoder-decoder",
    "t5encoder": "encoder",
}

# Of these, what one may call a decoder with an FFN too.
ARGUABLE = ("rwkv6", "rwkv7", "t5")

# Encoders with a KV cache, which they do not read: a policy is not refused.
NOT_REFUSED = {"llama-embed": "an encoder with a KV cache", "llama-embed+experts": "an encoder with a KV cache"}

# What make-archs cannot make.
NOT_MADE = {
    "clip": "an image encoder beside another model",
    "dflash": "a draft beside another model",
    "eagle3": "a draft beside another model",
    "gemma4-assistant": "a draft beside another model",
    "gptj": "llama.cpp names it and has no graph for it",
}

# calibrate or generate fails, skipping works. Those of llama.cpp end the process.
BEYOND = "pyskip: calibrate tries a threshold of e^80, beyond the 1e30 that a policy takes"
NO_CHAIN = {
    "chameleon": "llama.cpp aborts on a batch without outputs",
    "nemotron_h": BEYOND,
    "nemotron_h_moe": BEYOND,
    "plm": "llama.cpp aborts when flash attention may be used",
}

Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Collected:
    """By model: what make-archs said, what pyskip did and what unpatched llama.cpp did."""

    made: dict[str, str]
    found: Records
    reference: Records

    def able(self) -> Records:
        """The models that can skip."""
        return {name: record for name, record in self.found.items() if "layers" in record}

    def coverage(self, also: tuple[str, ...] = ()) -> tuple[int, int]:
        """Architectures of which a model can skip, of all decoders with an FFN, and of `also`."""
        covered = {record["architecture"] for record in self.able().values()}
        missed = {self.found[name]["architecture"] for name in (*NOT_COVERED, *also)}
        return len(covered), len(covered | missed)


def collect(reference_lib: Path) -> Collected:
    """Makes the models (about 1 GB, for as long as this runs) and examines them, on one thread: minutes."""
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
        return Collected(made, found, _examine("reference", models, unpatched, found_file))


def _examine(build: str, models: Path, env: dict[str, str], *more: Path) -> Records:
    out = models.parent / f"{build}.out.json"
    command = [sys.executable, *map(str, (ROOT / "tests" / "architectures.py", build, models, out, *more))]
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    records: Records = json.loads(out.read_text())
    return records
