"""pyskip: a llama.cpp CPU runtime that skips feed-forward blocks, token by token (FFN-SkipLLM, arXiv 2404.03865).

>>> import pyskip
>>> llm = pyskip.Llama("model.gguf", skip="cosine:threshold=0.98")
>>> llm.create_chat_completion([{"role": "user", "content": "Are dogs real?"}])
"""

from __future__ import annotations

from . import startup as startup  # isort: skip  (before what takes time to import)

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import BuildMismatchError, DecodeError, ModelLoadError, PolicyError, ProfileError, PyskipError
from .policy import AdaSkip, Cosine, Custom, Off, Policy, Profiled, Prompted, Random, Static, parse_skip

if TYPE_CHECKING:
    from .models.gguf_info import GGUFInfo, inspect
    from .models.profile import Profile
    from .runtime.llama import Llama
    from .runtime.pace import Pace, PaceStats
    from .stats import SkipStats, SkipTrace

# First: llama_cpp must come up on pyskip's libraries. What is wrong with them is raised by whatever needs them, and not
# here, so that the command line can say it in one line.
with suppress(BuildMismatchError):
    from .binding import library as library

__version__ = "0.1.0"

__all__ = [
    "AdaSkip",
    "BuildMismatchError",
    "Cosine",
    "Custom",
    "DecodeError",
    "GGUFInfo",
    "Llama",
    "ModelLoadError",
    "Off",
    "Pace",
    "PaceStats",
    "Policy",
    "PolicyError",
    "Profile",
    "ProfileError",
    "Profiled",
    "Prompted",
    "PyskipError",
    "Random",
    "SkipStats",
    "SkipTrace",
    "Static",
    "__version__",
    "get_include",
    "inspect",
    "parse_skip",
]


def get_include() -> str:
    """The folder of pyskip.h, for the compiler of a policy in C (Custom)."""
    from .binding.library import LIB_DIR

    return str(LIB_DIR.parent / "include")


_LAZY = {
    "GGUFInfo": "models.gguf_info",
    "inspect": "models.gguf_info",
    "Llama": "runtime.llama",
    "Pace": "runtime.pace",
    "PaceStats": "runtime.pace",
    "Profile": "models.profile",
    "SkipStats": "stats",
    "SkipTrace": "stats",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
