"""A model's calibrated profile: where it lies, what it says of itself, and the threshold for a rate.

The native library reads the file and checks it whole; Python only asks for what it found.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..binding.library import LIB_DIR, ffi, lib
from ..errors import PolicyError, ProfileError
from ..policy import Profiled
from ..policy.static import BY

__all__ = ["Point", "Profile", "StaticStep", "find_profile", "path_beside"]

N_ERROR = 4096 + 512
BUNDLED = LIB_DIR.parent / "profiles"  # models/profiles of the source tree


@dataclass(frozen=True)
class Point:
    """One operating point, measured when the profile was made, on text that was not fitted."""

    rate: float  # skipped / all FFN blocks, or attention sublayers
    threshold: float  # a block is skipped if its gate's score is below it: about the log of the relative error
    ppl_ratio: float  # perplexity / dense perplexity
    ppl_ratio_se: float
    kld_mean: float  # nats per token, dense || skipped
    ffn_bytes_saved: float  # share of the FFN's bytes that are not read, what gates and stand-ins read taken off
    ideal_speedup: float  # bytes of all weights / bytes read per token; of attention before the cache is looked at


@dataclass(frozen=True)
class StaticStep:
    """A sublayer that is skipped for every token, and what it costs together with those before it."""

    il: int
    is_attention: bool
    kld_mean: float  # nats per token, dense || skipped
    ppl_ratio: float  # perplexity / dense perplexity


def _point(native: Any) -> Point:
    return Point(**{name: float(getattr(native, name)) for name in Point.__dataclass_fields__})


class Profile:
    """A profile file. Raises ProfileError, which names the field, if it is not sound."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        handle, error = ffi.new("struct pyskip_profile **"), ffi.new("char[]", N_ERROR)
        raw = os.fsencode(path)
        if b"\0" in raw:
            raise ProfileError("the profile path holds a NUL byte, expected the path of a .skip.gguf file")
        if lib.pyskip_profile_load(raw, handle, error, N_ERROR) != lib.PYSKIP_STATUS_OK:
            raise ProfileError(" ".join(ffi.string(error).decode("utf-8", "replace").split()))
        self.native: Any = ffi.gc(handle[0], lib.pyskip_profile_free)
        info = ffi.new("struct pyskip_profile_info *")
        lib.pyskip_profile_get(self.native, info)
        self.n_layer, self.n_embd, self.warmup = int(info.n_layer), int(info.n_embd), int(info.warmup)
        self.rank, self.n_tokens = int(info.rank), int(info.n_tokens)
        self.attention_rank = int(info.attention_rank)  # 0: no attention is ever skipped
        self.fingerprint, self.model, self.stand_in, self.method, self.text, self.text_sha256, self.made_by = (
            ffi.string(getattr(info, name)).decode("utf-8", "replace")
            for name in ("fingerprint", "model", "stand_in", "method", "text", "text_sha256", "made_by")
        )
        self.curve = self._points(lib.PYSKIP_SUBLAYER_FFN, info.n_points)
        self.attention_curve = self._points(lib.PYSKIP_SUBLAYER_ATTENTION, info.n_attention_points)
        self.recommended = self.curve[info.recommended]
        # for static:n=N, by what chose them: the sublayers that the model misses least, best first, with the stand-ins
        # in their place, measured on text that did not choose them; empty if none were looked for
        self.static_sets = {by: found for i, by in enumerate(BY) if (found := self._static(i))}
        # by layer: what is read if one block is skipped, and for each token; 0: it is never skipped
        self.stand_in_bytes, self.gate_bytes = self._bytes(lib.PYSKIP_SUBLAYER_FFN)
        self.attention_stand_in_bytes, self.attention_gate_bytes = self._bytes(lib.PYSKIP_SUBLAYER_ATTENTION)

    def _points(self, sublayer: int, n: int) -> tuple[Point, ...]:
        points = ffi.new("struct pyskip_profile_point[]", n)
        lib.pyskip_profile_get_points(self.native, sublayer, points)
        return tuple(_point(p) for p in points)

    def _static(self, by: int) -> tuple[StaticStep, ...]:
        n = lib.pyskip_profile_get_static(self.native, by, ffi.NULL, 0)
        steps = ffi.new("struct pyskip_static_step[]", n)
        lib.pyskip_profile_get_static(self.native, by, steps, n)
        return tuple(
            StaticStep(int(s.il), s.sublayer == lib.PYSKIP_SUBLAYER_ATTENTION, float(s.kld_mean), float(s.ppl_ratio))
            for s in steps
        )

    def _bytes(self, sublayer: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        stand_ins, gates = ffi.new("int64_t[]", self.n_layer), ffi.new("int64_t[]", self.n_layer)
        lib.pyskip_profile_get_bytes(self.native, sublayer, stand_ins, gates)
        return tuple(stand_ins), tuple(gates)

    def check_model(self, fingerprint: str, model: str) -> None:
        """Raises ProfileError if the profile is not this model's."""
        if self.fingerprint != fingerprint:
            raise ProfileError(
                f"{self.path}: pyskip.model_fingerprint: found {self.fingerprint} ({self.model or 'no name'}), "
                f"expected {fingerprint} of {model}: a profile serves the one file that it was made for; run "
                "pyskip calibrate"
            )

    def point(self, rate: float) -> Point:
        """The curve at a rate, straight between its points. Raises PolicyError beyond the last."""
        return self._point_at(lib.PYSKIP_SUBLAYER_FFN, rate)

    def _point_at(self, sublayer: int, rate: float) -> Point:
        point, error = ffi.new("struct pyskip_profile_point *"), ffi.new("char[]", N_ERROR)
        if lib.pyskip_profile_get_point_at(self.native, sublayer, rate, point, error, N_ERROR) != lib.PYSKIP_STATUS_OK:
            raise PolicyError(ffi.string(error).decode())
        return _point(point)

    def threshold(self, policy: Profiled) -> float:
        """What the gates compare with. Raises PolicyError for a rate beyond the curve."""
        if policy.error is not None:
            return math.log(policy.error) if policy.error > 0 else -math.inf
        return self.recommended.threshold if policy.rate is None else self.point(policy.rate).threshold

    def attention_threshold(self, rate: float) -> float:
        """What the gates of attention compare with. Raises PolicyError for a rate beyond their curve, and if there are
        none."""
        return self._point_at(lib.PYSKIP_SUBLAYER_ATTENTION, rate).threshold


def path_beside(model: str | os.PathLike[str]) -> Path:
    """model.gguf -> model.skip.gguf."""
    path = Path(model)
    return path.with_name((path.name[:-5] if path.suffix == ".gguf" else path.name) + ".skip.gguf")


def find_profile(model: str | os.PathLike[str], fingerprint: str) -> Profile | None:
    """The model's profile: the file beside it, else one of those that come with pyskip. None if there is none.

    Raises ProfileError if the file beside the model is damaged or another model's.
    """
    beside = path_beside(model)
    if beside.exists():
        profile = Profile(beside)
        profile.check_model(fingerprint, os.fspath(model))
        return profile
    for path in sorted(BUNDLED.glob("*.skip.gguf")):
        profile = Profile(path)
        if profile.fingerprint == fingerprint:
            return profile
    return None
