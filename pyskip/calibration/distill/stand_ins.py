"""Stand-ins and gates of all layers as torch parameters, and the quantisation that they are written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

__all__ = ["ACTIVATIONS", "Layer", "StandIns", "fake_q4_0", "features", "is_whole", "pack_q4_0"]

ACTIVATIONS: dict[str, Any] = {  # as ggml computes them: its GELU is the one by tanh
    "silu": torch.nn.functional.silu,
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.nn.functional.relu,
}
HIDDEN_EPS = 1e-12  # native/src/stand-in.cpp


def is_whole(w: torch.Tensor) -> bool:
    """Whether its rows are whole blocks; others are written in float16."""
    return bool(w.shape[-1] % 32 == 0)


def _q4_0(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """quantize_row_q4_0_ref: of each block of 32 the scale, in float16, and the values 0 to 15."""
    blocks = w.detach().float().reshape(-1, 32)
    peak = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    d = peak / -8
    inverse = torch.where(d == 0, torch.zeros_like(d), 1 / d)
    return d.half(), (blocks * inverse + 8.5).floor().clamp(0, 15)


def fake_q4_0(w: torch.Tensor) -> torch.Tensor:
    """w as GGML_TYPE_Q4_0 would hold it, its gradient passed through. Rows of whole blocks."""
    d, q = _q4_0(w)
    return w + (((q - 8) * d.float()).reshape(w.shape) - w).detach()


def pack_q4_0(w: torch.Tensor) -> torch.Tensor:
    """[..., n] -> uint8 [..., n / 32 * 18], the rows of blocks of GGML_TYPE_Q4_0."""
    d, q = _q4_0(w)
    q = q.to(torch.uint8)
    blocks = torch.cat([d.view(torch.uint8), q[:, :16] | (q[:, 16:] << 4)], 1)
    return blocks.reshape(*w.shape[:-1], -1)


class Layer(NamedTuple):
    """One stand-in as a step sees it. gate_up: [2*width, n_embd], down: [n_embd, width], bias: [n_embd]."""

    gate_up: torch.Tensor
    down: torch.Tensor
    bias: torch.Tensor


class StandIns(torch.nn.Module):  # type: ignore[misc]  # torch is an extra, and Any if it is missing
    """Stacked, so that one operation serves all layers: the optimiser's, the quantisation's."""

    def __init__(self, n_layer: int, n_embd: int, width: int, activation: str, *, is_normed: bool) -> None:
        super().__init__()
        self.width, self.is_normed, self.activation = width, is_normed, ACTIVATIONS[activation]
        self.gate_up = torch.nn.Parameter(torch.zeros(n_layer, 2 * width, n_embd))
        self.down = torch.nn.Parameter(torch.zeros(n_layer, n_embd, width))
        self.bias = torch.nn.Parameter(torch.zeros(n_layer, n_embd))
        self.gate = torch.nn.Parameter(torch.zeros(n_layer, n_embd + 2), requires_grad=False)  # on xn, log|x|, 1
        self.is_quantised = False

    def weights(self) -> list[torch.nn.Parameter]:
        return [self.gate_up, self.down, self.bias]

    def seen(self) -> Sequence[Layer]:
        """The layers as the next pass shall compute them."""
        gate_up, down = self.gate_up, self.down
        if self.is_quantised:
            gate_up, down = (fake_q4_0(w) if is_whole(w) else w for w in (gate_up, down))
        # unbind and not an index each: its gradient is put together once
        return [Layer(*parts) for parts in zip(gate_up.unbind(0), down.unbind(0), self.bias.unbind(0), strict=True)]

    def hidden(self, layer: Layer, xn: torch.Tensor) -> torch.Tensor:
        """What `down` reads."""
        g, u = (xn @ layer.gate_up.transpose(-1, -2)).chunk(2, dim=-1)
        h = self.activation(g) * u
        if self.is_normed:
            h = h.float()
            h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + HIDDEN_EPS)
        return h

    def output(self, layer: Layer, xn: torch.Tensor) -> torch.Tensor:
        return self.hidden(layer, xn) @ layer.down.transpose(-1, -2) + layer.bias

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def score(self, il: int, x: torch.Tensor, xn: torch.Tensor) -> torch.Tensor:
        """In float32, as the native gate."""
        gate = self.gate[il]
        with torch.autocast(x.device.type, enabled=False):
            size = x.float().norm(dim=-1).clamp_min(1e-20).log()
            return xn.float() @ gate[:-2] + gate[-2] * size + gate[-1]


def features(x: torch.Tensor, xn: torch.Tensor) -> torch.Tensor:
    """[..., n_embd + 2]: what a gate's weights apply to."""
    size = x.float().norm(dim=-1, keepdim=True).clamp_min(1e-20).log()
    return torch.cat([xn.float(), size, torch.ones_like(size)], -1)
