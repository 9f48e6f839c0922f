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
    """

    __slots__ = ("error", "keep", "stale", "stored", "trace", "value")

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


#: A follower's ticket that says: the flight is yours.
_PROMOTED = Landing()

#: A `TaskWaiter` or a `ThreadWaiter`, whose ticket is the landing.
Seat = Any


class Flight:
    """One call in flight. All of it is changed under `lock`.

    Attributes:
        place: its key and home in the table.
        followers: who waits for it, in the order of arrival.
        waits_for: the flights that calls made within this one wait for.
    """

    __slots__ = ("_over", "_table", "followers", "place", "waits_for")

    def __init__(self, table: dict[Hashable, Flight], place: Hashable) -> None:
        self._table = table
        self.place = place
        self.followers: OrderedDict[Seat, None] = OrderedDict()
        self.waits_for: list[Flight] = []
        self._over = False
        table[place] = self

    @property
    def current(self) -> bool:
        """Whether it is the one to be joined, and its result the one to be kept: not if it was `Flights.forget`-ed."""
        return self._table.get(self.place) is self

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
            seat.ticket = _PROMOTED
        _wake(seat)

    def _end(self) -> None:
        self._over = True
        if self.current:
            del self._table[self.place]


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

    def take(self) -> Landing | None:
        """How it ended, or None if the flight is now led by this caller."""
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
    """The flights of one cache, by key and home: callers of different event loops do not wait for each other, since
    a loop may end at any time; all threads without a loop are one home.
    """

    __slots__ = ("_table",)

    def __init__(self) -> None:
        self._table: dict[Hashable, Flight] = {}

    def __len__(self) -> int:
        return len(self._table)

    def find(self, key: Hashable, home: object) -> Flight | None:
        """The flight to be joined. Under `lock`."""
        return self._table.get((key, home))

    def start(self, key: Hashable, home: object) -> Flight:
        """A new flight. Under `lock`, and only if there is none."""
        return Flight(self._table, (key, home))

    def forget(self, key: Hashable) -> None:
        """Let nobody join the flights of `key` any more, and their results not be kept. Under `lock`."""
        for place in [place for place in self._table if place[0] == key]:  # type: ignore[index]
            del self._table[place]

    def clear(self) -> None:
        """`forget` them all. Under `lock`."""
        self._table.clear()


__all__ = ["Flight", "Flights", "Following", "Landing", "Leading", "lock"]
