"""What becomes of every argument of llama_cpp.Llama in pyskip.Llama: compatibility.py -o docs/compatibility.md

`make compatibility` calls it. tests/test_compatibility.py fails for an argument that has no place here, and for one
that upstream does not have any more.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import pyskip as pyskip

import llama_cpp  # isort: skip  (behind pyskip)

__all__ = ["COMMON", "LOADING", "MEMBERS", "members", "page", "place"]

WORKS, WARNS, REFUSES, NOTHING, OTHER = "works", "warns", "refuses", "does nothing", "differs"


def _names(text: str) -> list[str]:
    return text.split()


# What is alike wherever it is taken.
COMMON: dict[str, tuple[str, str]] = dict.fromkeys(
    _names(
        """
    temperature temp top_p min_p typical_p top_k frequency_penalty presence_penalty repeat_penalty mirostat_mode
    mirostat_tau mirostat_eta stop stream model stopping_criteria prompt max_tokens tokens messages functions
    tools input text add_bos special prev_tokens idx cache axis a b repo_id filename
    additional_files local_dir cache_dir truncate return_count logits
    """
    ),
    (WORKS, ""),
)
COMMON |= {
    "tfs_z": (NOTHING, "llama.cpp has this sampler no more"),
    "penalize_nl": (NOTHING, "llama.cpp has this setting no more"),
    "local_dir_use_symlinks": (NOTHING, "huggingface-hub has this setting no more"),
    "seed": (
        OTHER,
        "random unless given (upstream: the same in every process); that of one call does not become the next one's",
    ),
    "logprobs": (OTHER, "plain floats, each beside its token; needs `logits_all=True`, else `DecodeError`"),
    "top_logprobs": (OTHER, "may be left out beside `logprobs=True`"),
    "echo": (OTHER, "in streams, too, and for prompts of tokens"),
    "suffix": (OTHER, "by the vocabulary's fill-in-the-middle tokens (upstream: token 0); `DecodeError` without"),
    "logit_bias": (
        OTHER,
        "beside `logits_processor` both count (upstream: neither); `DecodeError` for what is no token (upstream: "
        "ignored, or another token's)",
    ),
    "logits_processor": (OTHER, "what it raises comes out (upstream: printed, and the answer goes on without it)"),
    "grammar": (
        OTHER,
        "`DecodeError` for one that llama.cpp cannot read (upstream: a crash), `TypeError` for what is no "
        "`LlamaGrammar`",
    ),
    "response_format": (
        OTHER,
        "`json_schema` as well as `json_object`, by llama.cpp's own converter; `DecodeError` names what it cannot hold",
    ),
    "tool_choice": (
        OTHER,
        "arguments of a tool that is named hold to all of its schema (upstream: to some of it); `DecodeError` names "
        "what cannot be held",
    ),
    "function_call": (OTHER, "as `tool_choice`"),
    "normalize": (WORKS, "of `embed()`; `create_embedding()` has it, too, and there it is on"),
    "reset": (WORKS, ""),
    "state": (WORKS, ""),
}
GPU = (WARNS, "pyskip decodes on the CPU; a warning unless it asks for none")
LOADING: dict[str, tuple[str, str]] = dict.fromkeys(
    _names(
        """
    vocab_only use_mmap use_mlock kv_overrides rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor
    yarn_beta_fast yarn_beta_slow yarn_orig_ctx logits_all embedding flash_attn swa_full no_perf last_n_tokens_size
    chat_format tokenizer spm_infill verbose
    """
    ),
    (WORKS, ""),
)
LOADING |= dict.fromkeys(("n_gpu_layers", "split_mode", "main_gpu", "tensor_split"), GPU)
LOADING |= {
    "model_path": (OTHER, "all that names a model at the command line, too: [models by name](models.md)"),
    "n_ctx": (OTHER, "`ModelLoadError` for a context that does not fit into memory"),
    "n_batch": (REFUSES, "what is below 1 (upstream: a crash)"),
    "n_ubatch": (REFUSES, "what is below 1 (upstream: a crash)"),
    "n_threads": (OTHER, "by default the physical (performance) cores that the process may use; 512 at most"),
    "n_threads_batch": (OTHER, "as `n_threads`"),
    "seed": COMMON["seed"],
    "draft_model": (
        OTHER,
        "a model by path or name, too, [that drafts](python.md#a-draft); what is rejected is not counted",
    ),
    "offload_kqv": (NOTHING, "there is no GPU"),
    "op_offload": (NOTHING, "there is no GPU"),
    "lora_base": (NOTHING, "upstream does not look at it, either"),
    "lora_scale": (OTHER, "may be set later; what was computed by another scale is not used again"),
    "lora_path": (OTHER, "`ModelLoadError` for a file that is no LoRA of this model; not beside `low_memory`"),
    "pooling_type": (REFUSES, "what is no `llama_cpp.LLAMA_POOLING_TYPE_*` (upstream: taken)"),
    "rope_scaling_type": (REFUSES, "what is no `llama_cpp.LLAMA_ROPE_SCALING_TYPE_*` (upstream: taken)"),
    "attention_type": (REFUSES, "what is no `llama_cpp.LLAMA_ATTENTION_TYPE_*` (upstream: taken)"),
    "numa": (REFUSES, "what is neither true, false nor a `llama_cpp.GGML_NUMA_STRATEGY_*` (upstream: taken)"),
    "type_k": (REFUSES, "what is no `llama_cpp.GGML_TYPE_*` (upstream: a crash)"),
    "type_v": (REFUSES, "what is no `llama_cpp.GGML_TYPE_*` (upstream: a crash)"),
    "chat_handler": (WORKS, "handlers of images, too, in a build with libmtmd; not beside `mmproj`"),
    "kwargs": (REFUSES, "`TypeError` for an unknown argument, with the nearest name (upstream: dropped)"),
}
CLOSED = "`ModelLoadError` once closed (upstream: a crash)"
# Of whole methods and properties, beside their arguments.
MEMBERS: dict[str, str] = {
    "close": "may be repeated; waits for other threads, whose decodes end with an error; in a callback it takes effect "
    "at the end of the call",
    "create_completion": "",
    "__call__": "as `create_completion()`",
    "create_chat_completion": "messages in the form that the template takes, see [Chats](#chats); ChatML, and a "
    "warning, for a template that cannot be parsed; images and audio with [`mmproj`](python.md#images-and-audio), else "
    "`DecodeError` (upstream: the part as Python writes it)",
    "create_chat_completion_openai_v1": "as `create_chat_completion()`; needs the package openai",
    "create_embedding": "vectors of length 1, unless `normalize=False` (upstream: as the model has them)",
    "embed": "of several texts without pooling, too (upstream: rows that no token has)",
    "generate": "uses of the cache only what this policy, LoRA and control vector would compute to the same",
    "eval": "`DecodeError` for tokens that do not fit; Ctrl-C stops it",
    "sample": "",
    "tokenize": "`DecodeError` where a vocabulary cannot; texts of any length",
    "detokenize": "pieces of any length (upstream: up to 32 bytes)",
    "save_state": "",
    "load_state": "`DecodeError`, and an empty cache, for a state that does not fit (upstream: its tokens count all "
    "the same); of a context of another size, too",
    "reset": "forgets `mark_generated()`, too",
    "n_ctx": "",
    "n_embd": "",
    "n_vocab": "",
    "pooling_type": "",
    "token_bos": "",
    "token_eos": "",
    "token_nl": "",
    "tokenizer": "`ModelLoadError` of what it returned once closed (upstream: a crash)",
    "set_cache": "",
    "set_seed": "-1: each generation of another seed",
    "logits_to_logprobs": "",
    "longest_token_prefix": "",
    "from_pretrained": "`hf:` names do the same, and check what came",
    "ctx": CLOSED,
    "model": CLOSED,
    "eval_tokens": "",
    "eval_logits": "",
}
OF_METHOD = {"args": (WORKS, ""), "kwargs": (WORKS, "handed on")}


def members() -> dict[str, list[str]]:
    """llama_cpp.Llama's public methods with their arguments; properties have none."""
    found = {}
    for name, member in vars(llama_cpp.Llama).items():
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        function = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
        parameters = inspect.signature(function).parameters if callable(function) else ()
        found[name] = [parameter for parameter in parameters if parameter not in ("self", "cls")]
    return found


