"""Likelihoods of requests of any length. Used by pyskip.lm_eval."""

from __future__ import annotations

import numpy as np

from ..runtime.decoding import Decoder
from ..runtime.llama import Llama
from .score import score

__all__ = ["Scorer"]


class Scorer:
    """Scores requests one after another. A request is decoded in the same batches whatever was scored before it, so
    that its figures are the same to the last bit: what it shares with the last one is kept in whole batches, or where
    the two contexts are the same."""

    def __init__(self, decoder: Decoder, n_batch: int, n_vocab: int) -> None:
        self._decoder, self._n_batch = decoder, n_batch
        self._log_p = np.empty((n_batch, n_vocab), np.float32)
        self._held: list[int] = []  # decoded, and not scored

    def score(self, tokens: list[int], start: int) -> tuple[float, bool]:
        """Log-likelihood of tokens[start:], and whether each is the likeliest."""
        scored, last = start - 1, len(tokens) - 1
        pos = self._decoder.rewind(self._kept(tokens[:scored]))
        log_p, greedy = 0.0, True
        while scored < last:
            if pos < scored:
                end = min(pos + self._n_batch, scored)
                self._decoder.decode(tokens[:end], pos, end)
                pos = end
                continue
            end = min(pos + self._n_batch - 1, last)
            logits, targets = self._decoder.decode(tokens[: end + 1], pos, pos), tokens[pos + 1 : end + 1]
            scores = score(logits, targets, self._log_p, is_dense=True)
            log_p += float(scores.log_p.sum())
            greedy = greedy and bool((scores.top == targets).all())
            scored = end
            pos = self._decoder.rewind(end) if end < last else end  # tokens[end] gave no logits
        return log_p, greedy

    def _kept(self, context: list[int]) -> int:
        shared = int(Llama.longest_token_prefix(self._held, context))
        if not shared == len(context) == len(self._held):
            shared -= shared % self._n_batch
        self._held = context
        return shared
