"""A model that says what it was made to say: one layer of nothing, and an output that knows what follows what."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import gguf
import make_random
import numpy as np

__all__ = ["make_parrot"]

N_EMBD = 64
NEWLINE, END, FIRST = 3 + 0x0A, 2, 260  # its byte, </s>, the first word: make_random.add_tokenizer
SURE = 20.0


def make_parrot(path: Path, says: Sequence[str | int], n_ctx: int = 4096, endless: bool = False) -> Path:
    """After a line's end it says these pieces, a token each, none of them twice, and ends, or begins anew. A number is
    the token of that byte."""
    words = [piece for piece in says if isinstance(piece, str)]
    n_vocab = FIRST + len(words)
    said = [3 + piece if isinstance(piece, int) else FIRST + words.index(piece) for piece in says]
    chain = [NEWLINE, *said, said[0] if endless else END]
    embd = np.random.default_rng(0).standard_normal((n_vocab, N_EMBD)).astype(np.float32)
    embd /= np.linalg.norm(embd, axis=1, keepdims=True)
    output = np.zeros_like(embd)
    for token, following in pairwise(chain):
        output[following] += SURE * embd[token]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("parrot")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(N_EMBD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_feed_forward_length(N_EMBD)
    writer.add_vocab_size(n_vocab)
    make_random.add_tokenizer(writer, n_vocab, tuple(piece.replace(" ", "▁") for piece in words))
    writer.add_tensor("token_embd.weight", embd)
    writer.add_tensor("output.weight", output)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(N_EMBD, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((N_EMBD, N_EMBD), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
