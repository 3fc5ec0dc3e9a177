"""GGUF files of a byte-level vocabulary and no weights, for llama.cpp's pre-tokenizers."""

from __future__ import annotations

import tarfile
from pathlib import Path

import gguf

__all__ = ["TOKENS", "add_bytes", "make_vocabulary", "sdist_vocabularies"]


def byte_texts() -> list[str]:
    """What GPT-2 writes each byte as."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    texts = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [texts[byte] for byte in range(256)]


TOKENS = [*byte_texts(), "aa", "<|end|>"]


def add_bytes(writer: gguf.GGUFWriter, pre: str, n_vocab: int = len(TOKENS)) -> None:
    """The vocabulary alone, filled up with tokens of no meaning."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*TOKENS, *(f"<{i}>" for i in range(n_vocab - len(TOKENS)))])
    kinds = [gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * (n_vocab - 257)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a a"])
    writer.add_eos_token_id(257)
    writer.add_bos_token_id(257)


def sdist_vocabularies(folder: Path) -> list[Path]:
    """The vocabularies of models that upstream tests its tokenizers with, out of the pinned sdist."""
    root = Path(__file__).resolve().parents[2]
    (archive,) = (root / "build" / "sdist").glob("llama_cpp_python-*.tar.gz")
    found = []
    with tarfile.open(archive) as tar:
        for member in tar:
            name = Path(member.name).name
            if name.startswith("ggml-vocab-") and name.endswith(".gguf"):
                source = tar.extractfile(member)
                assert source is not None
                found.append(folder / name)
                found[-1].write_bytes(source.read())
    return found


def make_vocabulary(path: Path, pre: str) -> Path:
    """A token for each byte, one that joins two letters, and one that ends a text; cut up by the rules of `pre`."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    add_bytes(writer, pre)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
