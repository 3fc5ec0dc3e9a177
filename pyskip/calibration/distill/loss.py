"""The KL divergence to the dense model's next tokens. Logits are made and used up in pieces: those of 16 windows over
150,000 tokens would take 5 GB each time that they are touched."""

from __future__ import annotations

import math

import torch

from .dense import Dense

__all__ = ["Seen", "compare", "divergence_gradient", "label_gradient"]

PIECE = {"cuda": 1 << 27, "cpu": 1 << 22}  # logits at a time: as many as fill a GPU, or stay in caches


def _rows(dense: Dense) -> int:
    return max(64, PIECE[dense.device.type] // int(dense.config.vocab_size))


def _kl(dense: Dense, target: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """[n] of n rows of the streams."""
    with torch.no_grad():
        p = dense.head(target).log_softmax(-1)
    q = dense.head(student).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def divergence_gradient(
    dense: Dense, target: torch.Tensor, student: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """target, student: [n, n_embd], weight: [n]. Returns the KL divergence of each row, and the gradient of their sum,
    weighed, by `student`."""
    values, gradients = [], []
    for t, s, w in zip(*(x.detach().split(_rows(dense)) for x in (target, student, weight)), strict=True):
        s = s.requires_grad_(True)
        with torch.enable_grad():
            kl = _kl(dense, t, s)
            (gradient,) = torch.autograd.grad((kl * w).sum(), s)
        values.append(kl.detach())
        gradients.append(gradient)
    return torch.cat(values), torch.cat(gradients)


@torch.no_grad()  # type: ignore[untyped-decorator]
def compare(
    dense: Dense, target: torch.Tensor, student: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of n rows: the KL divergence, and by how much the label is less likely, in nats."""
    divergences, losses = [], []
    for t, s, label in zip(*(x.split(_rows(dense)) for x in (target, student, labels)), strict=True):
        p, q = dense.head(t).log_softmax(-1), dense.head(s).log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1))
        losses.append((p - q).gather(1, label[:, None])[:, 0])
    return torch.cat(divergences), torch.cat(losses)


def label_gradient(dense: Dense, student: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The gradient by `student` [n, n_embd] of the log-probability of labels that it draws itself, one a row."""
    gradients = []
    for s in student.detach().split(_rows(dense)):
        s = s.requires_grad_(True)
        with torch.enable_grad():
            logp = dense.head(s).log_softmax(-1)
            noise = torch.rand(logp.shape, generator=generator, device=logp.device).clamp_min(1e-20)
            label = (logp.detach() - (-noise.log()).log()).argmax(-1, keepdim=True)
            (gradient,) = torch.autograd.grad(logp.gather(1, label).sum(), s)
        gradients.append(gradient)
    return torch.cat(gradients)


class Seen:
    """What was measured at a rate."""

    def __init__(self) -> None:
        self._parts: list[tuple[torch.Tensor, ...]] = []

    def add(self, divergences: torch.Tensor, losses: torch.Tensor, skipped: torch.Tensor) -> None:
        self._parts.append((divergences, losses, skipped.float().flatten()))

    @property
    def kl(self) -> float:
        return self._mean(0)

    def _mean(self, i: int) -> float:
        return float(torch.cat([part[i] for part in self._parts]).mean())

    def __str__(self) -> str:
        return f"({self._mean(2):.3f}): x {math.exp(self._mean(1)):.4f}, KL {self.kl:.4f}"
