"""Events of breakers that share their state. `BreakerChanged`, which every breaker emits, is in `core.events`."""

from __future__ import annotations

from dataclasses import dataclass

from guardrails.core.events import Event


@dataclass(frozen=True, slots=True)
class BreakerStorageFailed(Event):
    """A breaker's state storage cannot be reached: an error of the type `error`, or `TimeoutError` for no answer.

    The breaker decides by what it knows itself. Emitted once an outage, and from the thread that noticed it.
    """

    error: str


@dataclass(frozen=True, slots=True)
class BreakerStorageRecovered(Event):
    """A breaker's state storage answers again, and has what was to be written to it."""


__all__ = ["BreakerStorageFailed", "BreakerStorageRecovered"]
