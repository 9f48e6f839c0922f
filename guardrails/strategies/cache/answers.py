"""What a cache knows and decides, for sync and async calls alike: entries, flights in flight, counts and events.

Threads: `hit` takes no lock; all else is under `flight.lock`, never across an await or a call.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from guardrails.core import events
from guardrails.core.clock import Clock
from guardrails.core.errors import WaitTimeout
from guardrails.core.guard import DrivenCall
from guardrails.core.outcome import Outcome, refusal_of
from guardrails.core.waiting import TaskWaiter, ThreadWaiter, on_event_loop
from guardrails.strategies.backoff import seconds
from guardrails.strategies.cache.flight import Flight, Flights, Following, Landing, lock
from guardrails.strategies.cache.key import key_size
from guardrails.strategies.cache.lru import BytesLru, Entry, size_of
from guardrails.strategies.cache.remembered import bare_copy, to_remember
from guardrails.strategies.cache.signals import (
    CacheEvicted,
    CacheHit,
    CacheJoined,
    CacheMiss,
    CacheRefreshed,
    CacheRefreshFailed,
    CacheServedError,
    CacheServedStale,
    CacheTooLarge,
)

Key = tuple[Any, ...]
#: Before a key: the entry is the error that is remembered for it.
_ERROR = object()
_log = logging.getLogger("guardrails")

#: What makes its own call though the same one is in flight, since it must not or cannot wait.
ALONE = Landing()


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """Counts since the start, and what there is now.

    Attributes:
        hits: calls answered by a fresh entry of the process's own memory.
        shared_hits: calls answered by a fresh entry of the store.
        misses: calls that were made.
        joined: calls that waited for one in flight.
        stale: calls answered by an entry that was no longer fresh.
        evicted: entries that had to go to make room.
        entries: how many there are, those included that are no longer of use but not yet found to be.
        bytes: that the entries hold, as far as can be told.
        in_flight: calls that others may join.
        errors: calls answered by an error that is remembered.
        refreshes: calls that were made to replace a stale entry; those in the background are no misses.
    """

    hits: int
    shared_hits: int
    misses: int
    joined: int
    stale: int
    evicted: int
    entries: int
    bytes: int
    in_flight: int
    errors: int = 0
    refreshes: int = 0


class Answers:
    """The answers of one cache.

    Args:
        ttl, max_bytes, copy, name, clock: as for `cache(...)`.
        if_error: seconds after `ttl` in which an entry stands in for a call that fails; 0.0 for never.
        while_revalidate: seconds after `ttl` in which it is given while a new one is fetched; 0.0 for never.
        errors: says which errors are remembered, for `error_ttl` seconds; None: none.
    """

    def __init__(
        self,
        *,
        ttl: float | Callable[[Any], float | None],
        max_bytes: int,
        if_error: float,
        while_revalidate: float,
        errors: Callable[[Exception], object] | None,
        error_ttl: float,
        copy: Callable[[Any], Any] | None,
        name: str,
        clock: Clock,
    ) -> None:
        self.name = name
        self.ttl = ttl
        self.if_error = if_error
        self.while_revalidate = while_revalidate
        self.lru = BytesLru(max_bytes)
        self.entries = self.lru.entries
        self._errors = errors
        self._error_ttl = error_ttl
        self._copy = copy
        self._now = clock.now
        self._flights = Flights()
        # `next` of a count is one step that no other thread interrupts, and the cheapest counter there is.
        self.count_hit = itertools.count().__next__
        self._looks = 0
        self._shared_hits = self._misses = self._joined = self._stale = self._errors_served = self._refreshes = 0

    def snapshot(self) -> CacheSnapshot:
        """The counts."""
        with lock:
            hits = self.count_hit() - self._looks  # reading the count takes a number out of it, which is nobody's hit
            self._looks += 1
            return CacheSnapshot(
                hits=hits,
                shared_hits=self._shared_hits,
                misses=self._misses,
                joined=self._joined,
                stale=self._stale,
                evicted=self.lru.evicted,
                entries=len(self.entries),
                bytes=self.lru.used,
                in_flight=len(self._flights),
                errors=self._errors_served,
                refreshes=self._refreshes,
            )

    def forget(self, key: Key) -> None:
        """Drop an entry. A call in flight goes on, but is not kept, and nobody joins it any more."""
        with lock:
            self._flights.forget(key)
            gone = self.lru.pop(key), self.lru.pop((_ERROR, key))
        del gone  # outside the lock: a value may have a finaliser

    def clear(self) -> None:
        """`forget` everything."""
        with lock:
            self._flights.clear()
            gone = self.lru.clear()
        del gone

    def hit(self, value: Any) -> Any:
        """What a caller gets of a fresh value; `count_hit` is called beside it."""
        if events.sinks:
            events.emit(CacheHit(self.name))
        return value if self._copy is None else self._copy(value)

    def arrive(
        self, key: Key, home: object, waiter: type[TaskWaiter[Any] | ThreadWaiter[Any]]
    ) -> Flight | Following | Landing:
        """What a call does that found nothing fresh: lead a flight, follow one, take what there is, or go alone.

        A landing with an error is one that is remembered: see `recall`. One with `refresh` leaves that to the caller.
        """
        may_wait = home is not None or not on_event_loop()  # a thread that runs a loop would stop it
        now = self._now()
        coming: Flight | Following | Landing
        event: type[events.Event]
        with lock:
            flight = self._flights.find(key, home)
            entry = self.lru.find(key, now)
            if entry is not None and now < entry.fresh_until:  # landed since we looked
                coming = Landing(entry.value)
                self.count_hit()
                event = CacheHit
            elif entry is not None and now < entry.fresh_until + self.while_revalidate:
                stale = Landing(entry.value, stale="revalidating", stored=entry.stored)
                if flight is None and not self._flights.refreshing(key) and self._remembered(key, now) is None:
                    stale.refresh = self._flights.start(key, home, refresh=True)
                return stale
            elif (error := self._remembered(key, now)) is not None:
                return Landing(error=error)
            elif flight is None:
                return self._flights.start(key, home)
            elif not may_wait or flight.would_wait_for_itself():
                return ALONE
            else:
                coming = flight.join(waiter(None))
                self._joined += 1
                event = CacheJoined
        if events.sinks:
            events.emit(event(self.name))
        return coming

    def _remembered(self, key: Key, now: float) -> Exception | None:
        """The error that is remembered for `key`. Under `lock`."""
        if self._errors is None:
            return None
        entry = self.lru.find((_ERROR, key), now)
        return None if entry is None else entry.value

    def recall(self, call: DrivenCall, key: Key, landing: Landing) -> Landing:
        """What a caller gets of an error that is remembered: a copy, or a stale entry in its place."""
        assert landing.error is not None  # noqa: S101 - `arrive` gave it
        error = bare_copy(landing.error)
        assert error is not None  # noqa: S101 - it was copied once already
        stale = self.instead_of(call.judge(error), key)
        if stale is not None:
            return stale
        with lock:
            self._errors_served += 1
        if events.sinks:
            events.emit(CacheServedError(self.name, type(error).__name__))
        return Landing(error=error)

    def gone(self, call: DrivenCall, key: Key) -> Landing:
        """What a follower gets whose deadline came before the flight ended."""
        detail = "the same call, in flight, did not end before the deadline"
        error = WaitTimeout(self.name, detail=detail)
        stale = self.instead_of(call.judge(error), key)
        if stale is not None:
            return stale
        if events.sinks:
            events.emit(events.CallRejected(self.name, error.reason, None))
        return Landing(error=error)

    def missed(self) -> None:
        with lock:
            self._misses += 1
        if events.sinks:
            events.emit(CacheMiss(self.name))

    def refreshed(self, began: float, failure: str | None) -> None:
        """A flight that was to replace a stale entry is over."""
        with lock:
            self._refreshes += 1
        if not events.sinks:
            return
        if failure is None:
            events.emit(CacheRefreshed(self.name, self._now() - began))
        else:
            events.emit(CacheRefreshFailed(self.name, failure))

    def returned(self, call: DrivenCall, key: Key, result: Any, flight: Flight | None) -> Landing:
        _refuse_lazy(self.name, call.function, result)
        outcome = call.judge_result(result)
        if outcome.kind == "success":
            return Landing(result, keep=self._fresh_for(result))
        landing = self.instead_of(outcome, key, refresh=flight is not None and flight.refresh) or Landing(result)
        landing.failure = outcome.kind
        return landing

    def raised(self, call: DrivenCall, key: Key, error: Exception, flight: Flight | None) -> Landing | None:
        """What is given in the place of an error; None: the error is raised."""
        if flight is not None and self._errors is not None:
            self._remember(key, flight, error)
        stale = self.instead_of(call.judge(error), key, refresh=flight is not None and flight.refresh)
        if stale is not None:
            stale.failure = type(error).__name__
        return stale

    def instead_of(self, outcome: Outcome, key: Key, *, refresh: bool = False) -> Landing | None:
        """The stale entry that is better than such an outcome, if there is one. That of a `refresh` stays with it."""
        if_error = self.if_error
        if outcome.kind not in ("failure", "throttled") and refusal_of(outcome.exception) is None:
            if_error = 0.0
        window = max(if_error, self.while_revalidate) if refresh else if_error
        if not window:
            return None
        now = self._now()
        with lock:
            entry = self.lru.find(key, now)
        if entry is None or now >= entry.fresh_until + window:
            return None
        return Landing(entry.value, stale="error", stored=entry.stored)

    def _fresh_for(self, result: Any) -> float:
        """Seconds; 0.0 if it is not to be kept."""
        if not callable(self.ttl):
            return self.ttl
        try:
            ttl = self.ttl(result)
            if ttl is None or ttl == 0:
                return 0.0
            seconds("ttl", ttl)
        except Exception as exc:  # the call has succeeded: its result is not lost for this. No text: it may hold it
            kind, what = type(result).__name__, type(exc).__name__
            _log.warning("%s: ttl failed on a %s (%s), which is not cached", self.name, kind, what)
            return 0.0
        return ttl

    def keep_for(self, ttl: float) -> float:
        return ttl + max(self.if_error, self.while_revalidate)

    def found(self, key: Key, flight: Flight, found: tuple[Any, float] | None) -> Landing | None:
        """Keep what the store had. Returns it if it is fresh."""
        if found is None:
            return None
        value, age = found
        ttl = self._fresh_for(value)
        if not ttl or age >= self.keep_for(ttl):
            return None
        self._keep(key, flight, value, ttl, age)
        if age >= ttl:
            return None
        with lock:
            self._shared_hits += 1
        if events.sinks:
            events.emit(CacheHit(self.name, shared=True))
        return Landing(value)

    def land(self, key: Key, flight: Flight, landing: Landing) -> bool:
        """Give it to everybody. Returns whether it is a new one to be kept."""
        kept = landing.keep > 0 and flight.current
        if kept:
            self._keep(key, flight, landing.value, landing.keep, 0.0)
        flight.land(landing)
        return kept

    def _keep(self, key: Key, flight: Flight, value: Any, ttl: float, age: float) -> None:
        size = size_of(value, self.lru.max_bytes) + key_size(key)
        stored = self._now() - age
        entry = Entry(value, size, stored, stored + ttl, stored + self.keep_for(ttl))
        self._put(key, flight, entry, None if self._errors is None else (_ERROR, key))

    def _remember(self, key: Key, flight: Flight, error: Exception) -> None:
        assert self._errors is not None  # noqa: S101 - asked before
        found = to_remember(self.name, self._errors, error)
        if found is None:
            return
        size = size_of((found.args, vars(found)), self.lru.max_bytes) + key_size(key)
        stored = self._now()
        until = stored + self._error_ttl
        self._put((_ERROR, key), flight, Entry(found, size, stored, until, until), None)

    def _put(self, key: Key, flight: Flight, entry: Entry, instead: Key | None) -> None:
        lru, size = self.lru, entry.size
        fits = lru.fits(entry)
        with lock:
            if not flight.current:  # it was forgotten meanwhile
                return
            before = lru.evicted
            gone: list[Entry | None] = [*lru.put(key, entry)] if fits else [lru.pop(key)]
            evicted = lru.evicted - before
            if instead is not None:
                gone.append(lru.pop(instead))
        del gone  # outside the lock: a value may have a finaliser
        if events.sinks:
            if evicted:
                events.emit(CacheEvicted(self.name, evicted))
            if not fits:
                events.emit(CacheTooLarge(self.name, size))

    def open(self, landing: Landing) -> Any:
        """What a caller gets."""
        error = landing.error
        if error is not None:
            try:
                # It is one object for everybody: each raise would make its traceback longer.
                raise error.with_traceback(landing.trace)
            finally:
                del error, landing  # the traceback holds this frame
        if landing.stale is not None:
            with lock:
                self._stale += 1
            if events.sinks:
                events.emit(CacheServedStale(self.name, self._now() - landing.stored, landing.stale))
        return landing.value if self._copy is None else self._copy(landing.value)


def _refuse_lazy(name: str, function: Callable[..., Any], result: Any) -> None:
    kind = type(result)
    if not (hasattr(kind, "__next__") or hasattr(kind, "__anext__") or hasattr(kind, "__await__")):
        return
    if inspect.iscoroutine(result) or inspect.isgenerator(result):
        result.close()
    what = getattr(function, "__qualname__", type(function).__name__)
    msg = (
        f"{name} cannot keep what {what} returned, a {kind.__name__}: it can be used only once. Return what it yields, "
        "in a list say"
    )
    raise TypeError(msg)


__all__ = ["ALONE", "Answers", "CacheSnapshot", "Key"]
