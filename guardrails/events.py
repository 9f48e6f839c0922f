"""Every event that guards emit, and how to listen: one stream, typed, and free while nobody listens.

    from guardrails.events import BreakerChanged, subscribe

    unsubscribe = subscribe(lambda event: ...)

An event is a frozen dataclass with the guard's name as `source`. It never holds an argument or a result of a call.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from guardrails.core.events import (
    BreakerChanged,
    CallAdmitted,
    CallRejected,
    CallSettled,
    CallTimedOut,
    Event,
    MemoryPressure,
    Sink,
    subscribe,
)

if TYPE_CHECKING:
    from guardrails.gates.connection import ConnectionEnded, ConnectionOpened
    from guardrails.gates.limiter.signals import Drained, RateChanged
    from guardrails.strategies.cache.signals import (
        CacheEvicted,
        CacheHit,
        CacheJoined,
        CacheMiss,
        CacheServedStale,
        CacheStoreFailed,
        CacheStoreRecovered,
        CacheTooLarge,
    )
    from guardrails.strategies.fallback import FallbackUsed
    from guardrails.strategies.hedge import HedgeStarted, HedgeWon
    from guardrails.strategies.inject.strategy import FaultInjected
    from guardrails.strategies.inject.switch import InjectionSwitched
    from guardrails.strategies.retry.strategy import RetryGaveUp, RetryScheduled

__all__ = [
    "BreakerChanged",
    "CacheEvicted",
    "CacheHit",
    "CacheJoined",
    "CacheMiss",
    "CacheServedStale",
    "CacheStoreFailed",
    "CacheStoreRecovered",
    "CacheTooLarge",
    "CallAdmitted",
    "CallRejected",
    "CallSettled",
    "CallTimedOut",
    "ConnectionEnded",
    "ConnectionOpened",
    "Drained",
    "Event",
    "FallbackUsed",
    "FaultInjected",
    "HedgeStarted",
    "HedgeWon",
    "InjectionSwitched",
    "MemoryPressure",
    "RateChanged",
    "RetryGaveUp",
    "RetryScheduled",
    "Sink",
    "subscribe",
]

#: Events that live beside their guard are loaded when asked for.
_HOMES = {
    "CacheEvicted": "guardrails.strategies.cache.signals",
    "CacheHit": "guardrails.strategies.cache.signals",
    "CacheJoined": "guardrails.strategies.cache.signals",
    "CacheMiss": "guardrails.strategies.cache.signals",
    "CacheServedStale": "guardrails.strategies.cache.signals",
    "CacheStoreFailed": "guardrails.strategies.cache.signals",
    "CacheStoreRecovered": "guardrails.strategies.cache.signals",
    "CacheTooLarge": "guardrails.strategies.cache.signals",
    "ConnectionEnded": "guardrails.gates.connection",
    "ConnectionOpened": "guardrails.gates.connection",
    "Drained": "guardrails.gates.limiter.signals",
    "FallbackUsed": "guardrails.strategies.fallback",
    "FaultInjected": "guardrails.strategies.inject.strategy",
    "HedgeStarted": "guardrails.strategies.hedge",
    "HedgeWon": "guardrails.strategies.hedge",
    "InjectionSwitched": "guardrails.strategies.inject.switch",
    "RateChanged": "guardrails.gates.limiter.signals",
    "RetryGaveUp": "guardrails.strategies.retry.strategy",
    "RetryScheduled": "guardrails.strategies.retry.strategy",
}


if not TYPE_CHECKING:  # else every name would be one, for type checkers

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        return getattr(import_module(home), name)
