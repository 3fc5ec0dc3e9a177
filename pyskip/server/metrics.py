"""What Prometheus is told."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .served import Served, ServedLlama

__all__ = ["Metrics"]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TPS = (1, 2, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200, 400)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names: Any = {"registry": self.registry, "namespace": "pyskip"}
        self._requests = Counter("requests", "Answers, by path and HTTP status.", ["path", "status"], **names)
        self._prompt = Counter("prompt_tokens", "Prompt tokens, those from the cache too.", ["model"], **names)
        self._cached = Counter("cached_tokens", "Prompt tokens that were not decoded again.", ["model"], **names)
        self._generated = Counter("generated_tokens", "Generated tokens.", ["model"], **names)
        self._blocks = Counter(
            "ffn_blocks",
            "FFN blocks of generated tokens.",
            ["model", "layer", "outcome"],
            **names,
        )
        self._tps = Histogram("tokens_per_second", "Decoding, by request.", ["model"], buckets=TPS, **names)
        self._first = Histogram(
            "first_token_seconds", "From a request's turn to its first token.", ["model"], buckets=SECONDS, **names
        )
        self._waited = Histogram("queue_seconds", "In the queue.", ["model"], buckets=SECONDS, **names)
        self.queue_depth = Gauge("queue_depth", "Requests that wait for their turn.", **names)
        self.running = Gauge("requests_running", "Requests that decode.", **names)

    def answered(self, path: str, status: int) -> None:
        self._requests.labels(path, str(status)).inc()

    def began(self, model: str, waited: float) -> None:
        self._waited.labels(model).observe(waited)

    def ran(self, model: str, llm: ServedLlama, run: Served) -> None:
        """A request is over, whole or cut short."""
        self._prompt.labels(model).inc(run.n_prompt)
        self._cached.labels(model).inc(run.n_cached)
        self._generated.labels(model).inc(run.n_generated)
        if run.watch.t_first:
            self._first.labels(model).observe(run.watch.t_first - run.watch.t_begin)
        if run.tokens_per_second:
            self._tps.labels(model).observe(run.tokens_per_second)
        if run.stats is None:
            return
        n_dense = 0 if run.stats.n_tokens else run.n_steps  # off is not counted when it decodes
        for il, (evaluated, skipped) in enumerate(zip(run.stats.evaluated, run.stats.skipped, strict=True)):
            self._blocks.labels(model, str(il), "evaluated").inc(evaluated + n_dense)
            self._blocks.labels(model, str(il), "skipped").inc(skipped)

    def text(self) -> bytes:
        return generate_latest(self.registry)
