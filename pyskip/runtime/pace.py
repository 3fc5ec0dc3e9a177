"""A pace to keep: moves a profile's operating point so that decoding holds a rate. Used by pyskip.Llama (target_tps=).

The controller is native (native/src/pace.cpp), the one that the server has. What is here has the clock: it is told when
a decode begins and ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..binding.library import ffi, lib
from ..binding.status import N_ERROR, raise_for
from ..errors import PolicyError

__all__ = ["Pace", "PaceStats"]


@dataclass(frozen=True)
class PaceStats:
    """What a pace did since the statistics were reset. Skip rates are nominal: the profile's operating points."""

    target_tps: float
    tps: float  # measured last, tokens/s; 0 if nothing was measured
    rate: float  # now
    mean_rate: float  # over the time that was measured
    floor: float
    max_skip: float
    held: float  # share of the time measured in which the rate was at least 0.9 of the target
    seconds: float  # measured: without prompts, warm-up, and what the caller does between tokens
    is_short: bool  # max_skip is not enough, for now

    def __str__(self) -> str:
        if not self.seconds:
            return f"pace {self.target_tps:g} tokens/s: nothing measured yet"
        line = (
            f"pace {self.target_tps:g} tokens/s: held {self.held:.0%} of the time, now {self.tps:.1f}; "
            f"operating point {self.mean_rate:.2f} on average, now {self.rate:.2f}, at most {self.max_skip:.2f}"
        )
        return line + (", which is not enough" if self.is_short else "")


class Pace:
    """Which skip rate, from `floor` to `max_skip`, decodes `target_tps` tokens/s.

    clock: seconds, by which the time between begin() and end() is taken.

    Raises PolicyError for a target that is no rate and for bounds that leave nothing to move.
    """

    def __init__(
        self, target_tps: float, max_skip: float, *, floor: float = 0.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if isinstance(target_tps, bool) or not isinstance(target_tps, (int, float)):
            raise PolicyError(f"target_tps is {target_tps!r}, expected tokens/s above 0")
        handle, error = ffi.new("struct pyskip_pace **"), ffi.new("char[]", N_ERROR)
        raise_for(lib.pyskip_pace_new(target_tps, max_skip, floor, handle, error, N_ERROR), error)
        self._native = ffi.gc(handle[0], lib.pyskip_pace_free)
        self._clock = clock
        self._began = 0.0
        self.target_tps, self.max_skip, self.floor = target_tps, max_skip, floor

    @property
    def rate(self) -> float:
        """The skip rate in force."""
        return self.stats().rate

    def reset_stats(self) -> None:
        """Count from zero."""
        lib.pyskip_pace_reset_stats(self._native)

    def restart(self) -> None:
        """A new answer: an interval that it cut short does not count."""
        lib.pyskip_pace_restart(self._native)

    def begin(self) -> None:
        """A decode begins that the operating point has a say in."""
        self._began = self._clock()

    def end(self) -> bool:
        """Its token is there. True if `rate` has changed."""
        return bool(lib.pyskip_pace_add(self._native, self._clock() - self._began, 1))

    def stats(self) -> PaceStats:
        stats = ffi.new("struct pyskip_pace_stats *")
        lib.pyskip_pace_get(self._native, stats)
        return PaceStats(**{name: getattr(stats, name) for name in PaceStats.__dataclass_fields__})
