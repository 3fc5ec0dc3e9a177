"""Adam whose steps are in proportion to what it changes.

Weights of one model are of a size of 0.2, of another of 0.01, behind norms that make up for it. Steps of one size for
both would forget the second one's neurons before anything is learnt.
"""

from __future__ import annotations

import torch

from .stand_ins import StandIns

__all__ = ["Adam"]

SIZE = 0.19  # root mean square of the weights that learning rates are meant for: the demo model's
EPS = 1e-8


class Adam:
    """Kingma & Ba, 2015, on the weights of stand-ins. `lr` may change between steps."""

    def __init__(self, own: StandIns, lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.own, self.lr, self.betas, self.n = own, lr, betas, 0
        with torch.no_grad():
            gate_up, down = own.gate_up, _size(own.down)
            halves = [_size(half).expand(-1, own.width, -1) for half in gate_up.split(own.width, dim=1)]
            self.sizes = [torch.cat(halves, 1), down, down[..., 0]]  # a bias is of what `down` makes
            self.means = [torch.zeros_like(w) for w in own.weights()]
            self.squares = [torch.zeros_like(w) for w in own.weights()]

    def zero_grad(self) -> None:
        for w in self.own.weights():
            w.grad = None

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self) -> None:
        self.n += 1
        first, second = self.betas
        for w, size, mean, square in zip(self.own.weights(), self.sizes, self.means, self.squares, strict=True):
            if w.grad is None:
                continue
            mean.lerp_(w.grad, 1 - first)
            square.mul_(second).addcmul_(w.grad, w.grad, value=1 - second)
            root = (square / (1 - second**self.n)).sqrt_().add_(EPS)
            w.sub_((mean / root).mul_(size).mul_(self.lr / (1 - first**self.n)))


def _size(w: torch.Tensor) -> torch.Tensor:
    """[n_layer, ...] -> [n_layer, 1, 1]: each layer's root mean square, in units of SIZE; 1 where all is 0."""
    found = w.float().pow(2).mean((1, 2), keepdim=True).sqrt() / SIZE
    return torch.where(found == 0, torch.ones_like(found), found)
