"""A block's own neurons, as stand-ins: those that move the stream most, out of the model's file."""

from __future__ import annotations

import math
import os

import gguf
import numpy as np
import numpy.typing as npt
from gguf.constants import QK_K

__all__ = ["Neurons", "default_width", "fitted_width"]

POST_NORM = "post_ffw_norm"
SUM_BYTES = 4 << 30

F32 = npt.NDArray[np.float32]


def default_width(n_ff: int) -> int:
    """About 1/7 of the block's neurons, a multiple of 32: in 4 bits 1/8 of the bytes of a block in 5 bits. What is
    trained makes more of few neurons than what is fitted."""
    return max(32, n_ff * 7 // 48 // 32 * 32)


def fitted_width(n_ff: int, n_embd: int, n_layer: int, quantisation: str) -> int:
    """Half of the block's neurons in a K-quant, a third in another type, whole blocks of it: in 2 and 4 bits about a
    quarter of the block's bytes. Fewer where the sums of all layers (gather.py) would be more than SUM_BYTES."""
    is_k = quantisation.endswith("_K")
    step, share = (QK_K, 2) if is_k else (32, 3)
    most = (math.isqrt(n_embd**2 + SUM_BYTES // n_layer) - n_embd) // 2  # 4 * width * (width + n_embd) bytes a layer
    return min(n_ff // share, most) // step * step or default_width(n_ff)


class Neurons:
    """The weights of FFN blocks that are activation(gate) * up: `ffn_gate` and `ffn_up`, or both in `ffn_up`."""

    def __init__(self, model_path: str | os.PathLike[str]) -> None:
        tensors = gguf.GGUFReader(model_path).tensors
        self._tensors = {t.name: t for t in tensors if ".ffn_" in t.name or POST_NORM in t.name}

    def has_post_norm(self) -> bool:
        """Whether a norm lies between the block's last matrix and the stream (Gemma 2 and 3, OLMo 2)."""
        return any(POST_NORM in name for name in self._tensors)

    def _matrix(self, il: int, name: str) -> F32 | None:
        tensor = self._tensors.get(f"blk.{il}.{name}.weight")
        if tensor is None or len(tensor.shape) != 2:
            return None
        return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)

    def strongest(self, il: int, squares: F32, width: int) -> tuple[F32, F32] | None:
        """(gate_up [2*width, n_embd], down [n_embd, width]) of the neurons with the most output energy. Of a block with
        a post-norm, `down` holds the norm's gains and lacks each token's scale.

        squares: [n_ff], the sums of Kind.NEURONS. None if the file does not hold the weights as plain matrices, or
        there are no more neurons than `width`.
        """
        try:
            gate, up, down = (self._matrix(il, name) for name in ("ffn_gate", "ffn_up", "ffn_down"))
        except NotImplementedError:  # a quantisation that gguf-py cannot read
            return None
        if up is None or down is None:
            return None
        if gate is None:
            gate, up = np.split(up, 2)
        n_ff = len(squares)
        if width >= n_ff or len(gate) != n_ff or len(up) != n_ff or down.shape[1] != n_ff:
            return None
        gain = self._tensors.get(f"blk.{il}.{POST_NORM}.weight")
        if gain is not None:
            down = down * gguf.dequantize(gain.data, gain.tensor_type).astype(np.float32)[:, None]
        chosen = np.argsort(-squares * (down**2).sum(axis=0))[:width]
        return np.concatenate([gate[chosen], up[chosen]]), np.ascontiguousarray(down[:, chosen])
