"""Perplexity of unpatched llama.cpp, in a process of its own: perplexity.py MODEL TEXT N_CTX CHUNKS

Upstream's llama-perplexity (without --ppl-stride), its arithmetic over unpatched llama-cpp-python; prints the figure.
"""

import math
import sys

import llama_cpp
import numpy as np

model, text, n_ctx, chunks = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
assert not hasattr(llama_cpp.llama_cpp._lib, "pyskip_build")
llm = llama_cpp.Llama(
    model, n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=n_ctx, n_threads=2, n_threads_batch=2, logits_all=True, verbose=False
)
with open(text, "rb") as file:
    tokens = llm.tokenize(file.read().removesuffix(b"\n"), add_bos=True, special=False)
first, nll, count = n_ctx // 2, 0.0, 0
for i in range(min(chunks, len(tokens) // n_ctx)):
    window = tokens[i * n_ctx : (i + 1) * n_ctx]
    if llama_cpp.llama_vocab_get_add_bos(llm._model.vocab):
        window[0] = llm.token_bos()
    llm.reset()  # type: ignore[no-untyped-call]
    llm.eval(window)
    for t in range(first, n_ctx - 1):
        logits = llm.scores[t]
        exp = np.exp(logits - logits.max()).astype(np.float64)
        nll -= float(logits[window[t + 1]] - logits.max()) - math.log(exp.sum())
        count += 1
print(f"{math.exp(nll / count):.6f}")
