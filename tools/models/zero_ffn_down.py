"""A copy of a GGUF model whose blk.L.ffn_down* are zero: python tools/models/zero_ffn_down.py IN OUT --layers 5,14,25

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


def zero_ffn_down(source: Path, target: Path, layers: Collection[int]) -> None:
    """Raises ValueError for a layer without blk.L.ffn_down*."""
    tensors = gguf.GGUFReader(source).tensors
    places = []
    for il in layers:
        stems = (f"blk.{il}.ffn_down", f"dec.blk.{il}.ffn_down", f"blk.{il}.channel_mix_value")
        own = [t for t in tensors if t.name.startswith(tuple(stem + end for stem in stems for end in "._"))]
        if not own:
            raise ValueError(f"{source} has no tensor blk.{il}.ffn_down.weight: name layers that have one")
        places += [(int(t.data_offset), int(t.n_bytes)) for t in own]
    shutil.copyfile(source, target)
    with target.open("r+b") as file:
        for offset, n_bytes in places:
            file.seek(offset)
            file.write(bytes(n_bytes))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--layers", required=True, help="for instance 5,14,25")
    args = parser.parse_args()
    try:
        zero_ffn_down(args.source, args.target, [int(il) for il in args.layers.split(",")])
    except (ValueError, OSError) as error:
        print(f"zero_ffn_down: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
