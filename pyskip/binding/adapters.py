"""Whether a context's LoRAs or its control vector were changed: llama.cpp does not tell, so its two functions are
listened to where programs call them."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from .library import llama_cpp

__all__ = ["adapters_changed"]

_changes: dict[int, int] = {}  # by the context's address


def adapters_changed(ctx: Any) -> int:
    """How often they were since the process began."""
    return _changes.get(_address(ctx), 0)


def _address(ctx: Any) -> int:
    return ctypes.cast(ctx, ctypes.c_void_p).value or 0


def _listen(name: str) -> None:
    function = getattr(llama_cpp, name)

    @functools.wraps(function)
    def counted(ctx: Any, *args: Any) -> Any:
        _changes[_address(ctx)] = adapters_changed(ctx) + 1
        return function(ctx, *args)

    for module in (llama_cpp, llama_cpp.llama_cpp):
        setattr(module, name, counted)


for _name in ("llama_set_adapters_lora", "llama_set_adapter_cvec"):
    _listen(_name)
