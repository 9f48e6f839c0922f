"""How many calls at once: limits that find themselves, from how calls fare. Pure deciders.

Both shrink on drops: a call that was throttled (429 and its kin), or timed out.
A limit grows only while it is being used: an idle service learns nothing about its capacity.

* `Aimd`: additive increase, multiplicative decrease, as TCP's congestion avoidance (Chiu and Jain, 1989; RFC 5681): the
  limit grows by one for each round of as many successes, and falls to `backoff` times itself on a drop, once for all
  calls that were in flight together.
* `Gradient`: Netflix's Gradient2 (github.com/Netflix/concurrency-limits): latency that rises above its long-term
  average shrinks the limit before anything is dropped. Theirs ignores drops (issue 137); this one does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from guardrails.core.outcome import Outcome


def dropped(outcome: Outcome) -> bool:
    """Whether an outcome says that there were too many calls: throttled, or out of time."""
    return outcome.kind == "throttled" or (outcome.kind == "failure" and isinstance(outcome.exception, TimeoutError))


@dataclass(frozen=True, slots=True, kw_only=True)
class Aimd:
    """Additive increase, multiplicative decrease.

    Attributes:
        initial: calls at once in the beginning.
        minimum, maximum: the limit never leaves these.
        backoff: what a drop multiplies the limit by, between 0.5 and 1.
        slow_after: seconds from which a call counts as a drop; None: only throttling and timeouts do.
    """

    initial: int = 10
    minimum: int = 1
    maximum: int = 200
    backoff: float = 0.9
    slow_after: float | None = None

    def __post_init__(self) -> None:
        _check(self.initial, self.minimum, self.maximum, self.backoff)
        _check_seconds("slow_after", self.slow_after)

    def start(self) -> AimdLimit:
        """A limit of its own for one guard."""
        return AimdLimit(self)


class AimdLimit:
    """An `Aimd` at work."""

    __slots__ = ("_config", "_exact", "_shrank", "limit")

    def __init__(self, config: Aimd) -> None:
        self._config = config
        self._exact = float(config.initial)
        self._shrank = -math.inf
        self.limit = config.initial

    def ended(self, started: float, now: float, running: int, outcome: Outcome) -> int:
        """A call that ran from `started` to `now`, with `running` in flight, itself included. Returns the limit."""
        config = self._config
        slow = config.slow_after is not None and outcome.kind == "success" and now - started > config.slow_after
        if slow or dropped(outcome):
            if started > self._shrank:  # else it belongs to the crowd that the limit has shrunk for already
                self._shrank = now
                self._exact = max(config.minimum, self._exact * config.backoff)
        elif outcome.kind == "success" and running >= self.limit:
            self._exact = min(config.maximum, self._exact + 1 / self._exact)
        self.limit = int(self._exact + 1e-9)
        return self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """By latency, after Netflix's Gradient2, and by drops.

    Calls are judged in windows of at least `window` seconds and ten successes. The new limit is
    ``limit x clamp(tolerance x long-term latency / latency, 0.5, 1) + queue``, smoothed; a window with a drop
    multiplies it by `backoff` instead.

    Attributes:
        initial: calls at once in the beginning.
        minimum, maximum: the limit never leaves these.
        tolerance: how far latency may rise above its long-term average before the limit shrinks; at least 1.
        queue: calls of growth a window while latency is well.
        smoothing: weight of a new limit against the old one, above 0 and at most 1.
        backoff: what a drop multiplies the limit by, between 0.5 and 1.
        window: seconds.
        long_window: windows that the long-term average looks back on.
    """

    initial: int = 20
    minimum: int = 1
    maximum: int = 200
    tolerance: float = 1.5
    queue: int = 4
    smoothing: float = 0.2
    backoff: float = 0.9
    window: float = 1.0
    long_window: int = 60

    def __post_init__(self) -> None:
        _check(self.initial, self.minimum, self.maximum, self.backoff)
        _check_seconds("window", self.window)
        for name, value, low, high in (
            ("tolerance", self.tolerance, 1, math.inf),
            ("queue", self.queue, 1, math.inf),
            ("long_window", self.long_window, 1, math.inf),
        ):
            if not low <= value < high:
                msg = f"{name} takes a number of at least {low}, not {value!r}"
                raise ValueError(msg)
        if not 0 < self.smoothing <= 1:
            msg = f"smoothing takes a number above 0 and at most 1, not {self.smoothing!r}"
            raise ValueError(msg)

    def start(self) -> GradientLimit:
        """A limit of its own for one guard."""
        return GradientLimit(self)


class GradientLimit:
    """A `Gradient` at work."""

    __slots__ = ("_config", "_count", "_dropped", "_exact", "_long", "_most", "_shrank", "_since", "_total", "limit")

    _ENOUGH = 10

    def __init__(self, config: Gradient) -> None:
        self._config = config
        self._exact = float(config.initial)
        self.limit = config.initial
        self._long: float | None = None
        self._shrank = -math.inf
        self._since: float | None = None
        self._clear()

    def _clear(self) -> None:
        self._count = 0
        self._total = 0.0
        self._most = 0
        self._dropped = False

    def ended(self, started: float, now: float, running: int, outcome: Outcome) -> int:
        """A call that ran from `started` to `now`, with `running` in flight, itself included. Returns the limit."""
        if dropped(outcome):
            self._dropped = self._dropped or started > self._shrank
        elif outcome.kind == "success":
            self._count += 1
            self._total += max(0.0, now - started)
        else:
            return self.limit  # an error that comes back at once is no sign of a fast service
        self._most = max(self._most, running)
        if self._since is None:
            self._since = started
        if now - self._since >= self._config.window and (self._dropped or self._count >= self._ENOUGH):
            self._decide(now)
            self._since = now
            self._clear()
        return self.limit

    def _decide(self, now: float) -> None:
        config, limit = self._config, self._exact
        if self._count:
            latency = self._total / self._count
            if self._long is None:
                self._long = latency
            self._long += (latency - self._long) * 2 / (config.long_window + 1)
            if latency and self._long / latency > 2:
                self._long *= 0.95  # after a bad time, it must not take ages to see that latency is well again
            gradient = max(0.5, min(1.0, config.tolerance * self._long / latency)) if latency else 1.0
            target = limit * gradient + config.queue
            if target < limit or self._most * 2 >= limit:
                limit += (target - limit) * config.smoothing
        if self._dropped:
            self._shrank = now
            limit = min(limit, self._exact * config.backoff)
        self._exact = max(float(config.minimum), min(float(config.maximum), limit))
        self.limit = int(self._exact + 1e-9)


def _check(initial: int, minimum: int, maximum: int, backoff: float) -> None:
    for name, value in (("initial", initial), ("minimum", minimum), ("maximum", maximum)):
        if isinstance(value, bool) or not isinstance(value, int):
            msg = f"{name} takes a whole number of calls, not {value!r}"
            raise TypeError(msg)
    if not 1 <= minimum <= initial <= maximum:
        msg = f"limits must rise, 1 <= minimum <= initial <= maximum, not {minimum}, {initial}, {maximum}"
        raise ValueError(msg)
    if not 0.5 <= backoff < 1:
        msg = f"backoff takes a number of at least 0.5 and below 1, not {backoff!r}"
        raise ValueError(msg)


def _check_seconds(name: str, value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        msg = f"{name} takes a number of seconds above 0, not {value!r}"
        raise ValueError(msg)


__all__ = ["Aimd", "Gradient"]
