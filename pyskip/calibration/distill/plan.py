"""How much of everything distillation does, and at which rates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = [
    "JOINT_END", "LR", "MAX_LR", "MEASURED", "N_MEASURED", "ODDS", "QUANTISE_FROM", "RATES", "REFITS", "SHARES", "Plan",
]  # fmt: skip

RATES = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.38, 0.47)
ODDS = (0.06, 0.18, 0.13, 0.20, 0.13, 0.18, 0.07, 0.05)
MEASURED = (0.10, 0.20, 0.30)
N_MEASURED = 64  # windows
QUANTISE_FROM = 0.4  # of the joint stage
REFITS = (0.3, 0.65)  # of the joint stage: gates again
SHARES = {"own text": 0.12, "local": 0.05, "gates": 0.04, "measure": 0.015}  # of the time, at most, each time
JOINT_END = 0.91  # of the time
LR, MAX_LR = 3e-4, 8e-4  # for one window a step; times the root of their number


@dataclass(frozen=True)
class Plan:
    """How much of everything; the times in seconds are of the whole, but for what an earlier run spent."""

    seconds: float
    width: int | None = None  # neurons of a stand-in, a multiple of 32
    seed: int = 1
    warmup: int = 16
    n_window: int = 512
    batch: int = 1  # windows of a step
    n_local: int = 36  # windows to gather
    n_local_steps: int = 450
    local_rows: int = 768
    n_gates: int = 24  # windows
    n_own: int = 0  # tokens of the model's own text
    recompute: bool = False
    save_every: float = 30.0

    @staticmethod
    def here(seconds: float) -> Plan:
        """As this machine can."""
        if not torch.cuda.is_available():
            return Plan(seconds)
        return Plan(seconds, batch=32, n_local=320, n_local_steps=700, local_rows=4096, n_gates=224, n_own=1_000_000)
