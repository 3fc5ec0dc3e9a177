"""What decides in a `pyskip.Llama`, and what was decided: policy, pace, profile, counters, trace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ..binding.kernels import kernels_chosen
from ..errors import ModelLoadError, PolicyError, ProfileError
from ..models.profile import Profile, find_profile, path_beside
from ..policy import Policy, parse_skip
from ..policy.base import Paced
from ..stats import SkipStats, SkipTrace
from .engine import Engine
from .guard import Guard
from .pace import Pace

__all__ = ["Skipping"]


class Skipping:
    """The part of pyskip.Llama that leaves llama_cpp.Llama as it is. Llama.__init__ sets what it needs."""

    _guard: Guard | None
    model_path: str
    n_tokens: int  # in the KV cache
    _engine: Engine | None  # None: not loaded, or closed
    _kernels: str
    _policy: Policy
    _profile: Profile | None  # once it was read
    _profile_path: str | os.PathLike[str] | None  # the caller's; None: wherever it is found
    _pace: Pace | None
    _pace_from: Paced  # the policy whose operating point a pace moves
    n_drafted: int
    n_accepted: int

    @property
    def engine(self) -> Engine:
        """The loaded model as pyskip's own modules use it; no part of the API. Raises ModelLoadError once closed."""
        if self._engine is None:
            raise ModelLoadError("the model was closed: load it again")
        return self._engine

    # What decides

    @property
    def skip(self) -> Policy:
        """The policy in force. Takes a specification or a policy, which ends a pace; raises PolicyError, and keeps the
        old one, if it is malformed or does not fit the model."""
        return self._policy

    @skip.setter
    def skip(self, value: str | float | Policy) -> None:
        self._set_policy(parse_skip(value))
        self._pace = None

    def _decide_by(self, policy: Policy, target_tps: float | None, max_skip: float | None) -> None:
        """For Llama.__init__, where an assignment to skip would stand in the API reference in place of the property."""
        self.skip = policy
        self.keep_pace(target_tps, max_skip)

    def _set_policy(self, policy: Policy) -> None:
        with self._alone():
            profile = self._needed_profile(f"skip {str(policy)!r}") if policy.needs_profile else None
            self.engine.skip.set_policy(policy, profile)
            self._policy = policy

    def _alone(self) -> AbstractContextManager[None]:
        """While a decode would read what is changed. Raises DecodeError if another thread decodes."""
        return nullcontext() if self._guard is None else self._guard.decoding()

    @contextmanager
    def deciding_by(self, policy: Policy) -> Iterator[None]:
        """While open, this policy decides and no pace is kept; then those before it again."""
        own, pace = self._policy, self._pace
        self.skip = policy
        try:
            yield
        finally:
            self._set_policy(own)
            self._pace = pace

    def keep_pace(self, target_tps: float | None, max_skip: float | None = None) -> None:
        """Skip as much as it takes to decode target_tps tokens/s, and no more; None ends it where it stands.

        The operating point of the model's profile moves from the rate that `skip` asks for (`off`: 0) to max_skip, by
        default the profile's recommended rate. Raises PolicyError for a `skip` without a rate and a max_skip beyond
        the profile's curve or not above the rate, ProfileError if the model has no profile.
        """
        if target_tps is None:
            if max_skip is not None:
                raise PolicyError(f"max_skip is {max_skip:g} and there is no target_tps to keep: give one")
            self._pace = None
            return
        start = self._policy.paced_from() if self._pace is None else self._pace_from
        if start is None or start.rate is None:
            raise PolicyError(f"skip is {str(self._policy)!r}, expected off or a rate to keep a pace from, such as 0.1")
        profile = self._needed_profile("target_tps")
        most = int(1000 * profile.recommended.rate) / 1000 if max_skip is None else max_skip
        profile.threshold(start.at_rate(most))  # raises if the curve does not reach
        pace = Pace(target_tps, most, floor=start.rate)
        self._set_policy(start.at_rate(start.rate))
        self._pace, self._pace_from = pace, start

    @property
    def pace(self) -> Pace | None:
        """The pace that is kept, None if there is none; pace.stats() tells what it did."""
        return self._pace

    def _needed_profile(self, what: str) -> Profile:
        profile = self.profile
        if profile is None:
            raise ProfileError(
                f"{what} needs a profile and {self.model_path} has none (no "
                f"{path_beside(self.model_path)}): make one with pyskip calibrate, name one with profile= (--profile), "
                "or use cosine or static"
            )
        return profile

    def _n_dense(self) -> int:
        """The prompt, and the generated tokens that a profile's policy runs dense."""
        return self._policy.n_dense(self.profile if self._policy.needs_profile else None)

    @property
    def profile(self) -> Profile | None:
        """The model's profile, None if it has none. Raises ProfileError if it is damaged or another model's.

        May be set to the path of another; counts from the next time that `skip` is set."""
        if self._profile is None:
            fingerprint = self.engine.info.fingerprint
            with kernels_chosen(self._kernels):
                if self._profile_path is None:
                    self._profile = find_profile(self.model_path, fingerprint)
                else:
                    self._profile = Profile(self._profile_path)
                    self._profile.check_model(fingerprint, self.model_path)
        return self._profile

    @profile.setter
    def profile(self, path: str | os.PathLike[str] | None) -> None:
        self._profile_path, self._profile = path, None

    @property
    def skippable_layers(self) -> tuple[int, ...]:
        """The layers whose FFN can be skipped. Raises PolicyError if there is none."""
        with self._alone():
            return self.engine.skip.skippable()

    @property
    def skippable_attention(self) -> tuple[int, ...]:
        """The layers whose attention can be skipped, but for K and V; maybe none. Raises PolicyError if no FFN can."""
        with self._alone():
            return self.engine.skip.skippable_attention()

    def mark_generated(self, pos: int | None = None) -> None:
        """Tokens that eval() feeds at positions >= pos (default: the next one) count as generated, until reset().

        For programs that drive eval() themselves; generate() and all that builds on it do this by themselves.
        """
        first = self.n_tokens if pos is None else pos
        if not 0 <= first < 2**31:
            raise ValueError(f"pos is {first}, expected a position from 0 to {2**31 - 1}")
        self.engine.mark_generated(first)

    # What was decided

    def skip_stats(self) -> SkipStats:
        """Blocks evaluated and skipped, by layer."""
        return self.engine.skip.stats(self._policy)

    def reset_skip_stats(self) -> None:
        """Count from zero, a pace's statistics and what a draft proposed, too."""
        self.engine.skip.reset_counters()
        self.n_drafted = self.n_accepted = 0
        if self._pace is not None:
            self._pace.reset_stats()

    def start_trace(self, capacity: int = 4096) -> None:
        """Keep the decisions of the last `capacity` generated tokens (10 bytes a layer a token); 0 stops."""
        self.engine.skip.set_trace(capacity)

    def take_trace(self, n: int = 4096) -> SkipTrace:
        """Take up to n traced tokens, oldest first, and drop them."""
        return self.engine.skip.take_trace(n)

    # Interruption

    def set_abort(self, abort: bool) -> None:
        """Make the decode that is under way stop (it raises DecodeError), and those to come, until set_abort(False).

        May be called from another thread, once set_abort(False) was called in the thread that decodes.
        """
        self.engine.skip.set_abort(abort)