def place(member: str, argument: str) -> tuple[str, str]:
    """(what becomes of it, why). Raises KeyError if it has no place."""
    if member == "__init__":
        return LOADING[argument]
    return OF_METHOD[argument] if argument in OF_METHOD else COMMON[argument]


INTRO = """# Compatibility with llama-cpp-python

`pyskip.Llama` is a subclass of `llama_cpp.Llama` (llama-cpp-python {version}): this page has every argument, and what
is other than there. `make compatibility` writes it of the signatures; a test fails until a new argument has a place.

*works*: as upstream. *differs*: more, or other, as said. *warns*: a `UserWarning`. *refuses*: an error for some values.
*does nothing*: here or anywhere.

For all methods: once the model was closed they raise `ModelLoadError`, streams that are open too; a second thread gets
a `DecodeError` (upstream crashes for both). Errors are those of [pyskip](reference/api.md), which are `ValueError` and
`RuntimeError` where upstream raises these.
"""


CHATS = """
## Chats

Templates differ in what they take, and drop the rest without a word. So each is tried with messages of its own, and
what it is given is in the form that comes out: text or typed parts, for each role; arguments of tools as text or as
objects; a developer's message as the system's, the system's before the user's, where there is no such role; no tools as
an empty list. A last message that is the assistant's is the beginning of the answer. `tests/test_formatter.py` holds
every template of llama.cpp's own collection to it; a few that know no calls of tools leave those out.

This is done in Python, and not by llama.cpp's `common/chat.cpp`, which `pyskip serve` uses, since that cannot replace
llama-cpp-python's handlers as a whole: `chat_handler`, `chat_format` and the handlers of images are Python objects,
which programs hand over and register, and its grammars for tools begin at a trigger within the answer, which those of
`create_completion(grammar=)` do not. It would be a second way beside the first. What it does more: it reads calls of
tools out of an answer, for `tool_choice="auto"`, where `create_chat_completion()` gives the text, as upstream.
"""


def page() -> str:
    found = members()
    lines = [INTRO.format(version=llama_cpp.__version__), "## Llama(...)", "", "| argument | | |", "|---|---|---|"]
    lines += [_row(name, *place("__init__", name)) for name in found["__init__"]]
    lines += ["", "## Methods", ""]
    lines += ["| method or property | arguments that work | remarks |", "|---|---|---|"]
    for name in MEMBERS:
        working = [argument for argument in found[name] if place(name, argument) == (WORKS, "")]
        lines.append(_row(name, ", ".join(f"`{argument}`" for argument in working), MEMBERS[name]))
    lines += ["", "### Arguments that do not just work", "", "| argument | | |", "|---|---|---|"]
    of_methods = {argument for name, arguments in found.items() if name != "__init__" for argument in arguments}
    others = sorted(argument for argument in of_methods - OF_METHOD.keys() if COMMON[argument] != (WORKS, ""))
    return "\n".join([*lines, *(_row(argument, *COMMON[argument]) for argument in others)]) + f"\n{CHATS}"


def _row(name: str, what: str, why: str) -> str:
    return f"| `{name}` | {what} | {why} |".replace("|  |", "| |").replace("|  |", "| |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.parse_args().out.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
