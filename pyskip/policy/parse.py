"""Skip specifications: the strings that stand for policies."""

from __future__ import annotations

from ..errors import PolicyError
from .adaskip import AdaSkip
from .base import Policy, shown
from .cosine import Cosine
from .off import Off
from .profiled import Profiled
from .prompted import Prompted
from .random import Random
from .static import Static

__all__ = ["parse_skip"]

KINDS: dict[str, type[Policy]] = {
    policy.kind: policy for policy in (Cosine, Static, Profiled, AdaSkip, Prompted, Random)
}


def parse_skip(spec: str | float | Policy) -> Policy:
    """The policy that a skip specification stands for; a policy stands for itself. Raises PolicyError if it is
    malformed. Whether the model has the profile that a rate needs shows when the policy is set."""
    if isinstance(spec, Policy):
        return spec
    if isinstance(spec, (int, float)) and not isinstance(spec, bool):
        spec = str(float(spec)) if abs(spec) < 1e300 else shown(spec)
    if not isinstance(spec, str):
        raise PolicyError(f"skip is a {type(spec).__name__}, expected a specification such as 'off' or 'static:5,14'")
    name, colon, rest = spec.strip().partition(":")
    if name == "off" and not colon:
        return Off()
    if name in KINDS:
        return KINDS[name].parse(rest)
    if _is_rate(spec):
        return Profiled(rate=float(spec))
    raise PolicyError(
        f"skip is {shown(spec)}, expected off, a rate such as 0.25, profile[:key=value,...], cosine[:key=value,...], "
        "static:LAYER,...,attn=LAYER+..., adaskip[:n=N], prompt[:rate=R] or random[:key=value,...]"
    )


def _is_rate(spec: str) -> bool:
    try:
        return 0.0 <= float(spec) <= 1.0
    except ValueError:
        return False
