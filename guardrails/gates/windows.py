"""When a breaker trips: pure deciders over the outcomes of the last calls.

A window is told of each success and failure and says whether the circuit should open. No clock, no lock, no I/O.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol


class Window(Protocol):
    """Remembers outcomes and decides."""

    failures: int

    def success(self) -> None:
        """Note a success."""
        ...

    def failure(self) -> bool:
        """Note a failure; whether the circuit should open."""
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

    def success(self) -> None:
        """Note a success: the row ends."""
        self.failures = 0

    def failure(self) -> bool:
        """Note a failure; whether the row is long enough."""
        self.failures += 1
        return self.failures >= self.limit

    def clear(self) -> None:
        """Forget the row."""
        self.failures = 0

    def describe(self) -> str:
        """The rule in a few words."""
        return f"opens after {self.limit} failures in a row"


class FailureRate:
    """Trips when at least `rate` of the last `size` calls failed, and at least `min_calls` are known."""

    __slots__ = ("_outcomes", "failures", "min_calls", "rate", "size")

    def __init__(self, rate: float, *, size: int, min_calls: int) -> None:
        self.rate = rate
        self.size = size
        self.min_calls = min_calls
        self.failures = 0
        self._outcomes: deque[bool] = deque()

    def success(self) -> None:
        """Note a success."""
        self._note(failed=False)

    def failure(self) -> bool:
        """Note a failure; whether the rate is reached."""
        self._note(failed=True)
        known = len(self._outcomes)
        # Divided, not multiplied: 0.07 * 100 is above 7, but 7 / 100 is 0.07.
        return known >= self.min_calls and self.failures / known >= self.rate

    def _note(self, *, failed: bool) -> None:
        self._outcomes.append(failed)
        self.failures += failed
        if len(self._outcomes) > self.size:
            self.failures -= self._outcomes.popleft()

    def clear(self) -> None:
        """Forget all calls."""
        self._outcomes.clear()
        self.failures = 0

    def describe(self) -> str:
        """The rule in a few words."""
        return f"opens at {self.rate:.0%} failures of the last {self.size} calls, from {self.min_calls} on"
