"""Which layers of a model file can skip, without reading its weights."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..binding import log
from ..binding.crash import aborts_caught
from ..binding.library import llama_cpp
from ..errors import ModelLoadError
from .context import SkipContext

__all__ = ["Skippable", "skippable_layers", "skippable_sublayers"]

N_CTX = 64  # the graph is the same for every size


@dataclass(frozen=True)
class Skippable:
    """The layers whose FFN can be skipped, and those whose attention can, but for K and V."""

    layers: tuple[int, ...]
    attention: tuple[int, ...]


def skippable_layers(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """The layers whose FFN can be skipped. Raises as skippable_sublayers()."""
    return skippable_sublayers(path).layers


def skippable_sublayers(path: str | os.PathLike[str]) -> Skippable:
    """Builds the model's decode graph over weights that are named but not there (llama_model_params.no_alloc).

    Raises ModelLoadError for a file that llama.cpp cannot load, PolicyError if no layer can skip, with the reason.
    """
    log.forget()
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.no_alloc = True
    model_params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
    with aborts_caught():
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), model_params)
    if not model:
        raise ModelLoadError(f"{os.fspath(path)}: llama.cpp cannot load it ({log.last_complaint()})")
    try:
        context_params = llama_cpp.llama_context_default_params()
        context_params.n_ctx = context_params.n_batch = context_params.n_ubatch = N_CTX
        context_params.n_threads = context_params.n_threads_batch = 1
        # what is found in the graph is the same, and PLM's graph aborts with it
        context_params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        with aborts_caught():
            context = llama_cpp.llama_init_from_model(model, context_params)
        if not context:
            raise ModelLoadError(f"{os.fspath(path)}: llama.cpp cannot make a context ({log.last_complaint()})")
        try:
            skip = SkipContext(context)
            return Skippable(skip.skippable(), skip.skippable_attention())
        finally:
            llama_cpp.llama_free(context)
    finally:
        llama_cpp.llama_model_free(model)
