"""What every policy says of itself, and the checks that policies share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

from ..errors import PolicyError, ProfileError

__all__ = [
    "MAX_ERROR",
    "Fields",
    "Operating",
    "Paced",
    "Policy",
    "Settings",
    "check_count",
    "check_number",
    "log_error",
    "read_count",
    "read_flag",
    "read_number",
    "shown",
    "spec",
]

INT32_MAX = 2**31 - 1
MAX_ERROR = 1e30

Settings = Mapping[str, Callable[[str, str], Any]]  # key -> reader of its value
Fields = dict[str, Any]  # of struct pyskip_policy; `type` as the name of its enum's value


class Point(Protocol):
    """One of its operating points."""

    @property
    def rate(self) -> float: ...


class Operating(Protocol):
    """What a policy asks of a profile (pyskip.models.profile.Profile)."""

    warmup: int
    native: Any

    @property
    def recommended(self) -> Point: ...

    def threshold(self, policy: Any) -> float: ...

    def attention_threshold(self, rate: float) -> float: ...


class Paced(Protocol):
    """A policy whose operating point a pace moves."""

    @property
    def rate(self) -> float | None: ...

    def at_rate(self, rate: float) -> Any: ...  # a policy of its own kind


class Policy(ABC):
    """What decides which FFN blocks, and which attention, are skipped. One of the classes of this package."""

    __slots__ = ()

    kind: ClassVar[str]  # that its specification begins with
    settings: ClassVar[Settings] = {}  # of its specification

    @classmethod
    def parse(cls, rest: str) -> Policy:
        """The policy of a specification, of which `rest` follows the kind and a colon. Raises PolicyError."""
        return cls(**_read_settings(cls.kind, cls.settings, rest))

    @property
    def is_dense(self) -> bool:
        """Whether no block is ever skipped, and nothing is counted."""
        return False

    @property
    def needs_profile(self) -> bool:
        """Whether it goes by the model's profile."""
        return False

    @property
    def has_stand_ins(self) -> bool:
        """Whether the profile's stand-ins serve for what is skipped."""
        return self.needs_profile

    @property
    def asks_gates(self) -> bool:
        """Whether the profile's gates are read for every token."""
        return self.needs_profile

    @property
    def decides_prompt(self) -> bool:
        """Whether prompt tokens are decided too; else prompts run dense."""
        return False

    @property
    def measures_prompt(self) -> bool:
        """Whether what is decided for generated tokens follows from the prompt, which runs dense: one that another
        policy computed has the same values, and nothing is known of it."""
        return False

    @property
    def shares_prompt(self) -> bool:
        """Whether a prompt that was decoded dense serves it, too: it neither decides nor measures prompts."""
        return not (self.decides_prompt or self.measures_prompt)

    @property
    def prompt_rule(self) -> str:
        """What computes a prompt: under policies of one rule its values are the same. Empty: of two prompts that begin
        alike they are not, since their lengths have a say."""
        return str(self)

    def n_dense(self, profile: Operating | None) -> int:
        """Decodes of a generation, the prompt's the first, that no operating point has a say in."""
        return 0

    def paced_from(self) -> Paced | None:
        """What a pace starts from; None if there is no operating point to move."""
        return None

    def with_prompt(self, rate: float) -> Policy:
        """The same, and this share of the FFN blocks of prompts is skipped. Raises PolicyError if nothing can tell
        which."""
        raise PolicyError(
            f"a skip rate for prompts goes with a profile's policy, and skip is {str(self)!r}: leave one of them out"
        )

    def needed(self, profile: Operating | None) -> Operating:
        """The profile that it goes by. Raises ProfileError if none is given."""
        if profile is None:
            raise ProfileError(f"skip {str(self)!r} needs the model's profile and none is given: run pyskip calibrate")
        return profile

    @abstractmethod
    def fields(self, profile: Operating | None) -> Fields:
        """Of struct pyskip_policy. Raises ProfileError if a profile is needed and none given."""


def log_error(error: float | None) -> float:
    """-inf for an error of 0, inf for any."""
    return math.inf if error is None else math.log(error) if error > 0 else -math.inf


def spec(name: str, **values: float | None) -> str:
    """name:key=value,... of the values that are not None."""
    items = [f"{key}={value}" for key, value in values.items() if value is not None]
    return f"{name}:{','.join(items)}" if items else name


def shown(value: object) -> str:
    """For an error message, cut short."""
    text = f"{value:#x}" if isinstance(value, int) and abs(value) > 10**18 else repr(value)  # no digits without end
    return text if len(text) <= 60 else text[:57] + "..."


def check_count(what: str, value: object) -> None:
    """Raises PolicyError unless it is a whole number that fits int32_t."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT32_MAX:
        raise PolicyError(f"{what} is {shown(value)}, expected a whole number from 0 to {INT32_MAX}")


def check_number(what: str, value: object, high: float) -> None:
    """Raises PolicyError unless it is a number from 0 to high."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
        raise PolicyError(f"{what} is {shown(value)}, expected a number from 0 to {high:g}")


def read_count(what: str, text: str) -> int:
    """Of a specification. Raises PolicyError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise PolicyError(f"{what} is {shown(text)}, expected a whole number from 0")
    return int(text)


def read_number(what: str, text: str) -> float:
    """Of a specification. Raises PolicyError."""
    try:
        return float(text)
    except ValueError:
        raise PolicyError(f"{what} is {shown(text)}, expected a number") from None


def read_flag(what: str, text: str) -> bool:
    """Of a specification. Raises PolicyError."""
    if text not in ("0", "1"):
        raise PolicyError(f"{what} is {shown(text)}, expected 0 or 1")
    return text == "1"


def _read_settings(kind: str, known: Settings, rest: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in rest.split(",") if rest else ():
        key, equals, text = item.partition("=")
        if not equals or key not in known:
            raise PolicyError(
                f"{kind} has no setting {shown(item)}, expected key=value with a key of {', '.join(sorted(known))}"
            )
        if key in values:
            raise PolicyError(f"{kind} sets {key} twice, expected it once")
        values[key] = known[key](f"{kind} {key}", text)
    return values
