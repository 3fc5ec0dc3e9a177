"""A tiny seeded random projector for --mmproj: an encoder of images, of audio, or both. Needs gguf and numpy.

python tools/models/make_projector.py [--kind image|audio|both|qwen2vl] [--n-embd N] [--seed N] -o FILE

Images: 32 x 32, 16 patches, LLaVA's projector; or of any size, by Qwen2-VL's, for models with M-RoPE. Audio: 30 seconds
at a time, 30 tokens, Whisper's encoder and Ultravox's projector.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from pathlib import Path

import gguf
import numpy as np

KINDS = ("image", "audio", "both", "qwen2vl")
N_EMBD, N_FF, N_HEAD, N_LAYER = 32, 64, 2, 3
SIZE, PATCH = 32, 8
N_MEL, N_FRAMES, N_STACKED = 80, 1500, 50


class Maker:
    def __init__(self, path: Path, seed: int) -> None:
        self.writer = gguf.GGUFWriter(path, "clip")
        self.seed = seed

    def add(self, name: str, *shape: int) -> None:
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        self.writer.add_tensor(name, (rng.standard_normal(shape) * 0.3).astype(np.float32))

    def add_norm(self, name: str) -> None:
        self.writer.add_tensor(f"{name}.weight", np.ones(N_EMBD, np.float32))
        self.writer.add_tensor(f"{name}.bias", np.zeros(N_EMBD, np.float32))

    def add_encoder(self, kind: str, prefix: str, n_embd_model: int) -> None:
        for key, value in {
            "embedding_length": N_EMBD, "feed_forward_length": N_FF, "block_count": N_LAYER,
            "attention.head_count": N_HEAD, "projection_dim": n_embd_model,
        }.items():  # fmt: skip
            self.writer.add_uint32(f"clip.{kind}.{key}", value)
        self.writer.add_float32(f"clip.{kind}.attention.layer_norm_epsilon", 1e-5)
        for il in range(N_LAYER):
            blk = f"{prefix}.blk.{il}."
            for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
                self.add(f"{blk}{name}.weight", N_EMBD, N_EMBD)
                if kind == "vision" or name != "attn_k":
                    self.add(f"{blk}{name}.bias", N_EMBD)
            self.add_norm(blk + "ln1")
            self.add_norm(blk + "ln2")
            self.add(blk + "ffn_up.weight", N_FF, N_EMBD)
            self.add(blk + "ffn_up.bias", N_FF)
            self.add(blk + "ffn_down.weight", N_EMBD, N_FF)
            self.add(blk + "ffn_down.bias", N_EMBD)

    def add_vision(self, n_embd_model: int, by_size: bool) -> None:
        self.writer.add_bool("clip.has_vision_encoder", True)
        self.writer.add_string("clip.vision.projector_type", "qwen2vl_merger" if by_size else "mlp")
        self.writer.add_bool("clip.use_gelu", True)
        self.writer.add_uint32("clip.vision.image_size", SIZE)
        self.writer.add_uint32("clip.vision.patch_size", PATCH)
        self.writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
        self.writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
        self.add("v.patch_embd.weight", N_EMBD, 3, PATCH, PATCH)
        if by_size:
            self.add("v.patch_embd.weight.1", N_EMBD, 3, PATCH, PATCH)
            self.add_norm("v.post_ln")
        else:
            self.add("v.class_embd", N_EMBD)
            self.add("v.position_embd.weight", (SIZE // PATCH) ** 2 + 1, N_EMBD)
            self.add_norm("v.pre_ln")
        self.add_encoder("vision", "v", n_embd_model)
        self.add("mm.0.weight", n_embd_model, N_EMBD * (4 if by_size else 1))
        self.add("mm.0.bias", n_embd_model)
        self.add("mm.2.weight", n_embd_model, n_embd_model)
        self.add("mm.2.bias", n_embd_model)

    def add_audio(self, n_embd_model: int) -> None:
        self.writer.add_bool("clip.has_audio_encoder", True)
        self.writer.add_string("clip.audio.projector_type", "ultravox")
        self.writer.add_uint32("clip.audio.num_mel_bins", N_MEL)
        self.writer.add_uint32("clip.audio.projector.stack_factor", N_STACKED)
        for i, n_in in ((1, N_MEL), (2, N_EMBD)):
            self.add(f"a.conv1d.{i}.weight", N_EMBD, n_in, 3)
            self.add(f"a.conv1d.{i}.bias", N_EMBD, 1)
        self.add("a.position_embd.weight", N_FRAMES, N_EMBD)
        self.add_encoder("audio", "a", n_embd_model)
        self.add_norm("a.post_ln")
        self.writer.add_tensor("mm.a.norm_pre.weight", np.ones(N_EMBD * N_STACKED, np.float32))
        self.add("mm.a.mlp.1.weight", 2 * N_EMBD, N_EMBD * N_STACKED)
        self.writer.add_tensor("mm.a.norm_mid.weight", np.ones(N_EMBD, np.float32))
        self.add("mm.a.mlp.2.weight", n_embd_model, N_EMBD)


def make(path: Path, n_embd_model: int, *, kind: str = "image", seed: int = 0) -> Path:
    """Write a projector for models of this n_embd."""
    maker = Maker(path, seed)
    if kind != "audio":
        maker.add_vision(n_embd_model, by_size=kind == "qwen2vl")
    if kind in ("audio", "both"):
        maker.add_audio(n_embd_model)
    maker.writer.write_header_to_file()
    maker.writer.write_kv_data_to_file()
    maker.writer.write_tensors_to_file()
    maker.writer.close()
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=KINDS, default="image")
    parser.add_argument("--n-embd", type=int, default=64, help="of the model (default: that of make_random's tiny)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    try:
        make(args.output, args.n_embd, kind=args.kind, seed=args.seed)
    except OSError as error:
        print(f"make_projector: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
