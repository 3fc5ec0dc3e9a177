"""Embeddings, where llama-cpp-python's are not what OpenAI's clients expect: unit vectors, several texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..binding.library import llama_cpp

__all__ = ["Embedding"]


class Embedding(llama_cpp.Llama if not TYPE_CHECKING else object):  # type: ignore[misc]
    """The part of pyskip.Llama that makes vectors of texts."""

    if TYPE_CHECKING:
        pooling_type: Any

    def embed(
        self, input: str | list[str], normalize: bool = False, truncate: bool = True, return_count: bool = False
    ) -> Any:
        """llama_cpp.Llama.embed; of several texts without pooling, too, where upstream's rows are no token's."""
        pooled = self.pooling_type() != llama_cpp.LLAMA_POOLING_TYPE_NONE
        if isinstance(input, str) or pooled or len(input) < 2:
            return super().embed(input, normalize, truncate, return_count)
        found = [super(Embedding, self).embed(text, normalize, truncate, True) for text in input]
        rows = [row for row, _ in found]
        return (rows, sum(n for _, n in found)) if return_count else rows

    def create_embedding(self, input: str | list[str], model: str | None = None, *, normalize: bool = True) -> Any:
        """Vectors of length 1, as OpenAI's and the server's; normalize=False: as the model has them, like embed()."""
        answer = super().create_embedding(input, model)
        if normalize:
            for item in answer["data"]:
                item["embedding"] = _unit(item["embedding"])
        return answer


def _unit(vector: Any) -> Any:
    """Of a pooled vector, or of each token's."""
    rows = np.asarray(vector, np.float64)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / np.where(norms == 0, 1, norms)).tolist()
