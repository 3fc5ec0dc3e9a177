"""Tiny random models that are no transformers with a KV cache: recurrent (Mamba), hybrid (Jamba), embedding (BERT)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import gguf
import make_random
import numpy as np
import numpy.typing as npt

__all__ = ["KINDS", "make_kind"]

KINDS = {"recurrent": "mamba", "hybrid": "jamba", "embedding": "bert"}
N_LAYER, N_EMBD, N_FF, N_VOCAB, N_CTX = 4, 64, 128, 320, 256
N_INNER, N_CONV, N_STATE, DT_RANK = 2 * N_EMBD, 4, 16, 4
N_HEAD, N_HEAD_KV = 4, 2
ATTENTION_EVERY = 2  # of a hybrid's layers

Tensors = Iterator[tuple[str, tuple[int, ...]]]  # [columns] or [rows, columns], as numpy has them


def _ssm(b: str, has_norms: bool) -> Tensors:
    yield b + "ssm_in.weight", (2 * N_INNER, N_EMBD)
    yield b + "ssm_conv1d.weight", (N_INNER, N_CONV)
    yield b + "ssm_conv1d.bias", (N_INNER,)
    yield b + "ssm_x.weight", (DT_RANK + 2 * N_STATE, N_INNER)
    yield b + "ssm_dt.weight", (N_INNER, DT_RANK)
    yield b + "ssm_dt.bias", (N_INNER,)
    yield b + "ssm_a", (N_INNER, N_STATE)
    yield b + "ssm_d", (N_INNER,)
    yield b + "ssm_out.weight", (N_EMBD, N_INNER)
    if has_norms:
        yield from ((b + f"ssm_{of}_norm.weight", (n,)) for of, n in (("dt", DT_RANK), ("b", N_STATE), ("c", N_STATE)))


def _attention(b: str, n_head_kv: int) -> Tensors:
    n_kv = N_EMBD // N_HEAD * n_head_kv
    yield b + "attn_q.weight", (N_EMBD, N_EMBD)
    yield from ((b + f"attn_{of}.weight", (n_kv, N_EMBD)) for of in "kv")
    yield b + "attn_output.weight", (N_EMBD, N_EMBD)


def _is_attention(kind: str, il: int) -> bool:
    return kind == "hybrid" and il % ATTENTION_EVERY == 1


def _tensors(kind: str) -> Tensors:
    yield "token_embd.weight", (N_VOCAB, N_EMBD)
    if kind == "embedding":
        yield from (("token_types.weight", (2, N_EMBD)), ("position_embd.weight", (N_CTX, N_EMBD)))
        yield from _norm("token_embd_norm")
    else:
        yield from (("output_norm.weight", (N_EMBD,)), ("output.weight", (N_VOCAB, N_EMBD)))
    for il in range(N_LAYER):
        b = f"blk.{il}."
        if kind == "embedding":
            yield from _attention(b, N_HEAD)
            yield from _norm(b + "attn_output_norm")
            yield from _norm(b + "layer_output_norm")
        else:
            yield b + "attn_norm.weight", (N_EMBD,)
            yield from _attention(b, N_HEAD_KV) if _is_attention(kind, il) else _ssm(b, has_norms=kind == "hybrid")
        if kind == "hybrid":
            yield from ((b + "ffn_norm.weight", (N_EMBD,)), (b + "ffn_gate.weight", (N_FF, N_EMBD)))
        if kind != "recurrent":
            yield from ((b + "ffn_up.weight", (N_FF, N_EMBD)), (b + "ffn_down.weight", (N_EMBD, N_FF)))


def _norm(name: str) -> Tensors:
    yield from ((f"{name}.weight", (N_EMBD,)), (f"{name}.bias", (N_EMBD,)))


def _values(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
    if name.endswith("ssm_a"):  # decays
        values = -np.exp(0.5 * drawn)
    elif name.endswith(".bias"):
        values = 0.1 * drawn
    elif len(shape) == 1:
        values = 1 + 0.3 * drawn
    else:
        values = drawn if name.startswith(("token_", "position_")) else drawn / np.sqrt(shape[1])
    return np.asarray(values, np.float32)


def make_kind(path: Path, kind: str) -> Path:
    """Write the model of a kind of KINDS."""
    writer = gguf.GGUFWriter(path, KINDS[kind])
    writer.add_name(f"tiny random {kind}")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_vocab_size(N_VOCAB)
    writer.add_feed_forward_length(0 if kind == "recurrent" else N_FF)
    writer.add_head_count(0 if kind == "recurrent" else N_HEAD)
    if kind == "embedding":
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        writer.add_token_type_count(2)
        writer.add_layer_norm_eps(1e-6)
    else:
        writer.add_head_count_kv([N_HEAD_KV * _is_attention(kind, il) for il in range(N_LAYER)])
        writer.add_ssm_conv_kernel(N_CONV)
        writer.add_ssm_inner_size(N_INNER)
        writer.add_ssm_state_size(N_STATE)
        writer.add_ssm_time_step_rank(DT_RANK)
        writer.add_layer_norm_rms_eps(1e-6)
    make_random.add_tokenizer(writer, N_VOCAB)
    for name, shape in _tensors(kind):
        writer.add_tensor(name, _values(name, shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
