"""When a breaker trips: pure deciders over the outcomes of the last calls.

A rule is told of each call (`record`) and says whether the circuit should open. It reads no clock (`now` is given to
it), takes no lock and does no I/O. Memory is bounded: a count window holds `size` calls, a time window `BUCKETS` sums.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

#: Parts that a time window is cut in. It forgets a part at a time, so it looks back on between 0.9 and 1 of its length.
BUCKETS = 10


class Counts(NamedTuple):
    """What a rule knows: calls, how many of them failed, and how many were slow."""

    calls: int
    failures: int
    slow: int


class Rule(Protocol):
    """Remembers outcomes and decides."""

    def record(self, now: float, *, failed: bool, slow: bool = False) -> bool:
        """Note a call that ended at `now` (seconds); whether the circuit should open."""
        ...

    def counts(self, now: float) -> Counts:
        """What it knows at `now`."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...

    def describe(self) -> str:
        """The rule in a few words."""
        ...


class ConsecutiveFailures:
    """Trips at `limit` failures in a row."""

    __slots__ = ("failures", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.failures = 0

    def record(self, now: float, *, failed: bool, slow: bool = False) -> bool:  # noqa: ARG002 - the protocol
        """Note a call; whether the row is long enough. A success ends it."""
        self.failures = self.failures + 1 if failed else 0
        return failed and self.failures >= self.limit

    def counts(self, now: float) -> Counts:  # noqa: ARG002 - the protocol
        """The row."""
        return Counts(self.failures, self.failures, 0)

    def clear(self) -> None:
        """Forget the row."""
        self.failures = 0

    def describe(self) -> str:
        """The rule in a few words."""
        return f"opens after {self.limit} failures in a row"


class Window(Protocol):
    """Counts calls, and forgets old ones."""

    def add(self, now: float, failed: bool, slow: bool) -> None:  # noqa: FBT001
        """Count a call."""
        ...

    def counts(self, now: float) -> Counts:
        """The calls that are not forgotten."""
        ...

    def clear(self) -> None:
        """Forget everything."""
        ...

    def describe(self) -> str:
        """As in 'of ...'."""
        ...


class CountWindow:
    """The last `size` calls."""

    __slots__ = ("_calls", "_failures", "_slow", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._calls: deque[tuple[bool, bool]] = deque()
        self._failures = 0
        self._slow = 0

    def add(self, now: float, failed: bool, slow: bool) -> None:  # noqa: ARG002, FBT001 - the protocol
        """Count a call; the oldest goes when there are more than `size`."""
        self._calls.append((failed, slow))
        self._failures += failed
        self._slow += slow
        if len(self._calls) > self.size:
            old_failed, old_slow = self._calls.popleft()
            self._failures -= old_failed
            self._slow -= old_slow

    def counts(self, now: float) -> Counts:  # noqa: ARG002 - the protocol
        """The calls of the window."""
        return Counts(len(self._calls), self._failures, self._slow)

    def clear(self) -> None:
        """Forget all calls."""
        self._calls.clear()
        self._failures = self._slow = 0

    def describe(self) -> str:
        """As in 'of ...'."""
        return f"the last {self.size} calls"


class TimeWindow:
    """The calls of the last `seconds`, in a ring of `BUCKETS` sums."""

    __slots__ = ("_ring", "_width", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._width = seconds / BUCKETS
        self._ring: deque[tuple[int, list[int]]] = deque()  # (number of the part, [calls, failures, slow])

    def add(self, now: float, failed: bool, slow: bool) -> None:  # noqa: FBT001
        """Count a call in the part of the window that `now` lies in."""
        part = self._forget(now)
        if not self._ring or self._ring[-1][0] < part:
            self._ring.append((part, [0, 0, 0]))
        sums = self._ring[-1][1]
        sums[0] += 1
        sums[1] += failed
        sums[2] += slow

    def counts(self, now: float) -> Counts:
        """The calls of the window."""
        self._forget(now)
        return Counts(*(sum(sums[place] for _, sums in self._ring) for place in range(3)))

    def clear(self) -> None:
        """Forget all calls."""
        self._ring.clear()

    def describe(self) -> str:
        """As in 'of ...'."""
        return f"the last {self.seconds:g} s"

    def _forget(self, now: float) -> int:
        part = int(now // self._width)
        while self._ring and self._ring[0][0] <= part - BUCKETS:
            self._ring.popleft()
        return part


class FailureCount:
    """Trips when `limit` calls of the window failed."""

    __slots__ = ("limit", "window")

    def __init__(self, limit: int, window: Window) -> None:
        self.limit = limit
        self.window = window

    def record(self, now: float, *, failed: bool, slow: bool = False) -> bool:
        """Note a call; whether the window holds enough failures."""
        self.window.add(now, failed, slow)
        return self.window.counts(now).failures >= self.limit

    def counts(self, now: float) -> Counts:
        """The window's."""
        return self.window.counts(now)

    def clear(self) -> None:
        """Forget all calls."""
        self.window.clear()

    def describe(self) -> str:
        """The rule in a few words."""
        return f"opens at {self.limit} failures of {self.window.describe()}"


class Rates:
    """Trips when the share of failures, or of slow calls, reaches its limit and at least `min_calls` are known.

    Every call is looked at, a success too: it may be the one that completes `min_calls` (resilience4j does the same).
    """

    __slots__ = ("failure_rate", "min_calls", "slow_rate", "window")

    def __init__(self, window: Window, *, min_calls: int, failure_rate: float | None, slow_rate: float | None) -> None:
        self.window = window
        self.min_calls = min_calls
        self.failure_rate = failure_rate
        self.slow_rate = slow_rate

    def record(self, now: float, *, failed: bool, slow: bool = False) -> bool:
        """Note a call; whether a rate is reached."""
        self.window.add(now, failed, slow)
        calls, failures, slow_calls = self.window.counts(now)
        if calls < self.min_calls:
            return False
        # Divided, not multiplied: 0.07 * 100 is above 7, but 7 / 100 is 0.07.
        return (self.failure_rate is not None and failures / calls >= self.failure_rate) or (
            self.slow_rate is not None and slow_calls / calls >= self.slow_rate
        )

    def counts(self, now: float) -> Counts:
        """The window's."""
        return self.window.counts(now)

    def clear(self) -> None:
        """Forget all calls."""
        self.window.clear()

    def describe(self) -> str:
        """The rule in a few words."""
        limits = [
            f"{rate:.0%} {what}"
            for rate, what in ((self.failure_rate, "failures"), (self.slow_rate, "slow calls"))
            if rate is not None
        ]
        return f"opens at {' or '.join(limits)} of {self.window.describe()}, from {self.min_calls} on"
