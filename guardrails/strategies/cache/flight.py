"""Single flight: of all callers who want the same thing at the same time, one makes the call, and all get what came.

::

    leader    ├──────── makes the call ────────┤ lands: everybody has it
    follower       ├──────── waits ────────────┤
    follower            ├──── waits ───────────┤

* A leader that is cancelled hands the flight to the follower who came first, who makes the call anew: nobody gets a
  cancellation that is not his own.
* Nobody waits for himself. A call made within a flight that wants the same thing, directly or through what other
  flights wait for, is told so (`would_wait_for_itself`) and makes its own call.

The name and the idea are Go's `golang.org/x/sync/singleflight`; handing over and the search for cycles are not in it.

Threads: everything that is shared is changed under `lock`, the same one for all caches, since flights of different
caches can wait for each other. It is held for a few dictionary operations, never across an await or a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import OrderedDict
from collections.abc import Hashable
from types import TracebackType
from typing import Any

#: Reentrant: the garbage collector may close a coroutine that leads or follows in the middle of our own code.
lock = threading.RLock()

#: The flights that the code at hand runs in, outermost first.
_led: contextvars.ContextVar[tuple[Flight, ...]] = contextvars.ContextVar("guardrails.cache.led", default=())


class Landing:
    """How a call ended, for the leader and all followers.

    Attributes:
        value: what it returned, if `error` is None.
        error: what it raised, and `trace`, its traceback at that time.
        keep: seconds that a new value is fresh; 0.0 if it is not to be kept.
        stale: if the value is an old one, why it is given; `stored` is then the time when it was new.
        failure: what went wrong, if the value is not what a good call returned: an error's class, or an outcome.
        refresh: the flight that this caller is to lead for a new one, while it gets the old one.
    """

    __slots__ = ("error", "failure", "keep", "refresh", "stale", "stored", "trace", "value")

    def __init__(
        self,
        value: Any = None,
        *,
        error: Exception | None = None,
        keep: float = 0.0,
        stale: str | None = None,
        stored: float = 0.0,
    ) -> None:
        self.value = value
        self.error = error
        self.trace = None if error is None else error.__traceback__
        self.keep = keep
        self.stale = stale
        self.stored = stored
        self.failure: str | None = None
        self.refresh: Flight | None = None


#: A follower's ticket that says: the flight is yours.
_PROMOTED = Landing()

#: A `TaskWaiter` or a `ThreadWaiter`, whose ticket is the landing.
Seat = Any


class Flight:
    """One call in flight. All of it is changed under `lock`.

    Attributes:
        key, home: what it is for, and where it flies (see `Flights`).
        refresh: whether it is to replace an entry that is stale.
        background: whether a task of its own leads it, and no caller.
        followers: who waits for it, in the order of arrival.
        waits_for: the flights that calls made within this one wait for.
    """

    __slots__ = ("_flights", "_over", "background", "followers", "home", "key", "refresh", "waits_for")

    def __init__(self, flights: Flights, key: Hashable, home: object, *, refresh: bool) -> None:
        self._flights = flights
        self.key = key
        self.home = home
        self.refresh = refresh
        self.background = False
        self.followers: OrderedDict[Seat, None] = OrderedDict()
        self.waits_for: list[Flight] = []
        self._over = False

    @property
    def current(self) -> bool:
        """Whether it is the one to be joined, and its result the one to be kept: not if it was `Flights.forget`-ed."""
        return self._flights.find(self.key, self.home) is self

    def would_wait_for_itself(self) -> bool:
        """Whether the caller, if he waited for this flight, would wait for one that he is a part of. Under `lock`."""
        mine = _led.get()
        seen = {self}
        todo = [self]
        while mine and todo:
            flight = todo.pop()
            if flight in mine:
                return True
            news = [other for other in flight.waits_for if other not in seen]
            seen.update(news)
            todo.extend(news)
        return False

    def join(self, seat: Seat) -> Following:
        """Take a seat. Under `lock`, and not if `would_wait_for_itself`."""
        self.followers[seat] = None
        return Following(self, seat)

    def land(self, landing: Landing) -> None:
        """The call has ended. Nothing happens the second time."""
        with lock:
            if self._over:
                return
            self._end()
            followers, self.followers = self.followers, OrderedDict()
        for seat in followers:
            seat.ticket = landing
            _wake(seat)

    def hand_over(self) -> None:
        """The leader goes away without a landing: the first follower leads. Without one, the flight is over."""
        with lock:
            if self._over:
                return
            if not self.followers:
                self._end()
                return
            seat, _ = self.followers.popitem(last=False)
            self.background = False
            seat.ticket = _PROMOTED
        _wake(seat)

    def _end(self) -> None:
        self._over = True
        self._flights.remove(self)


def _wake(seat: Seat) -> None:
    with contextlib.suppress(RuntimeError):  # its loop is closed, and this coroutine is finalised only now
        seat.wake()


class Leading:
    """``with Leading(flight):`` around the call. An error lands; what is no `Exception` hands the flight over."""

    __slots__ = ("_flight", "_token")

    def __init__(self, flight: Flight) -> None:
        self._flight = flight

    def __enter__(self) -> None:
        self._token = _led.set((*_led.get(), self._flight))

    def __exit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(ValueError):  # a coroutine that is finalised in another context than it ran in
            _led.reset(self._token)
        if isinstance(exc, Exception):
            self._flight.land(Landing(error=exc))
        else:
            self._flight.hand_over()  # nothing happens if it has landed


class Following:
    """``with following:`` around the wait. Afterwards `take` says how the flight ended."""

    __slots__ = ("_mine", "flight", "seat")

    def __init__(self, flight: Flight, seat: Seat) -> None:
        self.flight = flight
        self.seat = seat
        self._mine = _led.get()
        for led in self._mine:
            led.waits_for.append(flight)

    @property
    def left(self) -> bool:
        """Whether the wait ended before the flight did: its time was up. To be asked after the `with`."""
        return self.seat.ticket is None

    def take(self) -> Landing | None:
        """How it ended, or None if the flight is now led by this caller. Not if it has `left`."""
        landing: Landing = self.seat.ticket
        return None if landing is _PROMOTED else landing

    def __enter__(self) -> None:
        """Nothing: the seat is taken already."""

    def __exit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        flight, seat = self.flight, self.seat
        with lock:
            for led in self._mine:
                led.waits_for.remove(flight)
            flight.followers.pop(seat, None)
        if exc is not None and seat.ticket is _PROMOTED:
            flight.hand_over()


class Flights:
    """The flights of one cache, by home and key: callers of different event loops do not wait for each other, since
    a loop may end at any time; all threads without a loop are one home.
    """

    __slots__ = ("_homes", "_refreshes")

    def __init__(self) -> None:
        self._homes: dict[object, dict[Hashable, Flight]] = {}
        self._refreshes: dict[Hashable, Flight] = {}

    def __len__(self) -> int:
        return sum(map(len, self._homes.values()))

    def find(self, key: Hashable, home: object) -> Flight | None:
        """The flight to be joined. Under `lock`."""
        flights = self._homes.get(home)
        return None if flights is None else flights.get(key)

    def start(self, key: Hashable, home: object, *, refresh: bool = False) -> Flight:
        """A new flight. Under `lock`, and only if there is none."""
        flights = self._homes.get(home)
        if flights is None:
            # A loop that was closed with calls in flight left them here.
            for closed in [other for other in self._homes if _is_closed(other)]:
                del self._homes[closed]
            flights = self._homes[home] = {}
        flight = flights[key] = Flight(self, key, home, refresh=refresh)
        if refresh:
            self._refreshes[key] = flight
        return flight

    def refreshing(self, key: Hashable) -> bool:
        """Whether a stale entry is being replaced, in whatever home. Under `lock`."""
        flight = self._refreshes.get(key)
        return flight is not None and not _is_closed(flight.home)

    def remove(self, flight: Flight) -> None:
        """Drop a flight that is over. Under `lock`."""
        flights = self._homes.get(flight.home)
        if flights is not None and flights.get(flight.key) is flight:
            del flights[flight.key]
            if not flights:
                del self._homes[flight.home]
        if self._refreshes.get(flight.key) is flight:
            del self._refreshes[flight.key]

    def forget(self, key: Hashable) -> None:
        """Let nothing join the flights of `key` any more, and their results not be kept. Under `lock`."""
        for home, flights in tuple(self._homes.items()):
            flights.pop(key, None)
            if not flights:
                del self._homes[home]
        self._refreshes.pop(key, None)

    def clear(self) -> None:
        """`forget` them all. Under `lock`."""
        self._homes.clear()
        self._refreshes.clear()


def _is_closed(home: object) -> bool:
    return isinstance(home, asyncio.AbstractEventLoop) and home.is_closed()


def belong_to_no_flight() -> None:
    """For a task that was started within a flight and is no part of it."""
    _led.set(())


__all__ = ["Flight", "Flights", "Following", "Landing", "Leading", "belong_to_no_flight", "lock"]
