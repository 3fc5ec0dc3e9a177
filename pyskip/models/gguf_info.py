"""What a GGUF file says of its model, without loading it; and whether it can be loaded at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

from ..binding.library import ffi, lib
from ..errors import ModelLoadError
from ..system import available_memory
from .names import resolve

__all__ = ["GGUFInfo", "check_context", "ffn_bytes", "inspect"]

N_ERROR = 4096 + 512


@dataclass(frozen=True)
class GGUFInfo:
    """Read by upstream's own GGUF reader. Sizes in bytes as stored; 0 if the file does not say."""

    architecture: str
    name: str
    n_tensors: int
    n_params: int
    bytes: int
    ffn_bytes: int
    read_bytes: int  # by decoding a token: of experts those that are used, of embeddings one row
    read_ffn_bytes: int
    n_layer: int
    n_ctx_train: int
    n_positions: int  # learned ones, at which a context ends; 0 if positions are computed
    n_embd: int
    n_ff: int
    kv_bytes_per_token: int
    has_chat_template: bool
    fingerprint: str

    @property
    def default_n_ctx(self) -> int:
        """Tokens of context if none are asked for."""
        return min(4096, self.n_ctx_train or 4096)

    @property
    def ffn_share(self) -> float:
        """FFN weights / all weights, in bytes."""
        return self.ffn_bytes / self.bytes if self.bytes else 0.0

    def ideal_speedup(self, ffn_bytes_saved: float) -> float:
        """Of decoding, if all its time is reading weights and that share of the FFN's is not read."""
        left = self.read_bytes - ffn_bytes_saved * self.read_ffn_bytes
        return self.read_bytes / left if left > 0 else 1.0


def inspect(path: str | os.PathLike[str], *, weights: bool = True) -> GGUFInfo:
    """Of a path, or of anything else that names a model (models.resolve).

    Raises ModelLoadError if the file is missing, unreadable, no GGUF or cut off; `weights`: or holds none."""
    path = resolve(path) if isinstance(path, str) else path
    if b"\0" in os.fsencode(path):
        raise ModelLoadError("the model path holds a NUL byte, expected the path of a GGUF file")
    info = _read(os.fsencode(path), _identity(path))
    if weights and info.n_tensors == 0:
        raise ModelLoadError(f"{os.fspath(path)}: holds a vocabulary and no weights, expected a whole model")
    return info


def _identity(path: str | os.PathLike[str]) -> tuple[int, int, int, int] | None:
    try:
        stat = os.stat(path)
    except (OSError, ValueError):  # _read() says what is wrong
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=1)  # who loads a model looks at it first, and so does what loads it; more would hide lost pieces
def _read(path: bytes, _identity: tuple[int, int, int, int] | None) -> GGUFInfo:
    native = ffi.new("struct pyskip_gguf_info *")
    error = ffi.new("char[]", N_ERROR)
    if lib.pyskip_gguf_inspect(path, native, error, N_ERROR) != lib.PYSKIP_STATUS_OK:
        raise ModelLoadError(" ".join(ffi.string(error).decode("utf-8", "replace").split()))
    texts = {
        name: ffi.string(getattr(native, name)).decode("utf-8", "replace")
        for name in ("architecture", "name", "fingerprint")
    }
    numbers = {
        name: int(getattr(native, name))
        for name in GGUFInfo.__dataclass_fields__
        if name not in (*texts, "has_chat_template")
    }
    return GGUFInfo(**texts, **numbers, has_chat_template=bool(native.has_chat_template))  # type: ignore[arg-type]


def ffn_bytes(path: str | os.PathLike[str], n_layer: int) -> tuple[int, ...]:
    """Bytes of each layer's FFN weights that a token reads; of experts, those that are used. Raises ModelLoadError."""
    native, error = ffi.new("int64_t[]", n_layer), ffi.new("char[]", N_ERROR)
    if lib.pyskip_gguf_ffn_bytes(os.fsencode(path), native, n_layer, error, N_ERROR) != lib.PYSKIP_STATUS_OK:
        raise ModelLoadError(" ".join(ffi.string(error).decode("utf-8", "replace").split()))
    return tuple(native)


def check_context(info: GGUFInfo, n_ctx: int) -> None:
    """Raises ModelLoadError if a KV cache of n_ctx tokens cannot fit into memory (f16; before any is allocated)."""
    if n_ctx < 0 or n_ctx > 2**31 - 1:
        raise ModelLoadError(f"n_ctx is {n_ctx}, expected 1 to {info.n_ctx_train or 2**31 - 1} tokens")
    needed, free = (n_ctx or info.n_ctx_train) * info.kv_bytes_per_token, available_memory()
    if free is not None and needed > free:
        fits = max(1, free // max(1, info.kv_bytes_per_token))
        raise ModelLoadError(
            f"a context of {n_ctx or info.n_ctx_train} tokens needs {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free: use n_ctx (-c) of at most {fits}"
        )
