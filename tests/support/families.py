"""Tiny random models of the architectures that --distill trains, as GGUF files of f32 that both transformers and
llama.cpp read."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import make_random
import numpy as np
import numpy.typing as npt

__all__ = ["FAMILIES", "Family", "make_family"]

N_LAYER, N_EMBD, N_FF, N_VOCAB, N_CTX = 7, 64, 160, 320, 512


@dataclass(frozen=True)
class Family:
    arch: str
    head_size: int = 16  # transformers takes 128 for Qwen3, and for Gemma the attention's scale of 256, unasked
    n_head: int = 4
    n_head_kv: int = 2
    has_bias: bool = False  # of q, k and v
    has_head_norms: bool = False
    has_post_norms: bool = False
    is_fused: bool = False  # q, k, v in one matrix; gate and up in one


FAMILIES = {
    "llama": Family("llama"),
    "qwen2": Family("qwen2", has_bias=True),
    "qwen3": Family("qwen3", head_size=128, n_head=2, n_head_kv=1, has_head_norms=True),
    "gemma2": Family("gemma2", head_size=256, n_head=2, n_head_kv=1, has_post_norms=True),
    "gemma3": Family("gemma3", head_size=256, n_head=2, n_head_kv=1, has_head_norms=True, has_post_norms=True),
    "phi3": Family("phi3", n_head_kv=4, is_fused=True),
}


def _tensors(family: Family) -> Iterator[tuple[str, tuple[int, ...]]]:
    d, q, kv = N_EMBD, family.n_head * family.head_size, family.n_head_kv * family.head_size
    yield "token_embd", (N_VOCAB, d)
    yield "output_norm", (d,)
    if "gemma" not in family.arch:  # theirs is that of the embedding
        yield "output", (N_VOCAB, d)
    for il in range(N_LAYER):
        b = f"blk.{il}."
        yield b + "attn_norm", (d,)
        if family.is_fused:
            yield b + "attn_qkv", (q + 2 * kv, d)
            yield b + "ffn_up", (2 * N_FF, d)
        else:
            yield from ((b + "attn_q", (q, d)), (b + "attn_k", (kv, d)), (b + "attn_v", (kv, d)))
            yield from ((b + "ffn_gate", (N_FF, d)), (b + "ffn_up", (N_FF, d)))
        yield b + "attn_output", (d, q)
        yield b + "ffn_norm", (d,)
        yield b + "ffn_down", (d, N_FF)
        if family.has_head_norms:
            yield from ((b + "attn_q_norm", (family.head_size,)), (b + "attn_k_norm", (family.head_size,)))
        if family.has_post_norms:
            yield from ((b + "post_attention_norm", (d,)), (b + "post_ffw_norm", (d,)))


def _values(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = rng.standard_normal(shape, np.float32)
    if len(shape) == 1:  # a norm's gains
        return np.asarray(1 + 0.3 * drawn, np.float32)
    scaled: npt.NDArray[np.float32] = (
        drawn if name == "token_embd" else np.asarray(drawn / np.sqrt(shape[1]), np.float32)
    )
    return scaled


def make_family(path: Path, name: str) -> Path:
    family = FAMILIES[name]
    writer = gguf.GGUFWriter(path, family.arch)
    writer.add_name(f"tiny random {name}")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(family.n_head)
    writer.add_head_count_kv(family.n_head_kv)
    writer.add_key_length(family.head_size)
    writer.add_value_length(family.head_size)
    writer.add_rope_dimension_count(family.head_size)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(N_VOCAB)
    if "gemma" in family.arch:
        writer.add_sliding_window(512)
    if family.arch == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    if family.arch == "phi3":
        writer.add_rope_scaling_orig_ctx_len(N_CTX)
        writer.add_sliding_window(N_CTX)
    make_random.add_tokenizer(writer, N_VOCAB, ("<|endoftext|>",))  # Phi-3 without it is refused
    writer.add_pad_token_id(0)
    for tensor, shape in _tensors(family):
        writer.add_tensor(f"{tensor}.weight", _values(tensor, shape))
        if family.has_bias and tensor.endswith(("attn_q", "attn_k", "attn_v")):
            writer.add_tensor(f"{tensor}.bias", np.float32(0.1) * _values(f"{tensor}.bias", (shape[0], 1))[:, 0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
