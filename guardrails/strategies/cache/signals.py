"""What a cache tells about. No event carries a key, an argument or a value."""

from __future__ import annotations

from dataclasses import dataclass

from guardrails.core.events import Event


@dataclass(frozen=True, slots=True)
class CacheHit(Event):
    """A call was answered by a fresh entry. `shared`: from the store, not from the process's own memory."""

    shared: bool = False


@dataclass(frozen=True, slots=True)
class CacheMiss(Event):
    """There was no fresh entry: the call is made."""


@dataclass(frozen=True, slots=True)
class CacheJoined(Event):
    """A call waits for the same one that is in flight already."""


@dataclass(frozen=True, slots=True)
class CacheServedStale(Event):
    """A call was answered by an entry that is no longer fresh.

    `age` is in seconds since the entry was new; `reason` is ``error`` (the call failed or was refused) or
    ``revalidating`` (a new one is being fetched).
    """

    age: float
    reason: str


@dataclass(frozen=True, slots=True)
class CacheServedError(Event):
    """A call was answered by an error of that class that is remembered."""

    error: str


@dataclass(frozen=True, slots=True)
class CacheRefreshed(Event):
    """A stale entry was replaced, by a call that took so many `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class CacheRefreshFailed(Event):
    """A stale entry was not replaced, and is served further while it may be. `error` is the class of what the call
    raised, or the outcome of what it returned.
    """

    error: str


@dataclass(frozen=True, slots=True)
class CacheEvicted(Event):
    """So many entries had to go to make room for a new one."""

    entries: int


@dataclass(frozen=True, slots=True)
class CacheTooLarge(Event):
    """A result was not kept: with its `size`, in bytes, it does not fit (the search ends there: it may be larger)."""

    size: int


@dataclass(frozen=True, slots=True)
class CacheStoreFailed(Event):
    """The store failed in `operation` (``get`` or ``set``) with an error of that name; told once an outage."""

    operation: str
    error: str


@dataclass(frozen=True, slots=True)
class CacheStoreRecovered(Event):
    """The store does `operation` again."""

    operation: str


__all__ = [
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
]
