"""pyskip as an arm of benchmarks/peers.py: holds a model and times what it is told, one JSON object a line each way.

Started by peers_arms.py. One process serves all arms that have their kernels in common.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from typing import Any

import pyskip  # isort: skip  (before llama_cpp)
import llama_cpp

N_CONTEXT = 16  # tokens that timed ones follow
# of llama_print_system_info, the widest first: what is reported under a name is compared with nothing under another
INSTRUCTIONS = {"AVX512": "AVX-512", "AVX2": "AVX2", "AVX": "AVX", "SVE": "SVE", "NEON": "NEON"}


class Worker:
    def __init__(self, *, model: str, kernels: str, profile: str | None, n_ctx: int, depth: int = 0) -> None:
        self.depth = depth  # of a context that generated tokens follow, decoded once; 0: N_CONTEXT, every time
        arguments: dict[str, Any] = {"n_ctx": (depth or N_CONTEXT) + n_ctx, "profile": profile, "verbose": False}
        if "kernels" in inspect.signature(pyskip.Llama).parameters:
            arguments["kernels"] = kernels
        elif kernels != "upstream":
            raise RuntimeError(
                "pyskip.Llama has no `kernels`, expected fast or upstream: only `upstream` can be measured"
            )
        self.llm = pyskip.Llama(model, **arguments)
        self.tokens: list[int] = []

    def describe(self) -> dict[str, Any]:
        info = llama_cpp.llama_print_system_info().decode()
        has = {
            name.rpartition(":")[2].strip() for name, _, value in (i.partition("=") for i in info.split("|")) if value
        }
        words = next((word for name, word in INSTRUCTIONS.items() if name in has), "none")
        build = f"pyskip {pyskip.__version__}, llama-cpp-python {llama_cpp.__version__}"
        return {"build": build, "instructions": words}

    def sample(self, n: int, seed: int) -> dict[str, Any]:
        """n tokens that the model writes at temperature 1."""
        tokens = [max(self.llm.token_bos(), 0)]
        llama_cpp.llama_set_n_threads(self.llm.ctx, 1, 1)  # steady where others have the machine as well
        self.llm.set_seed(seed)
        for token in self.llm.generate(tokens, temp=1.0, top_k=0, top_p=0.95):
            tokens.append(token)
            if len(tokens) > n:
                break
        return {"tokens": tokens[1:]}

    def tokenize(self, text: str) -> dict[str, Any]:
        return {"tokens": self.llm.tokenize(text.encode(), add_bos=True, special=False)}

    def set_tokens(self, tokens: list[int]) -> dict[str, Any]:
        self.tokens = tokens
        if self.depth:
            self.llm.skip = "off"
            self.llm.eval(tokens[: self.depth])
        return {}

    def run(self, kind: str, n: int, n_threads: int, skip: str) -> dict[str, Any]:
        """Time n tokens as one batch of prompt (pp) or one by one as generated ones (tg), once untimed before."""
        self.llm.skip = skip
        llama_cpp.llama_set_n_threads(self.llm.ctx, n_threads, n_threads)
        self.once(kind, n)
        seconds = self.once(kind, n)
        stats = self.llm.skip_stats()
        n_skipped, n_run = sum(stats.prompt_skipped), sum(stats.prompt_evaluated)
        rate = n_skipped / max(1, n_skipped + n_run) if kind == "pp" else stats.rate
        return {"seconds": seconds, "skip_rate": rate}

    def once(self, kind: str, n: int) -> float:
        """A prompt starts in an empty context, as llama-bench's does."""
        llm, n_before = self.llm, self.depth or N_CONTEXT
        timed = self.tokens[n_before : n_before + n]
        if self.depth:
            if not llm.engine.cut(self.depth, 0):
                raise RuntimeError("the model's memory cannot be cut (a recurrent state), expected a KV cache")
            llm.n_tokens = self.depth
        else:
            llm.reset()
        if kind == "pp":
            llm.mark_generated(n)  # a rate for prompts counts from their end
        else:
            if not self.depth:
                llm.eval(self.tokens[:N_CONTEXT])
            llm.mark_generated(n_before)
        llm.reset_skip_stats()
        start = time.perf_counter()
        if kind == "pp":
            llm.eval(timed)
        else:
            for token in timed:
                llm.eval([token])
        return time.perf_counter() - start


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    worker = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if worker is None:
                worker = Worker(**question)
                answer = worker.describe()
            else:
                answer = getattr(worker, question.pop("do"))(**question)
        except Exception as error:
            answer = {"error": one_line(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
