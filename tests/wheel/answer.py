"""What the pyskip of this Python answers on the demo model: a process of its own, for each build and each processor.

answer.py OUT.npz [--skip SPEC] [--n-gen N] [--exact F32.gguf]
answer.py --make F32.gguf

Writes tokens [n_gen], greedy, their text, the skip rate, the name of the CPU back end that was loaded, and with --exact
the logits [n_exact, n_vocab] of the prompt's first tokens, dense, with f32 weights, an f32 KV cache and no flash
attention, whose logits are 1e-2 from those. They are what back ends can be compared by: with Q4_1 weights a matrix
product rounds its activations to 8 bits first, and there a difference of one bit in another order of sums grows to 1
and more in a logit.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np

import pyskip
from pyskip.models import resolve
from pyskip.runtime.generation import chat_tokens

QUESTION = "Write the numbers from 1 to 20, each on a line of its own."
N_EXACT = 8


def make(path: str) -> None:
    """The demo model with f32 weights."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, 1
    if llama_cpp.llama_model_quantize(str(resolve("demo")).encode(), path.encode(), params) != 0:
        raise SystemExit(f"answer.py: {path} cannot be written: make room for 0.6 GB")


parser = argparse.ArgumentParser()
parser.add_argument("out", nargs="?")
parser.add_argument("--make")
parser.add_argument("--skip", default="0.25")
parser.add_argument("--n-gen", type=int, default=32)
parser.add_argument("--exact")
args = parser.parse_args()
if args.make:
    make(args.make)
    raise SystemExit

kwargs: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "verbose": False}
llm = pyskip.Llama(resolve("demo"), skip=args.skip, **kwargs)
prompt = chat_tokens(llm, [{"role": "user", "content": QUESTION}])
llm.eval(prompt)
llm.mark_generated()
tokens: list[int] = []
for _ in range(args.n_gen):
    tokens.append(int(np.argmax(llm.scores[llm.n_tokens - 1])))
    llm.eval(tokens[-1:])
text, rate = llm.detokenize(tokens).decode("utf-8", "replace"), llm.skip_stats().rate
llm.close()
exact = np.zeros((0, 0), np.float32)
if args.exact:
    llm = pyskip.Llama(args.exact, skip="off", type_k=0, type_v=0, flash_attn=False, **kwargs)
    llm.eval(prompt[:N_EXACT])
    exact = llm.scores[:N_EXACT].copy()
maps = Path("/proc/self/maps")  # Linux tells which one was loaded
back_ends = set(re.findall(r"/libggml-(cpu[\w.-]*)\.so", maps.read_text() if maps.exists() else ""))
np.savez(args.out, tokens=tokens, text=text, rate=rate, exact=exact, back_end=" ".join(sorted(back_ends)))
