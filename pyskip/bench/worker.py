"""One arm of a benchmark: holds a model and times what it is told, a JSON object a line on stdin, one answer each.

Started by run.py under any Python that has llama_cpp; pyskip is imported only for an arm of pyskip's.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

RAPL = [p for p in Path("/sys/class/powercap").glob("intel-rapl:[0-9]*") if p.name.count(":") == 1]  # packages


def joules() -> float | None:
    """What the processor packages have used so far, None if the kernel does not tell. Wraps now and then."""
    try:
        return sum(int((p / "energy_uj").read_text("ascii")) for p in RAPL) / 1e6 if RAPL else None
    except OSError:
        return None


def peak_memory() -> int:
    """Bytes of this process, at most so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Worker:
    def __init__(self, setup: dict[str, Any]) -> None:
        threads = setup["n_threads"]
        n_ctx = setup["n_ctx"]
        kwargs = {"n_ctx": n_ctx, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        self.skip = setup["skip"]
        self.llama_cpp: Any
        self.llm: Any
        if self.skip is None:
            import llama_cpp as stock

            self.llama_cpp = stock
            self.llm = stock.Llama(setup["model"], **kwargs)
            self.build = f"llama-cpp-python {stock.__version__}"
        else:
            import pyskip
            from pyskip.binding.library import BUILD, llama_cpp

            self.llama_cpp = llama_cpp
            self.llm = pyskip.Llama(
                setup["model"], skip=self.skip, profile=setup["profile"], kernels=setup["kernels"], **kwargs
            )
            self.build = BUILD
        self.held: list[int] = []

    def tokenize(self, text: str) -> dict[str, Any]:
        return {"tokens": self.llm.tokenize(text.encode(), add_bos=True, special=False)}

    def sample(self, n: int, seed: int) -> dict[str, Any]:
        """n tokens that the model writes at temperature 1."""
        llm = self.llm
        llm.set_seed(seed)
        tokens = [max(llm.token_bos(), 0)]
        llm.reset()
        for token in llm.generate(tokens, temp=1.0, top_k=0, top_p=0.95):
            tokens.append(token)
            if len(tokens) > n:
                break
        self.held = []
        return {"tokens": tokens[1:]}

    def run(self, context: list[int], tokens: list[int], batch: bool) -> dict[str, Any]:
        """Decode `tokens` behind `context`, in one batch or one by one, and time it."""
        llm = self.llm
        self.hold(context)
        if self.skip is not None:
            llm.mark_generated(len(context) if not batch else llm.n_ctx())
            llm.reset_skip_stats()
        energy, start = joules(), time.perf_counter()
        if batch:
            llm.eval(tokens)
        else:
            for token in tokens:
                llm.eval([token])
        seconds = time.perf_counter() - start
        after = joules()
        result = {
            "seconds": seconds,
            "joules": after - energy if after is not None and energy is not None and after >= energy else None,
            "skip_rate": 0.0,
            "attention_skip_rate": 0.0,
            "ffn_bytes_saved": 0.0,
        }
        if self.skip is not None:
            from pyskip.evaluation import ffn_bytes_saved

            stats = llm.skip_stats()
            result["skip_rate"] = stats.prompt_rate if batch else stats.rate
            result["attention_skip_rate"] = stats.prompt_attention_rate if batch else stats.attention_rate
            result["ffn_bytes_saved"] = ffn_bytes_saved(llm, llm.skip, stats.per_layer)
        return result

    def hold(self, context: list[int]) -> None:
        """The context decoded, and nothing behind it."""
        llm = self.llm
        memory = self.llama_cpp.llama_get_memory(llm.ctx)
        if context != self.held or not self.llama_cpp.llama_memory_seq_rm(memory, 0, len(context), -1):
            llm.reset()
            self.llama_cpp.llama_memory_clear(memory, True)
            llm.n_tokens = 0
            llm.eval(context)
            self.held = context
        llm.n_tokens = len(context)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main() -> None:
    try:
        worker = Worker(json.loads(sys.stdin.readline()))
    except Exception as error:
        print(json.dumps({"error": one_line(error)}), flush=True)
        return
    print(json.dumps({"build": worker.build}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = getattr(worker, job.pop("do"))(**job)
        except Exception as error:
            answer = {"error": one_line(error)}
        answer["peak_rss"] = peak_memory()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
