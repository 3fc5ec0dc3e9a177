"""Seeded random GGUF models of the LLaMA architecture, for speed and for tests. Needs gguf and numpy.

python tools/models/make_random.py --shape tiny|llama-1.1b|llama-7b [--type f32|q8_0|q4_0|q4_1|q4_k] [--seed N] -o FILE
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Shape:
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    n_ctx: int
    type: str  # by default


SHAPES = {
    "tiny": Shape(6, 64, 128, 4, 2, 320, 512, "f32"),
    "llama-1.1b": Shape(22, 2048, 5632, 32, 4, 32000, 2048, "q4_k"),
    "llama-7b": Shape(32, 4096, 11008, 32, 32, 32000, 2048, "q4_k"),
}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUANTS = {kind: gguf.GGMLQuantizationType[kind.upper()] for kind in ("f32", "q8_0", "q4_0", "q4_1", "q4_k")}
# Standard deviation of a uniform 4-bit value minus its middle, in the units of Q4_K's scales
Q4_K_SPREAD = 4.61


def tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """(name, [rows, columns] or [columns], standard deviation; 0 for ones)."""
    d, kv = shape.n_embd, shape.n_embd // shape.n_head * shape.n_head_kv
    yield "token_embd.weight", (shape.n_vocab, d), 1.0
    yield "output_norm.weight", (d,), 0.0
    yield "output.weight", (shape.n_vocab, d), d**-0.5
    for il in range(shape.n_layer):
        blk = f"blk.{il}."
        yield blk + "attn_norm.weight", (d,), 0.0
        yield blk + "attn_q.weight", (d, d), d**-0.5
        yield blk + "attn_k.weight", (kv, d), d**-0.5
        yield blk + "attn_v.weight", (kv, d), d**-0.5
        yield blk + "attn_output.weight", (d, d), 0.3 * d**-0.5
        yield blk + "ffn_norm.weight", (d,), 0.0
        yield blk + "ffn_gate.weight", (shape.n_ff, d), d**-0.5
        yield blk + "ffn_up.weight", (shape.n_ff, d), d**-0.5
        yield blk + "ffn_down.weight", (d, shape.n_ff), 0.6 * shape.n_ff**-0.5


def random_q4_k(rng: np.random.Generator, rows: int, columns: int, std: float) -> npt.NDArray[np.uint8]:
    """Random blocks of 256 weights, 144 bytes each: f16 d and dmin, 12 bytes of 6-bit scales and mins, 128 of nibbles.

    Every sub-block has the scale and the min 8: a weight is 8 d q - 8 dmin, q from 0 to 15, centred by dmin = 7.5 d.
    """
    blocks = rng.integers(0, 256, (rows, columns // 256, 144), dtype=np.uint8)
    d = np.float16(std / Q4_K_SPREAD / 8)
    blocks[..., 0:4] = np.frombuffer(np.array([d, np.float16(7.5 * float(d))], np.float16).tobytes(), np.uint8)
    blocks[..., 4:12] = 8  # scales and mins of sub-blocks 0 to 3
    blocks[..., 12:16] = 8 | 8 << 4  # both, low bits, of 4 to 7; their high bits are those of bytes 4 to 11, zero
    return blocks.reshape(rows, -1)


def stored_kind(dims: tuple[int, ...], std: float, kind: str) -> str:
    """Norms, and rows that do not divide into blocks, are f32."""
    whole = std == 0.0 or dims[-1] % (256 if kind == "q4_k" else 32)
    return "f32" if whole else kind


def random_tensor(name: str, dims: tuple[int, ...], std: float, kind: str, seed: int) -> npt.NDArray[Any]:
    """The tensor as GGUF stores it: f32 values or the bytes of blocks."""
    if std == 0.0:
        return np.ones(dims, np.float32)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    kind = stored_kind(dims, std, kind)
    if kind == "q4_k":
        return random_q4_k(rng, dims[0], dims[1], std)
    values = rng.standard_normal(dims, np.float32) * np.float32(std)
    return values if kind == "f32" else gguf.quantize(values, QUANTS[kind])


def add_tokenizer(writer: gguf.GGUFWriter, n_vocab: int, words: tuple[str, ...] = ()) -> None:
    """An SPM vocabulary: <unk>, <s>, </s>, 256 bytes, a space, the words, and others of no meaning to fill it up."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *bytes_, "▁", *words]
    pieces += [f"▁w{i}" for i in range(n_vocab - len(pieces))]
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, *[gguf.TokenType.BYTE] * 256]
    kinds += [gguf.TokenType.NORMAL] * (n_vocab - len(kinds))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(i) for i in range(n_vocab)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)


def make(path: Path, shape: Shape, *, kind: str | None = None, seed: int = 0, arch: str = "llama") -> None:
    """Write the model. Holds one tensor at a time in memory. arch: llama, or qwen2vl, whose positions are M-RoPE's."""
    kind = kind or shape.type
    writer = gguf.GGUFWriter(path, arch)
    if arch == "qwen2vl":
        half = shape.n_embd // shape.n_head // 2
        writer.add_rope_dimension_sections([half - half // 3 * 2, half // 3, half // 3, 0])
    writer.add_name(f"random {shape.n_layer}x{shape.n_embd} {kind} seed {seed}")
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_rope_dimension_count(shape.n_embd // shape.n_head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_feed_forward_length(shape.n_ff)
    add_tokenizer(writer, shape.n_vocab)
    for name, dims, std in tensors(shape):
        tensor_kind = stored_kind(dims, std, kind)
        whole = tensor_kind == "f32"
        stored = dims if whole else gguf.quant_shape_to_byte_shape(dims, QUANTS[tensor_kind])
        n_bytes = int(np.prod(stored)) * (4 if whole else 1)
        dtype = np.dtype(np.float32 if whole else np.uint8)
        writer.add_tensor_info(name, stored, dtype, n_bytes, None if whole else QUANTS[tensor_kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dims, std in tensors(shape):
        writer.write_tensor_data(random_tensor(name, dims, std, kind, seed))
    writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--type", choices=QUANTS, help="of the matrices (default: f32 for tiny, q4_k for the others)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    try:
        make(args.output, SHAPES[args.shape], kind=args.type, seed=args.seed)
    except OSError as error:
        print(f"make_random: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
