"""What the pyskip of this Python answers on the demo model: a process of its own, for each build and each processor.

answer.py OUT.npz [--skip SPEC] [--n-gen N]

Writes tokens [n_gen], the logits that each was the greedy choice of [n_gen, n_vocab], the text, the skip rate, and the
name of the CPU back end that was loaded.
"""

import argparse
import re
from pathlib import Path

import numpy as np

import pyskip
from pyskip.generation import chat_tokens
from pyskip.models import resolve

QUESTION = "Write the numbers from 1 to 20, each on a line of its own."

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("--skip", default="0.25")
parser.add_argument("--n-gen", type=int, default=32)
args = parser.parse_args()

llm = pyskip.Llama(
    resolve("demo"), skip=args.skip, n_ctx=128, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False
)
llm.eval(chat_tokens(llm, [{"role": "user", "content": QUESTION}]))
n_prompt = llm.n_tokens
llm.mark_generated()
tokens: list[int] = []
for _ in range(args.n_gen):
    tokens.append(int(np.argmax(llm.scores[llm.n_tokens - 1])))
    llm.eval(tokens[-1:])
back_ends = set(re.findall(r"/libggml-(cpu[\w.-]*)\.so", Path("/proc/self/maps").read_text()))
np.savez(
    args.out,
    tokens=tokens,
    logits=llm.scores[n_prompt - 1 : n_prompt - 1 + args.n_gen],
    text=llm.detokenize(tokens).decode("utf-8", "replace"),
    rate=llm.skip_stats().rate,
    back_end=" ".join(sorted(back_ends)),
)
