"""A turnstile: so many calls at once, the others wait. What `admit` and `bulkhead` have in common.

::

    try_enter ──▶ a permit is free and nobody waits ──▶ in            (no lock, no clock)
        │ None
        ▼
    enter ──▶ the waiting room: bounded by count, by time, and by the wait that is to be expected ──▶ in, or Rejected

A permit that comes back goes to the head of the waiting room, never to a newcomer.

Threads: the fast path pops a permit from a list, and settling appends it; both are atomic. Then settling looks whether
somebody waits, while whoever joins the room announces himself *before* he looks for a permit once more: one of the two
sees the other, so no wake-up is lost. Everything else happens under a lock that is never held across an await, a
wake-up, a system call or user code. It is re-entrant: the garbage collector may finalise a guarded generator, and so
settle a call, in the middle of our own code.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, NoReturn, Protocol

from guardrails.core import events, validate
from guardrails.core.clock import Clock
from guardrails.core.deadline import remaining, wait_limit
from guardrails.core.errors import QueueFull, Rejected, WaitTimeout
from guardrails.core.guard import Call, Gate, Position
from guardrails.core.outcome import Outcome
from guardrails.core.permits import Ledger, Permits
from guardrails.core.queue_options import Key, Priority, check_max_wait, rank_of
from guardrails.core.service_rate import ServiceRate
from guardrails.core.waiting import FairRoom, TaskWaiter, ThreadWaiter, Waiter, on_event_loop, wake


class Limiter(Protocol):
    """Decides how many calls may run at once, from how those that ran fared. Called under the turnstile's lock."""

    limit: int

    def ended(self, started: float, now: float, running: int, outcome: Outcome) -> int:
        """A call ended; `running` were in, itself included. Returns the limit from now on."""
        ...


_OUT_OF_TIME = Outcome("failure", TimeoutError())


class Held:
    """The ticket of a call whose end matters: for an adaptive limit, or for its own cost."""

    __slots__ = ("cost", "note", "started")

    def __init__(self, cost: int, started: float | None) -> None:
        self.cost = cost
        self.started = started
        self.note: Any = None


class _Demand:
    """Takes the mark that a call has come in where nobody reads it."""

    wanted = False


