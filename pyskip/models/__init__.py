"""From a MODEL as the user names it to a file that can be loaded: names, catalogue, Hub, downloads, quantisations, what
a GGUF file says of itself, and the profile that belongs to it."""

from __future__ import annotations

from .names import REPO, resolve

__all__ = ["REPO", "resolve"]
