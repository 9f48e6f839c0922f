"""Cache: the answer of an earlier call that was the same, from memory up to so many bytes.

::

    age of the entry   0 ───── ttl ─────────────┬──────────────────────────▶
                       │ fresh │ stale: served while a task fetches a new   │ of no more use
                       │       │ one, or when the call fails                │

Calls that are the same and come at the same time are made once. The two kinds of stale answers are those of RFC 5861.
A stale entry of an async function is refreshed by a task of its own, one a key; that of a sync function by the first
call that finds it, which waits for the new one.

The modules: `build` checks the arguments, `strategy` drives calls, `answers` is what sync and async ones have in
common, `flight` makes calls that are the same once, `key` tells which are, `receiver` adds the instance of a method,
`lru` is the memory, `remembered` the errors in it, `store` what may stand behind it, `signals` the events.

Threads: a hit takes no lock; all else is under `flight.lock`, never across an await or a call.
"""

from guardrails.strategies.cache.answers import CacheSnapshot
from guardrails.strategies.cache.build import cache
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
from guardrails.strategies.cache.store import CacheStore
from guardrails.strategies.cache.strategy import Cache

__all__ = [
    "Cache",
    "CacheEvicted",
    "CacheHit",
    "CacheJoined",
    "CacheMiss",
    "CacheRefreshFailed",
    "CacheRefreshed",
    "CacheServedError",
    "CacheServedStale",
    "CacheSnapshot",
    "CacheStore",
    "CacheStoreFailed",
    "CacheStoreRecovered",
    "CacheTooLarge",
    "cache",
]
