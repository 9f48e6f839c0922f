"""Cache: the answer of an earlier call that was the same, from memory up to so many bytes.

::

    age of the entry   0 ───── ttl ─────────────┬──────────────────────────▶
                       │ fresh │ stale: served while another caller fetches │ of no more use
                       │       │ anew, or when the call fails               │

Calls that are the same and come at the same time are made once. The two kinds of stale answers are those of RFC 5861,
without background work: the first caller who finds a stale entry fetches a new one.

The rooms: `strategy` drives calls, `answers` is what sync and async ones have in common, `flight` makes calls that are
the same once, `key` tells which are, `lru` is the memory, `store` what may stand behind it, `signals` the events.

Threads: a hit takes no lock; all else is under `flight.lock`, never across an await or a call.
"""

from guardrails.strategies.cache.answers import CacheSnapshot
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
from guardrails.strategies.cache.store import CacheStore
from guardrails.strategies.cache.strategy import Cache, cache

__all__ = [
    "Cache",
    "CacheEvicted",
    "CacheHit",
    "CacheJoined",
    "CacheMiss",
    "CacheServedStale",
    "CacheSnapshot",
    "CacheStore",
    "CacheStoreFailed",
    "CacheStoreRecovered",
    "CacheTooLarge",
    "cache",
]
