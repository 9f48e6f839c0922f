"""Every event that guards emit, and how to listen: one stream, typed, and free while nobody listens.

    from guardrails.events import BreakerChanged, subscribe

    unsubscribe = subscribe(lambda event: ...)

An event is a frozen dataclass with the guard's name as `source`. It never holds an argument or a result of a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails._lazy import lazy
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
    Sink,
    subscribe,
)

if TYPE_CHECKING:
    from guardrails.gates.breaker.events import BreakerStorageFailed, BreakerStorageRecovered
    from guardrails.gates.connection import ConnectionEnded, ConnectionOpened
    from guardrails.gates.limiter.signals import Drained, RateChanged
    from guardrails.memory.signals import AlertCleared, AlertRaised, MemorySampled
    from guardrails.strategies.cache.signals import (
        CacheEvicted,
        CacheHit,
        CacheJoined,
        CacheMiss,
        CacheRefreshed,
        CacheRefreshFailed,
        CacheServedError,
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
    "AlertCleared",
    "AlertRaised",
    "BreakerChanged",
    "BreakerStorageFailed",
    "BreakerStorageRecovered",
    "CacheEvicted",
    "CacheHit",
    "CacheJoined",
    "CacheMiss",
    "CacheRefreshFailed",
    "CacheRefreshed",
    "CacheServedError",
    "CacheServedStale",
    "CacheStoreFailed",
    "CacheStoreRecovered",
    "CacheTooLarge",
    "CallAdmitted",
    "CallFinished",
    "CallRejected",
    "CallSettled",
    "CallStarted",
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
    "MemorySampled",
    "RateChanged",
    "RetryGaveUp",
    "RetryScheduled",
    "Sink",
    "subscribe",
]

#: Events that live beside their guard are loaded when asked for.
_HOMES = {
    "AlertCleared": "memory.signals",
    "AlertRaised": "memory.signals",
    "BreakerStorageFailed": "gates.breaker.events",
    "BreakerStorageRecovered": "gates.breaker.events",
    "CacheEvicted": "strategies.cache.signals",
    "CacheHit": "strategies.cache.signals",
    "CacheJoined": "strategies.cache.signals",
    "CacheMiss": "strategies.cache.signals",
    "CacheRefreshFailed": "strategies.cache.signals",
    "CacheRefreshed": "strategies.cache.signals",
    "CacheServedError": "strategies.cache.signals",
    "CacheServedStale": "strategies.cache.signals",
    "CacheStoreFailed": "strategies.cache.signals",
    "CacheStoreRecovered": "strategies.cache.signals",
    "CacheTooLarge": "strategies.cache.signals",
    "ConnectionEnded": "gates.connection",
    "ConnectionOpened": "gates.connection",
    "Drained": "gates.limiter.signals",
    "FallbackUsed": "strategies.fallback",
    "FaultInjected": "strategies.inject.strategy",
    "HedgeStarted": "strategies.hedge",
    "HedgeWon": "strategies.hedge",
    "InjectionSwitched": "strategies.inject.switch",
    "MemorySampled": "memory.signals",
    "RateChanged": "gates.limiter.signals",
    "RetryGaveUp": "strategies.retry.strategy",
    "RetryScheduled": "strategies.retry.strategy",
}

if not TYPE_CHECKING:  # else every name would be one, for type checkers
    __getattr__ = lazy(__name__, _HOMES)
