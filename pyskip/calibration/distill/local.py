"""The first stage: each stand-in learns its block's output from its input on the dense stream, by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .adam import Adam
from .dense import Dense, Inner
from .stand_ins import Layer, StandIns
from .text import Draws

__all__ = ["Kept", "fit_first_gates", "fit_stand_ins", "gather", "start_stand_ins"]

LR = 1.5e-3  # at most
RISE = 0.1  # of the steps, up to it
RIDGE = 1e-4  # of the mean diagonal
N_CHOOSE = 8192  # tokens that neurons are chosen on

IsLate = Callable[[], bool]


@dataclass(frozen=True)
class Kept:
    """Of each layer and token: what the block reads, what it adds, and log|x|. [n_layer, n, n_embd], [n_layer, n]."""

    xn: torch.Tensor
    y: torch.Tensor
    log_x: torch.Tensor

    @property
    def n(self) -> int:
        return int(self.xn.shape[1])


@torch.no_grad()  # type: ignore[untyped-decorator]
def gather(dense: Dense, draws: Draws, n_windows: int, batch: int, warmup: int, is_late: IsLate) -> Kept:
    kind = torch.bfloat16 if dense.is_narrow else torch.float32
    kept: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in range(dense.n_layer)]

    def keep(il: int, x: torch.Tensor, xn: torch.Tensor, block: Inner) -> torch.Tensor:
        y = block(xn)
        log_x = x.float().norm(dim=-1).clamp_min(1e-20).log()
        kept[il].append(tuple(t[:, warmup:].flatten(0, 1) for t in (xn.to(kind), y.to(kind), log_x)))
        return y

    for done in range(0, n_windows, batch):
        if done and is_late():
            break
        dense.stream(torch.from_numpy(draws.draw(min(batch, n_windows - done))), keep)
    stacked = []
    for i in range(3):
        stacked.append(torch.stack([torch.cat([parts[i] for parts in layer]) for layer in kept]))
    return Kept(*stacked)


@torch.no_grad()  # type: ignore[untyped-decorator]
def start_stand_ins(dense: Dense, own: StandIns, kept: Kept) -> None:
    """Each begins as its block's own neurons that add most energy to the stream."""
    for il in range(dense.n_layer):
        gate, up, down = dense.matrices(il)
        xn, y = kept.xn[il, :N_CHOOSE].float(), kept.y[il, :N_CHOOSE].float()
        hidden, gain = own.activation(xn @ gate.T) * (xn @ up.T), dense.gain(il)
        if gain is not None:  # each token counts as the norm lets it
            hidden = hidden / (hidden @ down.T).pow(2).mean(1, keepdim=True).sqrt().clamp_min(1e-12)
            down = down * gain[:, None]
        top = (hidden.pow(2).mean(0) * down.pow(2).sum(0)).topk(own.width).indices
        own.gate_up[il] = torch.cat([gate[top], up[top]])
        own.down[il] = down[:, top]
        own.bias[il] = 0
        layer = Layer(own.gate_up[il], own.down[il], own.bias[il])
        if own.is_normed:
            out = own.output(layer, xn)
            own.down[il] *= (out * y).sum() / out.pow(2).sum().clamp_min(1e-20)
            layer = layer._replace(down=own.down[il])
        own.bias[il] = (y - own.output(layer, xn)).mean(0)


def one_cycle(share: float) -> float:
    """The learning rate behind a share of the steps, as a share of its largest: two half cosines, up and down."""
    up = share / RISE if share < RISE else (1 - share) / (1 - RISE)
    return 0.5 * (1 - math.cos(math.pi * up))


def fit_stand_ins(
    dense: Dense, own: StandIns, kept: Kept, n_steps: int, batch: int, generator: torch.Generator, is_late: IsLate
) -> float:
    """All layers at once, each with its own loss. Returns the mean share of the energy that is missed."""
    adam = Adam(own, LR)
    energy = torch.stack([y.float().pow(2).sum(-1) for y in kept.y])  # [n_layer, n]
    weight = 1 / (energy + energy.mean(1, keepdim=True))  # between relative and absolute: a few huge rows must not rule
    mean = 1.0
    for step in range(n_steps):
        rows = torch.randint(0, kept.n, (batch,), generator=generator).to(kept.xn.device)
        y, w = kept.y[:, rows], weight[:, rows]
        with dense.autocast():
            out = own.output(Layer(own.gate_up, own.down, own.bias[:, None]), kept.xn[:, rows])
        missed = (out.float() - y.float()).pow(2).sum(-1)
        loss = (w * missed).sum(1) / (w * energy[:, rows]).sum(1)
        adam.zero_grad()
        loss.sum().backward()
        adam.lr = LR * one_cycle((step + 0.5) / n_steps)
        adam.step()
        if is_late():
            break
        if step % 10 == 9:  # not every time: a GPU would wait for it
            mean = loss.detach().mean().item()
    return mean


@torch.no_grad()  # type: ignore[untyped-decorator]
def fit_first_gates(dense: Dense, own: StandIns, kept: Kept) -> None:
    """The closed-form prediction of log(|y - stand-in|), where gates.py starts from."""
    for il, layer in enumerate(own.seen()):
        xn = kept.xn[il].float()
        error = torch.cat([(y.float() - own.output(layer, x)).norm(dim=1) for x, y in zip(
            xn.split(N_CHOOSE), kept.y[il].split(N_CHOOSE), strict=True)]).clamp_min(1e-20).log()  # fmt: skip
        f = torch.cat([xn, kept.log_x[il, :, None], torch.ones_like(kept.log_x[il, :, None])], 1)
        gram, cross = (f.T @ f).double(), (f.T @ error[:, None]).double()
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        own.gate[il] = torch.linalg.solve(gram, cross)[:, 0].float()
