"""A tiny random vision encoder with LLaVA's projector, as a file for --mmproj: 16 patches of an image of 32 x 32."""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

import gguf
import numpy as np

__all__ = ["image_url", "make_projector", "png"]

N_EMBD, N_FF, N_HEAD, SIZE, PATCH = 32, 64, 2, 32, 8


def make_projector(path: Path, n_embd_model: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    for key, value in {
        "image_size": SIZE, "patch_size": PATCH, "embedding_length": N_EMBD, "feed_forward_length": N_FF,
        "block_count": 3, "attention.head_count": N_HEAD, "projection_dim": n_embd_model,
    }.items():  # fmt: skip
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, (rng.standard_normal(shape) * 0.3).astype(np.float32))

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(N_EMBD, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(N_EMBD, np.float32))

    add("v.class_embd", N_EMBD)
    add("v.patch_embd.weight", N_EMBD, 3, PATCH, PATCH)
    add("v.position_embd.weight", (SIZE // PATCH) ** 2 + 1, N_EMBD)
    add_norm("v.pre_ln")
    for il in range(3):
        blk = f"v.blk.{il}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            add(f"{blk}{name}.weight", N_EMBD, N_EMBD)
            add(f"{blk}{name}.bias", N_EMBD)
        add_norm(blk + "ln1")
        add_norm(blk + "ln2")
        add(blk + "ffn_up.weight", N_FF, N_EMBD)
        add(blk + "ffn_up.bias", N_FF)
        add(blk + "ffn_down.weight", N_EMBD, N_FF)
        add(blk + "ffn_down.bias", N_EMBD)
    add("mm.0.weight", n_embd_model, N_EMBD)
    add("mm.0.bias", n_embd_model)
    add("mm.2.weight", n_embd_model, n_embd_model)
    add("mm.2.bias", n_embd_model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def png(seed: int) -> bytes:
    """An image of noise."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE * 3), dtype=np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def image_url(seed: int) -> str:
    return "data:image/png;base64," + base64.b64encode(png(seed)).decode()
