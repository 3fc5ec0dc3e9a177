"""Along which directions of the residual stream an error changes the next token, told from the model's output head.

An error d behind the last block changes the logits by W J d, J being the slope of the final norm, and adds to second
order d' J' W' (diag(p) - p p') W J d / 2 to the KL divergence. The matrix in the middle is the mean, over labels drawn
from p, of the outer product of (W[label] - W'p), so a few drawn labels stand for it. An error behind an earlier block
reaches the head mostly along the residual path, so the same directions serve it; what the later blocks and tokens make
of it is left out, but for a factor a layer, which `fit_sensitivity` finds.
"""

from __future__ import annotations

import os

import gguf
import numpy as np
import numpy.typing as npt

__all__ = ["Head"]

N_LABEL = 8
MAX_BYTES = 3 << 30

Floats = npt.NDArray[np.float32]


class Head:
    """The output matrix [n_vocab, n_embd] and the final norm's weights [n_embd]."""

    def __init__(self, weight: Floats, norm: Floats, seed: int) -> None:
        self._weight, self._norm = weight, np.where(np.abs(norm) < 1e-6, np.float32(1e-6), norm)
        self._rng = np.random.default_rng(seed)

    @staticmethod
    def of(model_path: str | os.PathLike[str], seed: int) -> Head | None:
        """The model's; None where the file does not hold it as one matrix, or it is too large to unpack."""
        tensors = {t.name: t for t in gguf.GGUFReader(model_path).tensors}
        weight = tensors.get("output.weight", tensors.get("token_embd.weight"))
        norm = tensors.get("output_norm.weight")
        if weight is None or norm is None or 4 * int(np.prod(weight.shape)) > MAX_BYTES:
            return None
        try:
            unpacked = gguf.dequantize(weight.data, weight.tensor_type).astype(np.float32, copy=False)
        except NotImplementedError:
            return None
        return Head(unpacked, np.asarray(norm.data, np.float32), seed)

    def probes(self, logits: Floats, normed: Floats) -> Floats:
        """[n, N_LABEL, n_embd] from logits [n, n_vocab] and what enters the head, [n, n_embd]."""
        n, n_embd = normed.shape
        out = np.empty((n, N_LABEL, n_embd), np.float32)
        for begin in range(0, n, 64):
            rows = slice(begin, min(begin + 64, n))
            p = np.exp(logits[rows] - logits[rows].max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            below = np.cumsum(p, axis=1, dtype=np.float64)
            drawn = self._rng.random((len(p), N_LABEL)) * below[:, -1:]
            labels = np.stack([np.searchsorted(b, d) for b, d in zip(below, drawn, strict=True)]).clip(
                max=p.shape[1] - 1
            )
            out[rows] = self._weight[labels] - (p @ self._weight)[:, None]
        out *= self._norm
        unit = (normed / self._norm)[:, None]  # the stream, scaled to a mean square of 1
        out -= unit * ((out * unit).sum(axis=2, keepdims=True) / n_embd)
        return out
