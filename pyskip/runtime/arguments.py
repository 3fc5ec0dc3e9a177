"""Arguments of Llama and its methods that would crash llama.cpp, or that it would take in silence: refused before."""

from __future__ import annotations

import difflib
import inspect
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from ..binding.library import llama_cpp
from ..errors import DecodeError, ModelLoadError
from ..models.gguf_info import inspect as inspect_file

__all__ = ["check_arguments", "check_grammar", "check_lossless", "check_names", "check_projector"]

# enum ggml_type: every GGML_TYPE_* of llama_cpp but the count
KV_TYPES = {
    value for name, value in vars(llama_cpp).items() if name.startswith("GGML_TYPE_") and name != "GGML_TYPE_COUNT"
}

# Of llama.h's enumerations, by argument.
KINDS = {
    "pooling_type": "LLAMA_POOLING_TYPE_",
    "rope_scaling_type": "LLAMA_ROPE_SCALING_TYPE_",
    "attention_type": "LLAMA_ATTENTION_TYPE_",
    "numa": "GGML_NUMA_STRATEGY_",
}
MAX_THREADS = 512  # GGML_MAX_N_THREADS; by a great many more ggml ends the process, for want of memory

TAKEN = frozenset(inspect.signature(llama_cpp.Llama.__init__).parameters) - {"self", "kwargs"}
# What others call it: Ollama, llama.cpp's command lines, ctransformers, transformers, LangChain.
OTHER_NAMES = {
    "batch_size": "n_batch",
    "cache_type_k": "type_k",
    "cache_type_v": "type_v",
    "context_length": "n_ctx",
    "ctx_size": "n_ctx",
    "embeddings": "embedding",
    "filename": "model_path",
    "gpu_layers": "n_gpu_layers",
    "lora": "lora_path",
    "max_length": "n_ctx",
    "max_seq_len": "n_ctx",
    "max_tokens": "max_tokens of the call that generates",
    "mlock": "use_mlock",
    "clip_model_path": "mmproj",
    "mmap": "use_mmap",
    "model": "model_path",
    "n_seq_max": "n_ctx",
    "num_ctx": "n_ctx",
    "num_gpu": "n_gpu_layers",
    "num_thread": "n_threads",
    "temp": "temperature of the call that generates",
    "temperature": "temperature of the call that generates",
    "threads": "n_threads",
    "top_k": "top_k of the call that generates",
    "top_p": "top_p of the call that generates",
    "ubatch_size": "n_ubatch",
}
# For graphics processors, with the value that asks for none.
FOR_GPUS: dict[str, Any] = {
    "n_gpu_layers": 0,
    "split_mode": llama_cpp.LLAMA_SPLIT_MODE_LAYER,
    "main_gpu": 0,
    "tensor_split": None,
}


def check_names(given: Mapping[str, Any], own: Iterable[str], *, is_local: bool = True) -> None:
    """Raises TypeError, as for a function of Python, for an argument that neither llama_cpp.Llama nor pyskip.Llama
    (own) takes: upstream drops what it does not know. Warns of those that are about a GPU if there is no device but the
    CPU (is_local)."""
    known = TAKEN | set(own)
    for name in given:
        if name not in known:
            near = [OTHER_NAMES[name]] if name in OTHER_NAMES else difflib.get_close_matches(name, known, n=1)
            raise TypeError(
                f"Llama has no argument {name!r}" + "".join(f": did you mean {other}?" for other in near)
                if near
                else f"Llama has no argument {name!r}, expected one of llama_cpp.Llama's or pyskip's: leave it out"
            )
    unused = [name for name, none in FOR_GPUS.items() if is_local and given.get(name, none) != none]
    if unused:
        warnings.warn(
            f"{' and '.join(unused)}: pyskip decodes on the CPU, expected nothing for a GPU: leave it out",
            UserWarning,
            stacklevel=3,
        )


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises ModelLoadError for counts out of range, types and kinds that do not exist, a LoRA that is not there, and
    for what loads the whole model though memory is low."""
    for name in ("n_batch", "n_ubatch"):
        value = arguments.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise ModelLoadError(f"{name} is {value!r}, expected a whole number from 1")
    for name in ("n_threads", "n_threads_batch"):
        value = arguments.get(name)
        if value is not None and (not isinstance(value, int) or not 0 <= value <= MAX_THREADS):
            raise ModelLoadError(
                f"{name} is {value!r}, expected a whole number from 1 to {MAX_THREADS}, or None for the physical cores"
            )
    for name, prefix in KINDS.items():
        value = arguments.get(name, False)
        kinds = {kind for key, kind in vars(llama_cpp).items() if key.startswith(prefix)}
        if not isinstance(value, bool) and value not in kinds:
            raise ModelLoadError(f"{name} is {value!r}, expected one of llama_cpp.{prefix}*")
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


def check_lossless(lossless: Any, draft_model: Any, target_tps: float | None) -> None:
    """Raises ModelLoadError for a value that it does not have, and beside what it does not go with."""
    if lossless not in (False, True, "always"):
        raise ModelLoadError(f"lossless is {lossless!r}, expected False, True or 'always'")
    for name, value in {"draft_model": draft_model, "target_tps": target_tps}.items():
        if lossless and value is not None:
            raise ModelLoadError(f"lossless and {name} were both given, expected one of them: leave the other out")


def check_projector(path: str, arguments: Mapping[str, Any]) -> None:
    """Raises ModelLoadError for a mmproj that is no whole projector, and beside what it does not go with."""
    for name in ("chat_handler", "vocab_only"):
        if arguments.get(name):
            raise ModelLoadError(f"mmproj and {name} were both given, expected one of them: leave the other out")
    if not os.path.isfile(path):
        raise ModelLoadError(f"{path}: no such file, expected the model's projector (a GGUF file): check mmproj")
    architecture = inspect_file(path).architecture
    if architecture != "clip":
        raise ModelLoadError(
            f"{path}: a model of architecture {architecture!r}, expected a projector (clip): check mmproj"
        )


def check_grammar(vocab: Any, grammar: Any) -> None:
    """Raises DecodeError for a llama_cpp.LlamaGrammar that llama.cpp cannot read, TypeError for anything else."""
    if not isinstance(grammar, llama_cpp.LlamaGrammar):
        raise TypeError(
            f"grammar is a {type(grammar).__name__}, expected a llama_cpp.LlamaGrammar: make one of GBNF with "
            "LlamaGrammar.from_string()"
        )
    text, root = grammar._grammar.encode("utf-8"), grammar._root.encode("utf-8")
    sampler = None if b"\0" in text else llama_cpp.llama_sampler_init_grammar(vocab, text, root)
    if not sampler:
        raise DecodeError("llama.cpp cannot read the grammar, expected GBNF with a rule named root")
    llama_cpp.llama_sampler_free(sampler)
