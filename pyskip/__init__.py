"""pyskip: a llama.cpp CPU runtime that skips feed-forward blocks, token by token (FFN-SkipLLM, arXiv 2404.03865).

>>> import pyskip
>>> llm = pyskip.Llama("model.gguf", skip="cosine:threshold=0.98")
>>> llm.create_chat_completion([{"role": "user", "content": "Are dogs real?"}])
"""

from __future__ import annotations

from . import _library as _library  # first: llama_cpp must come up on pyskip's libraries
from .errors import BuildMismatchError, DecodeError, ModelLoadError, PolicyError, ProfileError, PyskipError
from .gguf_info import GGUFInfo, inspect
from .llama import Llama
from .policy import Cosine, Off, Policy, Static, parse_skip
from .stats import SkipStats, SkipTrace

__version__ = "0.1.0"

__all__ = [
    "BuildMismatchError",
    "Cosine",
    "DecodeError",
    "GGUFInfo",
    "Llama",
    "ModelLoadError",
    "Off",
    "Policy",
    "PolicyError",
    "ProfileError",
    "PyskipError",
    "SkipStats",
    "SkipTrace",
    "Static",
    "__version__",
    "inspect",
    "parse_skip",
]
