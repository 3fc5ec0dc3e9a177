"""pyskip.h for one llama_context: the native functions on a context, except for those that gather."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from ..binding.library import ffi, lib
from ..binding.status import N_ERROR, raise_for
from ..errors import DecodeError
from ..models.profile import Profile
from ..policy import Policy
from ..stats import SkipStats, SkipTrace

__all__ = ["SkipContext"]

_Counts = tuple[int, ...]  # by layer


class SkipContext:
    """Skip functions of the llama_context that a ctypes pointer names. Does not own it."""

    def __init__(self, ctx: Any) -> None:
        self.native = ffi.cast("struct llama_context *", ctypes.cast(ctx, ctypes.c_void_p).value)
        self.n_layer: int = lib.pyskip_n_layer(self.native)

    def skippable(self) -> tuple[int, ...]:
        """The layers whose FFN can be skipped. Raises PolicyError if none can, with the reason."""
        flags = ffi.new("uint8_t[]", self.n_layer)
        error = ffi.new("char[]", N_ERROR)
        raise_for(lib.pyskip_skippable(self.native, flags, self.n_layer, error, N_ERROR), error)
        return tuple(il for il in range(self.n_layer) if flags[il])

    def skippable_attention(self) -> tuple[int, ...]:
        """The layers whose attention can be skipped, maybe none. Raises PolicyError if no FFN can, with the reason."""
        flags = ffi.new("uint8_t[]", self.n_layer)
        error = ffi.new("char[]", N_ERROR)
        raise_for(lib.pyskip_skippable_attention(self.native, flags, self.n_layer, error, N_ERROR), error)
        return tuple(il for il in range(self.n_layer) if flags[il])

    def check_generates(self) -> None:
        """Raises DecodeError for an encoder or a diffusion model, with the reason."""
        error = ffi.new("char[]", N_ERROR)
        raise_for(lib.pyskip_check_generates(self.native, error, N_ERROR), error, DecodeError)

    def set_policy(self, policy: Policy, profile: Profile | None = None, seq_id: int = -1) -> None:
        """Decide by `policy` from the next token on, in one sequence or in all (-1). Raises PolicyError if it
        does not fit the model, or beside another sequence's profile, and ProfileError if it needs one and has none."""
        fields = policy.fields(profile)
        fields["type"] = getattr(lib, fields["type"])
        for name in {"layers", "attention_layers"} & set(fields):
            fields[name] = ffi.new("int32_t[]", fields[name])
            fields[f"n_{name}"] = len(fields[name])
        if "decide" in fields:
            fields["decide"] = ffi.cast("pyskip_decide", fields["decide"])
            fields["decide_data"] = ffi.cast("void *", fields["decide_data"])
        native = ffi.new("struct pyskip_policy *", fields)
        error = ffi.new("char[]", N_ERROR)
        raise_for(lib.pyskip_seq_set_policy(self.native, seq_id, native, error, N_ERROR), error)

    def set_generated_from(self, seq_id: int, pos: int) -> None:
        """Positions >= pos of a sequence count as generated; pos < 0: none."""
        lib.pyskip_set_generated_from(self.native, seq_id, pos)

    def stats(self, policy: Policy, seq_id: int = -1) -> SkipStats:
        """The counters of a sequence or of all (-1), beside the policy that is in force."""
        n_tokens, evaluated, skipped, attention = self._counters(lib.PYSKIP_PHASE_GENERATED, seq_id)
        n_prompt, prompt_evaluated, prompt_skipped, prompt_attention = self._counters(lib.PYSKIP_PHASE_PROMPT, seq_id)
        return SkipStats(
            str(policy), n_tokens, evaluated, skipped, n_prompt, prompt_evaluated, prompt_skipped,
            *attention, *prompt_attention,
        )  # fmt: skip

    def _counters(self, phase: int, seq_id: int) -> tuple[int, _Counts, _Counts, tuple[_Counts, _Counts]]:
        """Tokens, FFNs evaluated and skipped, attention evaluated and skipped."""
        n_tokens = ffi.new("int64_t *")
        counts = [ffi.new("int64_t[]", self.n_layer) for _ in range(4)]
        lib.pyskip_seq_get_counters(self.native, seq_id, phase, n_tokens, counts[0], counts[1])
        lib.pyskip_seq_get_attention_counters(self.native, seq_id, phase, counts[2], counts[3])
        evaluated, skipped, *attention = map(tuple, counts)
        return n_tokens[0], evaluated, skipped, (attention[0], attention[1])

    def reset_counters(self, seq_id: int = -1) -> None:
        lib.pyskip_seq_reset_counters(self.native, seq_id)

    def take_back(self, pos: int, seq_id: int = 0) -> None:
        """Generated tokens at positions >= pos count no more: they were a draft's, and rejected."""
        lib.pyskip_seq_take_back(self.native, seq_id, pos)

    def set_trace(self, capacity: int) -> None:
        lib.pyskip_set_trace(self.native, capacity)

    def take_trace(self, n: int, seq_id: int = -1) -> SkipTrace:
        tokens = ffi.new("struct pyskip_trace_token[]", n)
        skipped, attention = np.zeros((2, n, self.n_layer), np.uint8)
        similarity, attention_similarity = np.empty((2, n, self.n_layer), np.float32)
        flags, more_flags = ffi.from_buffer("uint8_t[]", skipped), ffi.from_buffer("uint8_t[]", attention)
        values, more_values = ffi.from_buffer("float[]", similarity), ffi.from_buffer("float[]", attention_similarity)
        n = lib.pyskip_seq_take_trace(self.native, seq_id, n, tokens, flags, values, more_flags, more_values)
        places = np.frombuffer(ffi.buffer(tokens), np.int32).reshape(-1, 2)[:n]
        return SkipTrace(
            places[:, 0].copy(), places[:, 1].copy(), skipped[:n].astype(bool), similarity[:n].copy(),
            attention[:n].astype(bool), attention_similarity[:n].copy(),
        )  # fmt: skip

    def set_abort(self, abort: bool) -> None:
        lib.pyskip_set_abort(self.native, abort)

    def set_streaming(self, on: bool) -> None:
        """Read weights as they are needed: the model is larger than memory."""
        lib.pyskip_set_streaming(self.native, on)
