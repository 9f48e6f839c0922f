"""How long to wait before the next attempt. Pure: numbers in, seconds out.

The formulas are those of Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/): callers that failed together must not come
back together.
"""

from __future__ import annotations

import abc
import random
from collections.abc import Callable
from dataclasses import dataclass, field

Uniform = Callable[[float, float], float]

#: 2.0 to a higher power overflows a float; every cap is reached long before.
_MOST_DOUBLINGS = 1000


class Backoff(abc.ABC):
    """A rule for the waits of one call. Frozen: what it remembers of a call is handed to it."""

    @abc.abstractmethod
    def delay(self, retry: int, previous: float | None) -> float:
        """Seconds to wait before the `retry`-th retry (from 1 on); `previous` is the wait before that one, if any."""

    @abc.abstractmethod
    def describe(self) -> str:
        """A few words for `Pipeline.describe`."""


@dataclass(frozen=True, slots=True)
class Fixed(Backoff):
    """Always the same wait, `seconds`."""

    seconds: float

    def __post_init__(self) -> None:
        seconds("wait", self.seconds, zero=True)

    def delay(self, retry: int, previous: float | None) -> float:  # noqa: ARG002 - the contract
        """The seconds."""
        return self.seconds

    def describe(self) -> str:
        """A few words."""
        return f"{self.seconds:g} s apart"


@dataclass(frozen=True, slots=True)
class FullJitter(Backoff):
    """``random_between(0, min(cap, base * 2 ** n))``, n = 0 for the first retry. The least work for the dependency.

    Attributes:
        base: seconds that the first wait is at most.
        cap: seconds that any wait is at most.
    """

    base: float = 0.1
    cap: float = 20.0
    uniform: Uniform = field(default=random.uniform, repr=False, compare=False)

    def __post_init__(self) -> None:
        _base_and_cap(self.base, self.cap)

    def delay(self, retry: int, previous: float | None) -> float:  # noqa: ARG002 - the contract
        """Anything from 0 to the exponential bound."""
        return self.uniform(0.0, min(self.cap, self.base * 2.0 ** min(retry - 1, _MOST_DOUBLINGS)))

    def describe(self) -> str:
        """A few words."""
        return f"full jitter {self.base:g} to {self.cap:g} s"


@dataclass(frozen=True, slots=True)
class DecorrelatedJitter(Backoff):
    """``min(cap, random_between(base, previous * 3))``, previous = base at first. Never shorter than `base`.

    Attributes:
        base: seconds that any wait is at least.
        cap: seconds that any wait is at most.
    """

    base: float = 0.1
    cap: float = 20.0
    uniform: Uniform = field(default=random.uniform, repr=False, compare=False)

    def __post_init__(self) -> None:
        _base_and_cap(self.base, self.cap)

    def delay(self, retry: int, previous: float | None) -> float:  # noqa: ARG002 - the contract
        """Anything from `base` to three times the wait before."""
        return min(self.cap, self.uniform(self.base, 3 * (self.base if previous is None else previous)))

    def describe(self) -> str:
        """A few words."""
        return f"decorrelated jitter {self.base:g} to {self.cap:g} s"


def at_least(delay: float, asked: float) -> float:
    """The wait when the dependency asked to be left alone for `asked` seconds: never shorter.

    Whoever is told the same time comes back at the same time: where the drawn `delay` allows, up to a tenth of `asked`
    is added.
    """
    return max(delay, asked + min(delay, asked / 10))


def seconds(argument: str, value: float, *, zero: bool = False) -> None:
    """Refuse what is no finite number of seconds above 0 (or, with `zero`, from 0 on)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{argument} takes a number of seconds, not {type(value).__name__}"
        raise TypeError(msg)
    if not (value >= 0 if zero else value > 0) or value == float("inf"):
        least = "from 0 on" if zero else "above 0"
        msg = f"{argument} takes a number of seconds {least}, not {value!r}"
        raise ValueError(msg)


def _base_and_cap(base: float, cap: float) -> None:
    seconds("base", base)
    seconds("cap", cap)
    if cap < base:
        msg = f"cap takes at least base, {base:g} s, not {cap:g}"
        raise ValueError(msg)


__all__ = ["Backoff", "DecorrelatedJitter", "Fixed", "FullJitter"]
