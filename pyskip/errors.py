"""What pyskip raises. Each message is one line: what was found, what was expected, what to do.

PyskipError
├── BuildMismatchError   the native library, or another one that was loaded first (also an ImportError)
├── ModelLoadError       a model file or a context for it (also a ValueError, as in llama-cpp-python)
├── PolicyError          a skip specification, or a model that it does not fit (also a ValueError)
├── ProfileError         a calibrated profile (also a ValueError)
└── DecodeError          a prompt or a token that could not be decoded (also a ValueError and a RuntimeError,
                         the two that llama-cpp-python raises there)
"""

from __future__ import annotations

__all__ = ["BuildMismatchError", "DecodeError", "ModelLoadError", "PolicyError", "ProfileError", "PyskipError"]


class PyskipError(Exception):
    """The base of all errors of pyskip."""


class BuildMismatchError(PyskipError, ImportError):
    """The libraries that are loaded or installed are not the ones that pyskip was built with."""


class ModelLoadError(PyskipError, ValueError):
    """A model file cannot be loaded, or no context of that size can be made for it."""


class PolicyError(PyskipError, ValueError):
    """A skip specification is malformed, or does not fit the model."""


class ProfileError(PyskipError, ValueError):
    """A profile is missing, damaged, or belongs to another model."""


class DecodeError(PyskipError, ValueError, RuntimeError):
    """A prompt does not fit the context, or llama.cpp could not decode."""
