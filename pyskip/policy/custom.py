"""A policy of the user's own, compiled from C."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

from ..errors import PolicyError
from .base import Fields, Operating, Policy

__all__ = ["Custom"]


@dataclass(frozen=True)
class Custom(Policy):
    """A policy of your own, in C: a pyskip_decide function of pyskip.h (pyskip.get_include()).

    decide: its address, or a ctypes function, which is kept alive. Asked for each token and layer, in llama.cpp's
        compute threads: what it may do stands in pyskip.h.
    data: address that it is given, or a ctypes object, which is kept alive.
    name: stands for it in results; of two policies with one name, evaluations run the first.

    Nothing can check that the address is such a function: another one ends the process. Raises PolicyError for one that
    is no address, or 0.
    """

    kind = "custom"

    decide: Any
    data: Any = None
    name: str = "decide"

    def __post_init__(self) -> None:
        if not (self.address and self.data_address >= 0):  # either raises if it is no address
            raise PolicyError("custom has no function to decide by, expected the address of one")

    @classmethod
    def load(cls, library: str | os.PathLike[str], symbol: str = "decide", data: Any = None) -> Custom:
        """The function `symbol` of a shared library. Raises PolicyError if either is missing."""
        path = os.path.abspath(os.fsdecode(library))
        try:
            return cls(getattr(ctypes.CDLL(path), symbol), data, symbol)
        except (OSError, AttributeError) as error:
            raise PolicyError(f"{path} has no function {symbol} to decide by ({error}): compile it as C") from None

    @property
    def address(self) -> int:
        return _address("custom decide", self.decide)

    @property
    def data_address(self) -> int:
        if isinstance(self.data, (ctypes.Structure, ctypes.Array, ctypes._SimpleCData)):
            return ctypes.addressof(self.data)
        return _address("custom data", self.data)

    @property
    def decides_prompt(self) -> bool:
        return True  # it is asked for prompt tokens, too (index < 0)

    def fields(self, profile: Operating | None) -> Fields:
        return {"type": "PYSKIP_POLICY_CUSTOM", "decide": self.address, "decide_data": self.data_address}

    def __str__(self) -> str:
        return f"custom:{self.name}"


def _address(what: str, value: Any) -> int:
    """Of a number, None, or a ctypes function or pointer."""
    if value is None:
        return 0
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        address = value if isinstance(value, int) else ctypes.cast(value, ctypes.c_void_p).value or 0
    except (TypeError, ctypes.ArgumentError):
        raise PolicyError(f"{what} is a {type(value).__name__}, expected an address or a ctypes object") from None
    if not 0 <= address < 2**64:
        raise PolicyError(f"{what} is out of range, expected an address")
    return address
