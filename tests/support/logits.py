"""Logits of one build of llama.cpp, as SHA-256 of their bytes: a process of its own, since two builds cannot share one.

logits.py reference|pyskip MODEL OUT.npz [--skip SPEC] [--threads N] [--prompts N] [--n-gen N] [--step]
          [--flash-attn]

Writes tokens [n_prompt, n_gen] and digests [n_prompt, n_prompt_tokens + n_gen] (padded with ""), prompt and decode.
"""

import argparse
import hashlib
from typing import Any

import numpy as np

SUBJECTS = ["Dogs", "Rain", "The capital of France", "Water", "A good book", "Mathematics", "Music", "The moon"]
PREDICATES = ["is", "can never be", "was first found in"]

parser = argparse.ArgumentParser()
parser.add_argument("build", choices=["reference", "pyskip"])
parser.add_argument("model")
parser.add_argument("out")
parser.add_argument("--skip", default="off")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--prompts", type=int, default=20)
parser.add_argument("--n-gen", type=int, default=64)
parser.add_argument("--step", action="store_true", help="feed the prompt token by token")
parser.add_argument("--flash-attn", action="store_true")
args = parser.parse_args()

kwargs = {
    "n_ctx": 256,
    "n_threads": args.threads,
    "n_threads_batch": args.threads,
    "logits_all": True,
    "flash_attn": args.flash_attn,
    "verbose": False,
}
llm: Any  # of either
if args.build == "pyskip":
    import pyskip

    llm = pyskip.Llama(args.model, skip=args.skip, kernels="upstream", **kwargs)
else:
    import llama_cpp

    assert not hasattr(llama_cpp.llama_cpp._lib, "pyskip_build")
    llm = llama_cpp.Llama(args.model, **kwargs)

prompts = [f"{subject} {predicate}" for predicate in PREDICATES for subject in SUBJECTS][: args.prompts]
all_tokens, all_digests = [], []
for prompt in prompts:
    tokens = llm.tokenize(prompt.encode())
    llm.reset()
    for batch in [[t] for t in tokens] if args.step else [tokens]:
        llm.eval(batch)
    generated = []
    for _ in range(args.n_gen):
        generated.append(int(np.argmax(llm.scores[llm.n_tokens - 1])))
        llm.eval(generated[-1:])
    all_tokens.append(generated)
    all_digests.append([hashlib.sha256(row.tobytes()).hexdigest() for row in llm.scores[: llm.n_tokens]])
width = max(map(len, all_digests))
np.savez(args.out, tokens=all_tokens, digests=[row + [""] * (width - len(row)) for row in all_digests])
