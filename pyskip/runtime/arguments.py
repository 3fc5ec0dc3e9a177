"""Arguments of Llama and its methods that would crash llama.cpp, or that it would take in silence: refused before."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..binding.library import llama_cpp
from ..errors import DecodeError, ModelLoadError

__all__ = ["check_arguments", "check_grammar"]

# enum ggml_type: every GGML_TYPE_* of llama_cpp but the count
KV_TYPES = {
    value for name, value in vars(llama_cpp).items() if name.startswith("GGML_TYPE_") and name != "GGML_TYPE_COUNT"
}


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises ModelLoadError for counts below 1, cache types that do not exist, a LoRA that is not there, and for what
    loads the whole model though memory is low."""
    for name in ("n_batch", "n_ubatch"):
        value = arguments.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise ModelLoadError(f"{name} is {value!r}, expected a whole number from 1")
    for name in ("n_threads", "n_threads_batch"):
        value = arguments.get(name)
        if value is not None and (not isinstance(value, int) or value < 0):
            raise ModelLoadError(f"{name} is {value!r}, expected a whole number from 1, or None for the physical cores")
    for name in ("type_k", "type_v"):
        value = arguments.get(name)
        if value is not None and value not in KV_TYPES:
            raise ModelLoadError(f"{name} is {value!r}, expected one of llama_cpp.GGML_TYPE_*")
    lora = arguments.get("lora_path")
    if arguments.get("low_memory") and (
        not arguments.get("use_mmap", True) or arguments.get("use_mlock") or lora is not None
    ):
        raise ModelLoadError(
            "low_memory found use_mmap=False, use_mlock or lora_path, which load the whole model, expected none of "
            "them: leave them out"
        )
    if lora and not os.path.isfile(lora):
        raise ModelLoadError(f"{lora}: no such LoRA file: check lora_path")


def check_grammar(vocab: Any, grammar: Any) -> None:
    """Raises DecodeError for a llama_cpp.LlamaGrammar that llama.cpp cannot read."""
    text, root = grammar._grammar.encode("utf-8"), grammar._root.encode("utf-8")
    sampler = None if b"\0" in text else llama_cpp.llama_sampler_init_grammar(vocab, text, root)
    if not sampler:
        raise DecodeError("llama.cpp cannot read the grammar, expected GBNF with a rule named root")
    llama_cpp.llama_sampler_free(sampler)
