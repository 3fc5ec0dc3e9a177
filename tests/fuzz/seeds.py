"""Sound files that mutation starts from, made by the makers in tools/models/ and the same on every machine.

    python tests/fuzz/seeds.py FOLDER

writes them as the first corpus of libFuzzer (native/fuzz). targets.py makes them for itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools" / "models"))
import make_profile
import make_random

PROFILES: dict[str, dict[str, Any]] = {  # name -> arguments of make_profile
    "linear": {"stand_in": "linear", "kind": "f32"},
    "low": {"stand_in": "linear", "rank": 32, "kind": "q4_0"},
    "gated": {"stand_in": "gated", "rank": 32, "kind": "q8_0"},
    "none": {"stand_in": "none"},
    "attention": {"stand_in": "none", "kind": "f32", "attention": True},
}
ROOT = Path(__file__).resolve().parents[2]
KINDS = ("f32", "q8_0", "q4_0")


def make(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Models of 3 layers of 32 by type, and profiles of the f32 one by stand-in."""
    shape = make_random.Shape(3, 32, 64, 2, 1, 288, 128, "f32")
    models = {kind: folder / f"{kind}.gguf" for kind in KINDS}
    for kind, path in models.items():
        make_random.make(path, shape, kind=kind)
    profiles = {name: folder / f"{name}.skip.gguf" for name in PROFILES}
    for name, path in profiles.items():
        make_profile.make_profile(models["f32"], path, **PROFILES[name])
    return models, profiles


if __name__ == "__main__":
    make(Path(sys.argv[1]))
