"""A copy of a GGUF model whose blk.L.ffn_down* or blk.L.attn_output* are zero:

python tools/models/zero_layers.py IN OUT [--layers 5,14,25] [--attention 12,13]

Those of experts and of shared experts, and biases, are zero too; of an encoder-decoder those of the decoder, of RWKV
blk.L.channel_mix_value. Zero bytes decode to zero in every type of GGML that has blocks of scales. Needs gguf.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

import gguf

FFN = ("blk.{}.ffn_down.", "blk.{}.ffn_down_", "dec.blk.{}.ffn_down.", "blk.{}.channel_mix_value.")
ATTENTION = ("blk.{}.attn_output.", "dec.blk.{}.attn_o.")


def zero_layers(source: Path, target: Path, layers: Collection[int], attention: Collection[int] = ()) -> None:
    """layers: whose FFNs shall give zero; attention: whose attention shall. Raises ValueError for a layer without."""
    tensors = gguf.GGUFReader(source).tensors
    places = []
    for stems, chosen in ((FFN, layers), (ATTENTION, attention)):
        for il in chosen:
            own = [t for t in tensors if t.name.startswith(tuple(stem.format(il) for stem in stems))]
            if not own:
                raise ValueError(f"{source} has no tensor {stems[0].format(il)}weight: name layers that have one")
            places += [(int(t.data_offset), int(t.n_bytes)) for t in own]
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        for offset, n_bytes in places:
            file.seek(offset)
            file.write(bytes(n_bytes))


def numbers(text: str) -> list[int]:
    return [int(il) for il in text.split(",")] if text else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--layers", default="", help="for instance 5,14,25")
    parser.add_argument("--attention", default="", help="for instance 12,13")
    args = parser.parse_args()
    try:
        zero_layers(args.source, args.target, numbers(args.layers), numbers(args.attention))
    except (ValueError, OSError) as error:
        print(f"zero_layers: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
