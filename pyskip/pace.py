"""A pace to keep: moves a profile's operating point so that decoding holds a rate. Used by pyskip.Llama (target_tps=).

Knows no model: it is told when a decode begins and ends, by a clock that is given, and says at which skip rate the next
one should run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from .errors import PolicyError

__all__ = ["Pace", "PaceStats"]

INTERVAL = 0.25  # seconds between two looks at the rate, at least
N_TOKENS = 2  # in them, at least: one late token says little
BAND = 0.04  # how far off the target the time of a token may lie before anything moves
GAIN = 3.0  # skip rate per second and relative error: skipping everything seldom saves more than half of the time
MOST = 0.3  # of the relative error that counts: a stall is not the machine's pace
NEAR = 0.9  # of the target: what counts as held


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
    """The controller. `rate` is the skip rate in force, from `floor` to `max_skip`.

    It integrates the relative error of the time that a token takes. Hysteresis: nothing moves before two intervals in a
    row lie more than BAND off to the same side, and what moves goes on until they lie on different sides. The smaller
    of the two errors counts.

    Raises PolicyError for a target that is no rate and for bounds that leave nothing to move.
    """

    def __init__(
        self, target_tps: float, max_skip: float, *, floor: float = 0.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if isinstance(target_tps, bool) or not isinstance(target_tps, (int, float)) or not 0 < target_tps < math.inf:
            raise PolicyError(f"target_tps is {target_tps!r}, expected tokens/s above 0")
        if not 0 <= floor < max_skip <= 1:
            raise PolicyError(
                f"max_skip is {max_skip:g}, expected a rate above {floor:g}, which skip asks for at least, up to 1"
            )
        self.target_tps, self.max_skip, self.floor = target_tps, max_skip, floor
        self.rate = floor
        self._clock = clock
        self._began = 0.0
        self._last_error = 0.0
        self._is_moving = self._is_short = False
        self._tps = 0.0
        self.reset_stats()
        self.restart()

    def reset_stats(self) -> None:
        """Count from zero."""
        self._seconds = self._held = self._skip_seconds = 0.0

    def restart(self) -> None:
        """A new answer: an interval that it cut short does not count."""
        self._interval, self._n_tokens = 0.0, 0

    def begin(self) -> None:
        """A decode begins that the operating point has a say in."""
        self._began = self._clock()

    def end(self) -> bool:
        """Its token is there. True if `rate` has changed."""
        self._interval += self._clock() - self._began
        self._n_tokens += 1
        if self._interval < INTERVAL or self._n_tokens < N_TOKENS:
            return False
        old = self.rate
        self._count()
        self._move(self._interval * self.target_tps / self._n_tokens - 1)
        self.restart()
        return self.rate != old

    def _count(self) -> None:
        self._tps = self._n_tokens / self._interval
        self._seconds += self._interval
        self._skip_seconds += self.rate * self._interval
        self._held += self._interval if self._tps >= NEAR * self.target_tps else 0.0

    def _move(self, error: float) -> None:
        """By how much a token took too long, as a share of its time."""
        agreed = min(error, self._last_error, key=abs) if error * self._last_error > 0 else 0.0
        self._last_error = error
        self._is_moving = abs(agreed) > (0.0 if self._is_moving else BAND)
        if self._is_moving:
            step = GAIN * max(-MOST, min(agreed, MOST)) * min(self._interval, 2 * INTERVAL)
            self.rate = max(self.floor, min(round(self.rate + step, 3), self.max_skip))
        self._is_short = self.rate == self.max_skip and agreed > BAND

    def stats(self) -> PaceStats:
        mean = self._skip_seconds / self._seconds if self._seconds else self.rate
        held = self._held / self._seconds if self._seconds else 0.0
        return PaceStats(
            self.target_tps, self._tps, self.rate, mean, self.floor, self.max_skip, held, self._seconds, self._is_short
        )
