"""What becomes of an event, by its class: looked up once, then a look into a dictionary."""

from __future__ import annotations

from enum import Enum

from guardrails.core.events import (
    BreakerChanged,
    CallAdmitted,
    CallFinished,
    CallRejected,
    CallSettled,
    CallStarted,
    CallTimedOut,
    Event,
    MemoryPressure,
)
from guardrails.memory.signals import AlertCleared, AlertRaised, MemorySampled
from guardrails.telemetry.records import most_severe


class Route(Enum):
    """See the picture in `reporter`."""

    NOTHING = "nothing"
    ISSUE = "issue"
    STEP = "step"
    SPAN = "span"
    SAMPLE = "sample"


_KNOWN: dict[type[Event], Route] = {
    AlertCleared: Route.STEP,
    AlertRaised: Route.ISSUE,
    BreakerChanged: Route.ISSUE,
    CallAdmitted: Route.NOTHING,
    CallFinished: Route.SPAN,
    CallRejected: Route.STEP,
    CallSettled: Route.NOTHING,
    CallStarted: Route.SPAN,
    CallTimedOut: Route.STEP,
    MemoryPressure: Route.STEP,
    MemorySampled: Route.SAMPLE,
}
#: Of classes that are not imported for it: what is of every call, and yet of interest when something goes wrong.
_STEPS = frozenset({"CacheServedStale", "FallbackUsed", "HedgeWon", "RetryGaveUp", "RetryScheduled"})


def route_of(kind: type[Event]) -> Route:
    """Where events of this class go. Those that are not known here go by how severe their records may be."""
    route = _KNOWN.get(kind)
    if route is None:
        route = _KNOWN[kind] = _route(kind)
    return route


def _route(kind: type[Event]) -> Route:
    if kind.__name__ in _STEPS:
        return Route.STEP
    most = most_severe(kind)
    if most == "error":
        return Route.ISSUE
    return Route.NOTHING if most == "debug" else Route.STEP
