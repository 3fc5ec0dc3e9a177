"""Writes profiles, with gguf-py; the native library reads and checks them (native/src/profile.cpp)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from ..binding.quantise import quantise_rows
from ..errors import ProfileError
from ..models.profile import Point, StaticStep
from ..replace import replacing

__all__ = ["LayerFit", "Provenance", "Quantised", "add_static", "quantise", "write_profile"]

PROFILE_VERSION = 3
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quantised:
    """A matrix as it is written: of a large model, all layers' would not fit otherwise."""

    data: npt.NDArray[np.generic]
    kind: gguf.GGMLQuantizationType


@dataclass(frozen=True)
class LayerFit:
    """The gate and the stand-in of one layer's FFN, or of its attention.

    gate: [n_embd + 2], on the normed input, on log(|x|), constant.
    bias: [n_embd].
    matrices: by tensor name. linear: skip_up [n_embd, rank] and skip_down [rank, n_embd], or skip_up [n_embd, n_embd]
        alone. gated: skip_gate_up [2*width, n_embd] and skip_down [n_embd, width]. none: empty. Of attention linear.
    """

    gate: F32
    bias: F32
    matrices: dict[str, F32 | Quantised] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """What the profile belongs to and how it was made."""

    model: str
    fingerprint: str
    stand_in: str  # linear, gated or none
    method: str
    text: str
    text_sha256: str
    n_tokens: int
    warmup: int
    made_by: str
    activation: str = "silu"  # of gated stand-ins: silu, gelu or relu
    hidden_norm: bool = False  # whether their skip_down reads hidden values of root mean square 1


def quantise(matrix: F32, quantisation: str, importance: F32 | None = None) -> Quantised:
    """The matrix in the wanted type, in the next wider one if its rows are no whole blocks. importance: [columns], how
    much an error in each counts."""
    for name in dict.fromkeys((quantisation, *(("Q4_0",) if quantisation.endswith("_K") else ()), "Q8_0", "F16")):
        kind = gguf.GGMLQuantizationType[name]
        if matrix.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
            if name == "F16":
                return Quantised(matrix.astype(np.float16), kind)
            return Quantised(quantise_rows(matrix, kind, importance), kind)
    raise AssertionError("f16 has blocks of one")


def write_profile(
    path: str | os.PathLike[str],
    layers: Sequence[LayerFit | None],
    curve: Sequence[Point],
    recommended: int,
    provenance: Provenance,
    quantisation: str = "Q8_0",
    *,
    attention: Sequence[LayerFit | None] = (),
    attention_curve: Sequence[Point] = (),
) -> None:
    """Write beside the target first, then replace it: a full disk or an interruption leaves the old file as it was.

    layers, curve: of FFNs. attention: by layer; that of the last one is never skipped.

    Raises ProfileError if the target cannot be written.
    """
    with _writing(Path(path)) as name:
        writer = gguf.GGUFWriter(name, "pyskip")
        _add_about(writer, layers, recommended, provenance)
        _add_gates(writer, ("pyskip.curve.", "skip"), layers, curve, quantisation)
        if any(attention):
            _add_gates(writer, ("pyskip.attention.curve.", "attn_skip"), attention, attention_curve, quantisation)
        _finish(writer)


def add_static(
    profile: str | os.PathLike[str], target: str | os.PathLike[str], sets: Mapping[str, Sequence[StaticStep]]
) -> None:
    """The profile with other sets for the policy static, by what chose them, as `target`, which may be the same file.

    Raises ProfileError if the target cannot be written.
    """
    with _writing(Path(target)) as name:
        _copy_with_sets(profile, name, sets)


@contextmanager
def _writing(target: Path) -> Iterator[str]:
    try:
        with replacing(target) as name:
            yield name
    except OSError as error:
        raise ProfileError(
            f"{target}: cannot be written ({error.strerror}): make room or name another file with -o"
        ) from error


def _copy_with_sets(profile: str | os.PathLike[str], name: str, sets: Mapping[str, Sequence[StaticStep]]) -> None:
    """What is mapped of the profile is given back on return, as Windows wants of a file that is to be replaced."""
    reader, writer = gguf.GGUFReader(profile), gguf.GGUFWriter(name, "pyskip")
    left_out = ("GGUF.", "general.architecture", *(f"pyskip.static.{by}" for by in sets))
    for about in reader.fields.values():
        if not about.name.startswith(left_out):
            kind, *inner = about.types
            writer.add_key_value(about.name, about.contents(), kind, inner[-1] if inner else None)
    for by, steps in sets.items():
        key = f"pyskip.static.{by}"
        places = [2 * step.il + (not step.is_attention) for step in steps]
        writer.add_key_value(key, places, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32)
        writer.add_array(f"{key}.kld_mean", [step.kld_mean for step in steps])
        writer.add_array(f"{key}.ppl_ratio", [step.ppl_ratio for step in steps])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _finish(writer)


def _add_about(
    writer: gguf.GGUFWriter, layers: Sequence[LayerFit | None], recommended: int, provenance: Provenance
) -> None:
    n_embd = next(len(layer.bias) for layer in layers if layer is not None)
    for key, number in (
        ("profile_version", PROFILE_VERSION), ("block_count", len(layers)), ("embedding_length", n_embd),
        ("warmup", provenance.warmup), ("recommended", recommended), ("calibration.n_tokens", provenance.n_tokens),
        ("hidden_norm", int(provenance.hidden_norm)),
    ):  # fmt: skip
        writer.add_uint32(f"pyskip.{key}", number)
    for key, text in (
        ("model_fingerprint", provenance.fingerprint), ("model_name", provenance.model),
        ("stand_in", provenance.stand_in), ("activation", provenance.activation),
        ("calibration.method", provenance.method), ("calibration.text", provenance.text),
        ("calibration.text_sha256", provenance.text_sha256), ("calibration.version", provenance.made_by),
    ):  # fmt: skip
        writer.add_string(f"pyskip.{key}", text)


def _add_gates(
    writer: gguf.GGUFWriter,
    names: tuple[str, str],
    layers: Sequence[LayerFit | None],
    curve: Sequence[Point],
    quantisation: str,
) -> None:
    """names: what the curve's keys begin with, and in place of `skip` the tensors' names."""
    for member in Point.__dataclass_fields__:
        writer.add_array(f"{names[0]}{member}", [float(getattr(point, member)) for point in curve])
    for il, layer in enumerate(layers):
        if layer is None:
            continue
        skip = f"blk.{il}.{names[1]}"
        writer.add_tensor(f"{skip}_gate.weight", np.asarray(layer.gate, np.float32))
        writer.add_tensor(f"{skip}.bias", np.asarray(layer.bias, np.float32))
        for tensor, matrix in layer.matrices.items():
            stored = matrix if isinstance(matrix, Quantised) else quantise(matrix, quantisation)
            writer.add_tensor(f"{skip}{tensor.removeprefix('skip')}.weight", stored.data, raw_dtype=stored.kind)


def _finish(writer: gguf.GGUFWriter) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