class Turnstile(Gate):
    """See the module. A subclass may give calls a cost (`_cost_of`), and refuse what could wait (`_why_refuse`).

    Args:
        name: how it calls itself in errors and events.
        books: who is in.
        limiter: adapts the books' size, or None.
        queue: calls that may wait.
        max_wait: seconds that a call may wait.
        priority: a number, lower first, or a function of the call's arguments.
        aging: seconds of waiting that count as one step of priority.
        key: a function of the call's arguments: whose call it is. None: everybody's are one.
        noted: whether a subclass wants a `Held` for each call, to note something on.
        demand: whose `wanted` is set to True by each call.
        clock: time.
    """

    positions = (Position.ADMISSION,)
    reads_call = False

    def __init__(
        self,
        *,
        name: str,
        books: Permits | Ledger,
        limiter: Limiter | None,
        queue: int,
        max_wait: float,
        priority: float | Priority,
        aging: float,
        key: Key | None,
        clock: Clock,
        noted: bool = False,
        demand: Any = None,
    ) -> None:
        self.name = name
        self._max_wait = max_wait
        self._books = books
        self._free = books.free
        self._noted = limiter is not None or noted
        self._locked = self._noted or isinstance(books, Ledger)
        self._limiter = limiter
        self._room: FairRoom[int] = FairRoom(queue, aging=aging)
        self._waiting = 0
        self._rate = ServiceRate()
        self.reads_call = self.reads_call or callable(priority) or key is not None
        self._priority = priority
        self._key = key
        self._aging = aging
        self._lock = threading.RLock()
        self._clock = clock
        self._demand = demand or _Demand()
        self._granting = False
        self._again = False

    # Settings that can be assigned to

    @property
    def queue(self) -> int:
        """Calls that may wait. A lower number sends none of those away that wait already."""
        return self._room.capacity

    @queue.setter
    def queue(self, value: int) -> None:
        self._room.capacity = validate.whole("queue", value)

    @property
    def max_wait(self) -> float:
        """Seconds that a call may wait. Those that wait already keep the time that they were given."""
        return self._max_wait

    @max_wait.setter
    def max_wait(self, value: float) -> None:
        self._max_wait = check_max_wait(value)

    # What it is now

    @property
    def in_flight(self) -> int:
        """Calls that run."""
        return self._books.in_use

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return self._waiting

    @property
    def limit(self) -> int | None:
        """Calls that may run at once now, or None for no limit. An adaptive limit moves."""
        size = self._books.size if self._limiter is None else self._limiter.limit
        return None if size == float("inf") else int(size)

    # The contract

    def try_enter(self, call: Call) -> int | Held | None:
        """Let the call in if there is room and nobody waits; None if it has to wait."""
        self._demand.wanted = True
        if self._free and not self._waiting:
            try:
                ticket = self._free.pop()
            except IndexError:  # another thread was faster
                return self._look(call)
            if self._noted:
                return self._admitted(ticket, 0.0)
            if events.sinks:
                events.emit(events.CallAdmitted(self.name, 0.0))
            return ticket
        return self._look(call)

    def settle(self, ticket: int | Held, outcome: Outcome) -> None:
        """Take the permit back, and let in whoever is next."""
        books = self._books
        if self._locked or books.spare < 0:
            with self._lock:
                running = books.in_use
                books.give(ticket.cost if isinstance(ticket, Held) else ticket)
                if isinstance(ticket, Held):
                    self._ended(ticket, running, outcome)
        else:
            self._free.append(ticket)  # type: ignore[arg-type]
        if self._waiting:
            self._pump()
        if events.sinks:
            events.emit(events.CallSettled(self.name, outcome.kind))

    async def enter(self, call: Call) -> int | Held:
        """Wait for room for up to `max_wait` seconds. Cancelled, it leaves nothing behind.

        Raises:
            QueueFull: there is no place in the queue, or the wait would be longer than the call may wait.
            WaitTimeout: there was no room in time.
        """
        waiter: TaskWaiter[int] = TaskWaiter(self._cost_again(call))
        started = self._clock.now()
        if self._join(waiter, call, started):
            return self._admitted(waiter.ticket, 0.0)
        try:
            with self._clock.scope(wait_limit(self._max_wait)):
                await waiter.wait()
        except BaseException:
            self._abandon(waiter)
            raise
        return self._after_wait(waiter, started)

    def enter_blocking(self, call: Call) -> int | Held:
        """`enter` for sync code: blocks the thread. On an event loop's thread it refuses rather than stop the loop."""
        cost = self._cost_again(call)
        if on_event_loop():
            detail = (
                "no room now, and a sync call on the event loop's thread must not wait: make it async, or use a thread"
            )
            self._refuse(QueueFull(self.name, reason="would_block", detail=detail))
        waiter: ThreadWaiter[int] = ThreadWaiter(cost)
        started = self._clock.now()
        if self._join(waiter, call, started):
            return self._admitted(cost, 0.0)
        left = remaining()  # nobody interrupts a thread: every deadline counts
        try:
            waiter.wait(self._clock, self._max_wait if left is None else min(left, self._max_wait))
        except BaseException:  # KeyboardInterrupt in the main thread
            self._abandon(waiter)
            raise
        return self._after_wait(waiter, started)

    # What a subclass may change

    def _cost_of(self, call: Call) -> int:  # noqa: ARG002
        return 0

    def _must_wait(self, call: Call, cost: int) -> None:
        """`enter` comes next for this call, on this thread: keep what is needed."""

    def _cost_again(self, call: Call) -> int:
        """The cost of the call that `try_enter` has just looked at."""
        return self._cost_of(call)

    def _why_refuse(self, cost: int) -> Rejected | None:  # noqa: ARG002
        """Why the call is refused though it might wait; under the lock."""
        return None

    def _issued(self, ticket: Held) -> None:
        """A call with a noted ticket is in."""

    def _ended(self, ticket: Held, running: int, outcome: Outcome) -> None:
        """A call with a noted ticket ended, and `running` were in with it; under the lock."""
        if self._limiter is not None and ticket.started is not None:
            if outcome.kind == "ignored" and remaining() == 0.0:  # a deadline further out cancelled it
                outcome = _OUT_OF_TIME
            before = self._limiter.limit
            if self._limiter.ended(ticket.started, self._clock.now(), running, outcome) != before:
                self._fit()

    def _resize(self, change: Callable[[], None]) -> None:
        """Change what the queue's room depends on, under the lock, and let in those that find room now.

        Those that are in stay in, even if they are too many.
        """
        with self._lock:
            change()
            self._fit()
            granted = self._grant()
        wake(granted)

    def _adapt(self, limiter: Limiter | None) -> None:
        """Have another adaptive limit, or none; under the lock.

        Tickets are settled as what they are: those of calls that came before the first adaptive limit say nothing of
        when they began, and teach it nothing.
        """
        self._limiter = limiter
        if limiter is not None:
            self._noted = self._locked = True

    def _fit(self) -> None:
        """Give the books the size that they should have now; under the lock."""
        if self._limiter is not None:
            self._books.resize(self._limiter.limit)

    # Inside

    def _look(self, call: Call) -> int | Held | None:
        cost = self._cost_of(call)
        with self._lock:
            admitted = not self._room and self._books.take(cost)
            refusal = None if admitted else self._why_refuse(cost)
        if refusal is not None:
            self._refuse(refusal)
        if admitted:
            return self._admitted(cost, 0.0)
        self._must_wait(call, cost)
        return None

    def _admitted(self, cost: int, waited: float) -> int | Held:
        ticket: int | Held = cost
        if self._noted:
            ticket = Held(cost, None if self._limiter is None else self._clock.now())
            self._issued(ticket)
        if events.sinks:
            events.emit(events.CallAdmitted(self.name, waited))
        return ticket

    def _join(self, waiter: Waiter[int], call: Call, now: float) -> bool:
        """Into the room; True if a permit has come free since `try_enter` looked, and the call is in already."""
        number, whose = self._rank(call)
        granted: list[Waiter[int]] = []
        with self._lock:
            if not self._room and self._books.take(waiter.ticket):
                return True
            refusal = self._no_place(now, number, whose)
            if refusal is None:
                was_empty = not self._room
                self._room.join(waiter, now=now, priority=number, key=whose)
                if was_empty:
                    self._rate.began(now)
                self._waiting = len(self._room)
                # From now on a call that is settled sees us. One that was settled a moment ago did not.
                granted = self._grant()
        if refusal is not None:
            self._refuse(refusal)
        wake(granted)
        return False

    def _rank(self, call: Call) -> tuple[float, Hashable]:
        return rank_of(self.name, call.args, call.kwargs, priority=self._priority, key=self._key, aging=self._aging)

    def _no_place(self, now: float, priority: float, key: Hashable) -> Rejected | None:
        # Under the lock.
        waiting = len(self._room)
        interval = self._rate.interval(now)
        if self._room.full:
            detail = f"{self._room.capacity} calls wait already"
            return QueueFull(self.name, detail=detail, retry_after=interval)
        if not waiting or not interval:  # the first in the queue always may wait: its wait is the next measurement
            return None
        left = remaining()
        patience = self._max_wait if left is None else min(left, self._max_wait)
        if (waiting + 1) * interval <= patience:
            return None
        ahead = self._room.ahead(now=now, priority=priority, key=key)
        wait = (ahead + 1) * interval
        if wait <= patience:
            return None
        detail = f"{ahead} calls are before this one: about {wait:.3g} s, and it may wait for {patience:.3g} s"
        return QueueFull(self.name, reason="wait_too_long", detail=detail, retry_after=max(interval, wait - patience))

    def _after_wait(self, waiter: Waiter[int], started: float) -> int | Held:
        now = self._clock.now()
        with self._lock:  # until it has left the room, another thread may grant it
            granted = waiter.granted
            others = [] if granted else self._withdraw(waiter)
            retry_after = None if granted else self._rate.wait(len(self._room), now)
        wake(others)
        if not granted:
            detail = f"no room within {now - started:.3g} s"
            self._refuse(waiter.refusal or WaitTimeout(self.name, detail=detail, retry_after=retry_after))
        return self._admitted(waiter.ticket, now - started)

    def _abandon(self, waiter: Waiter[int]) -> None:
        with self._lock:
            if waiter.granted:
                self._books.give(waiter.ticket)
            others = self._withdraw(waiter)
        wake(others)

    def _withdraw(self, waiter: Waiter[int]) -> list[Waiter[int]]:
        # Under the lock. The one who leaves may have been the head that a lighter call was waiting behind.
        self._room.leave(waiter)
        return self._grant()

    def _pump(self) -> None:
        """Let in whoever is next."""
        with self._lock:
            granted = self._grant()
        wake(granted)

    def _grant(self) -> list[Waiter[int]]:
        # Under the lock. Those who are granted are to be woken outside it.
        if self._granting:  # the garbage collector settled a call in the middle of this: look again when back there
            self._again = True
            return []
        granted: list[Waiter[int]] = []
        self._granting = True
        try:
            if self._room:
                now = self._clock.now()
                granted = self._room.grant(self._books.take, now)
                if granted:
                    self._rate.granted(now, len(granted), len(self._room))
        finally:
            self._granting = False
        self._waiting = len(self._room)
        if self._again:
            self._again = False
            granted += self._grant()
        return granted

    def _refuse(self, refusal: Rejected) -> NoReturn:
        if events.sinks:
            events.emit(events.CallRejected(self.name, refusal.reason, refusal.retry_after))
        raise refusal
