"""Seeded random profiles for any model, for speed and for tests: their gates and stand-ins mean nothing.

python tools/models/make_profile.py MODEL [--stand-in linear|gated|none] [--rank R] [--attention] [--type q4_0]
    [--seed N] -o FILE
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

import pyskip
from pyskip.calibration.write import LayerFit, Provenance, Quantised, write_profile
from pyskip.models.profile import Point

KINDS = ("linear", "gated", "none")
TYPES = ("f32", "f16", "q8_0", "q4_0", "q4_1", "q4_k", "q3_k", "q2_k")
F32 = npt.NDArray[np.float32]


def random_layer(rng: np.random.Generator, n_embd: int, stand_in: str, rank: int, scale: float) -> LayerFit:
    def draw(*shape: int) -> F32:
        return np.asarray(scale * rng.standard_normal(shape) / np.sqrt(shape[-1]), np.float32)

    matrices: dict[str, F32 | Quantised] = {}
    if stand_in == "gated":
        matrices = {"skip_gate_up": draw(2 * rank, n_embd), "skip_down": draw(n_embd, rank)}
    elif stand_in == "linear" and rank < n_embd:
        matrices = {"skip_down": draw(rank, n_embd), "skip_up": draw(n_embd, rank)}
    elif stand_in == "linear":
        matrices = {"skip_up": draw(n_embd, n_embd)}
    gate = np.append(draw(n_embd) / scale, [0.3, -0.6]).astype(np.float32)
    return LayerFit(gate, np.float32(0.1) * draw(n_embd), matrices)


def make_profile(
    model: Path,
    output: Path,
    *,
    stand_in: str = "linear",
    rank: int | None = None,
    kind: str = "q4_0",
    seed: int = 0,
    scale: float = 0.3,
    activation: str = "silu",
    hidden_norm: bool = False,
    last_is_dense: bool = False,
    attention: bool = False,
) -> None:
    """A profile that the model accepts. The thresholds of its curve run from -2 to 2 over rates from 0.05 to 0.95.
    last_is_dense: the last layer has no gate, as in closed-form profiles. attention: with gates of attention, the same
    curve, and stand-ins of half rank."""
    info = pyskip.inspect(model)
    rng = np.random.default_rng(seed)
    layers: list[LayerFit | None] = [
        random_layer(rng, info.n_embd, stand_in, rank or info.n_embd, scale) for _ in range(info.n_layer)
    ]
    if last_is_dense:
        layers[-1] = None
    curve = [Point(rate, 4 * rate - 2, 1.0, 0.0, 0.0, 0.0, 1.0) for rate in np.linspace(0.05, 0.95, 10).tolist()]
    provenance = Provenance(
        model=info.name, fingerprint=info.fingerprint, stand_in=stand_in, method="random", text="none", text_sha256="",
        n_tokens=0, warmup=4, made_by=f"pyskip {pyskip.__version__}", activation=activation, hidden_norm=hidden_norm,
    )  # fmt: skip
    of_attention: list[LayerFit | None] = []
    if attention:
        of_attention = [random_layer(rng, info.n_embd, "linear", info.n_embd // 2, scale) for _ in layers[1:]] + [None]
    write_profile(output, layers, curve, 2, provenance, kind.upper(), attention=of_attention, attention_curve=curve)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--stand-in", choices=KINDS, default="linear")
    parser.add_argument("--rank", type=int, help="or width; default: full rank")
    parser.add_argument("--attention", action="store_true", help="gates of attention, too")
    parser.add_argument("--type", choices=TYPES, default="q4_0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    make_profile(
        args.model, args.output, stand_in=args.stand_in, rank=args.rank, kind=args.type, seed=args.seed,
        attention=args.attention,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
