"""`pyskip.llama.Llama`, where programs and old pickles look for it; it lives in pyskip.runtime.llama."""

from __future__ import annotations

from .runtime.llama import Llama

__all__ = ["Llama"]
