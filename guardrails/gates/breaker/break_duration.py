"""How long a breaker stays open: pure functions of how often it has opened in a row and of the outcome that opened it.

`open_for=` of a breaker takes a number of seconds, one of these, or a function of the outcome that returns seconds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from guardrails.core import validate
from guardrails.core.outcome import Outcome


class BreakDuration(Protocol):
    """Seconds to stay open."""

    def seconds(self, times: int, outcome: Outcome) -> float:
        """For the `times`-th opening in a row (1: the first since it was closed), caused by `outcome`."""
        ...

    def describe(self) -> str:
        """As in 'for ...'."""
        ...


def _check(argument: str, value: object, least: float = 0.0) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{argument} takes a number, not {type(value).__name__}"
        raise TypeError(msg)
    validate.real(argument, value)  # a whole number may be too large for a float, and then for every sum with a time
    if not value > least:
        msg = f"{argument} takes a number above {least:g}, not {value!r}"
        raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same."""

    length: float

    def seconds(self, times: int, outcome: Outcome) -> float:  # noqa: ARG002 - the protocol
        """`length`."""
        return self.length

    def describe(self) -> str:
        """As in 'for ...'."""
        return f"{self.length:g} s"


@dataclass(frozen=True, slots=True)
class Growing:
    """``first * factor ** (times - 1)`` seconds, at most `cap`, then up to `jitter` of it less (chosen at random, so
    that many processes do not probe a dependency in step).

    Attributes:
        first: seconds of the first opening.
        factor: by how much each further one in a row is longer.
        cap: the longest, in seconds.
        jitter: the share, 0 to 1, that chance may take off.
    """

    first: float
    factor: float = 2.0
    cap: float = 300.0
    jitter: float = 0.1
    random: Callable[[], float] = field(default=random.random, repr=False)

    def __post_init__(self) -> None:
        _check("first", self.first)
        _check("factor", self.factor, 1)
        _check("cap", self.cap)
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, int | float) or not 0 <= self.jitter <= 1:
            msg = f"jitter takes a share between 0 and 1, not {self.jitter!r}"
            raise ValueError(msg)
        if self.cap < self.first:
            msg = f"cap={self.cap:g} is below first={self.first:g}"
            raise ValueError(msg)

    def seconds(self, times: int, outcome: Outcome) -> float:  # noqa: ARG002 - the protocol
        """Seconds of the `times`-th opening."""
        # Compared as logarithms: a power of a float overflows.
        most = math.log(self.cap / self.first, self.factor)
        full = self.cap if times - 1 >= most else self.first * self.factor ** (times - 1)
        return full * (1 - self.jitter * self.random())

    def describe(self) -> str:
        """As in 'for ...'."""
        return f"{self.first:g} s, growing to {self.cap:g} s"


@dataclass(frozen=True, slots=True)
class FromRetryAfter:
    """As long as the dependency asked for (`Retry-After`), at most `cap` seconds; `otherwise` when it said nothing."""

    otherwise: float = 60.0
    cap: float = 600.0

    def __post_init__(self) -> None:
        _check("otherwise", self.otherwise)
        _check("cap", self.cap)

    def seconds(self, times: int, outcome: Outcome) -> float:  # noqa: ARG002 - the protocol
        """The outcome's `retry_after` if it has one above 0."""
        return min(outcome.retry_after, self.cap) if outcome.retry_after else self.otherwise

    def describe(self) -> str:
        """As in 'for ...'."""
        return f"as long as it asks for or {self.otherwise:g} s"


@dataclass(frozen=True, slots=True)
class OfOutcome:
    """What a function of the `Outcome` says."""

    function: Callable[[Outcome], float]

    def seconds(self, times: int, outcome: Outcome) -> float:  # noqa: ARG002 - the protocol
        """What the function says.

        Raises:
            ValueError: it said something that is not a number of seconds above 0. TypeError: nor a number.
        """
        seconds = self.function(outcome)
        _check("open_for(outcome)", seconds)
        return seconds

    def describe(self) -> str:
        """As in 'for ...'."""
        return "a time that depends on the outcome"


def break_duration(value: float | BreakDuration | Callable[[Outcome], float], argument: str) -> BreakDuration:
    """What `open_for=` means."""
    if hasattr(value, "seconds") and hasattr(value, "describe"):
        return value
    if callable(value):
        return OfOutcome(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{argument} takes a number of seconds, a BreakDuration or a function, not {type(value).__name__}"
        raise TypeError(msg)
    validate.real(argument, value)
    if not value > 0:
        msg = f"{argument} takes a number of seconds above 0, not {value!r}"
        raise ValueError(msg)
    return Fixed(value)
