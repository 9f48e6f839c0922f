"""Admission control: how many calls may run at once, and how much memory they may take together.

A call is let in when a permit is free and::

    measured + reserved by calls in flight + this call's cost  <=  high watermark x limit

for the host, for every cgroup up the tree, and for this process and its children if `limit` is given. Otherwise it
waits: in arrival order whatever its cost, in a queue bounded by count and by time. Above the critical watermark new
calls are refused.

A reservation is held until the call is settled, so memory that the call has taken by then counts twice for that time.
That errs on the safe side.

Threads: the lock guards counts and the queue; it is never held across an await, a wake-up, a system call or user
    code. The
memory sampler's thread changes the level and wakes waiters, of any loop or thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, ParamSpec, TypeVar, overload

from guardrails.core import events
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.errors import MemoryRefused, QueueFull, Rejected, WaitTimeout
from guardrails.core.guard import Call, Gate, Position
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Layer
from guardrails.core.sizes import format_size, parse_size
from guardrails.core.waiting import TaskWaiter, ThreadWaiter, Waiter, WaitingRoom, on_event_loop
from guardrails.memory.reading import Scope, scope_reader
from guardrails.memory.sampler import MemorySampler, shared_sampler
from guardrails.memory.watermarks import Level, Watermarks

P = ParamSpec("P")
R = TypeVar("R")
Cost = Callable[..., "int | float | str"]

DEFAULT_CONCURRENCY = 64


class Admit(Layer, Gate):
    """Admission for one kind of work. Build it with `admit(...)`, which documents the arguments.

    A ticket is the number of bytes reserved for the call.
    """

    positions = (Position.ADMISSION,)

    def __init__(
        self,
        *,
        name: str,
        concurrency: int | None,
        memory: int | Cost,
        queue: int,
        max_wait: float,
        watermarks: Watermarks,
        sampler: MemorySampler,
        clock: Clock,
    ) -> None:
        self.name = name
        self.concurrency = concurrency
        self.max_wait = max_wait
        self.watermarks = watermarks
        self._max_permits = float("inf") if concurrency is None else concurrency
        self._fixed = memory if isinstance(memory, int) else None
        self._cost = None if isinstance(memory, int) else memory
        self._room: WaitingRoom[int] = WaitingRoom(queue)
        # Re-entrant: the garbage collector may finalise a guarded generator, and so settle a call, in the middle of our
        # own code.
        self._lock = threading.RLock()
        self._clock = clock
        self._in_flight = 0
        self._reserved = 0
        self._scopes: Sequence[Scope] = ()
        self._level: Level = "normal"
        self._sampler = sampler
        sampler.watch(self)

    # What it is now

    @property
    def in_flight(self) -> int:
        """Calls that run."""
        return self._in_flight

    @property
    def reserved(self) -> int:
        """Bytes reserved by the calls that run."""
        return self._reserved

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._room)

    @property
    def level(self) -> Level:
        """Memory now: ``normal``, ``high`` (new calls wait) or ``critical`` (new calls are refused)."""
        return self._level

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        limits = [] if self.concurrency is None else [f"{self.concurrency} at once"]
        if self._fixed is None:
            limits.append("memory by its arguments")
        elif self._fixed:
            limits.append(f"{format_size(self._fixed)} each")
        queue = f"{self._room.capacity} may wait for {self.max_wait:g} s"
        return f"admit {self.name!r}: {', '.join((*limits, queue))}"

    def __repr__(self) -> str:
        return f"<admit {self.name!r} {self._in_flight} in flight, {len(self._room)} waiting, memory {self._level}>"

    # The contract

    def try_enter(self, call: Call) -> int | None:
        """Let the call in if there is room and nobody waits; None if it has to wait.

        Raises:
            MemoryRefused: memory is critical, or the call can never fit.
        """
        cost = self._fixed
        if cost is None:
            cost = self._cost_of(call)
        self._sampler.wanted = True
        with self._lock:
            admitted = not self._room and self._take(cost)
            refusal = None if admitted else self._why_refuse(cost)
        if refusal is not None:
            self._refuse(refusal)
        if not admitted:
            return None
        if events.sinks:
            events.emit(events.CallAdmitted(self.name, 0.0))
        return cost

    async def enter(self, call: Call) -> int:
        """Wait for room, in arrival order, for up to `max_wait` seconds. Cancelled, it leaves nothing behind.

        Raises:
            QueueFull, WaitTimeout: there is no place in the queue, or no room in time.
        """
        cost = self._fixed if self._fixed is not None else self._cost_of(call)
        waiter = TaskWaiter(cost)
        started = self._clock.now()
        if self._join(waiter):
            return cost
        try:
            with self._clock.scope(self.max_wait):
                await waiter.wait()
        except BaseException:
            self._abandon(waiter)
            raise
        return self._after_wait(waiter, started)

    def enter_blocking(self, call: Call) -> int:
        """`enter` for sync code: blocks the thread. On an event loop's thread it refuses rather than stop the loop."""
        cost = self._fixed if self._fixed is not None else self._cost_of(call)
        if on_event_loop():
            detail = (
                "no room now, and a sync call on the event loop's thread must not wait: make it async, or use a thread"
            )
            self._refuse(QueueFull(self.name, reason="would_block", detail=detail))
        waiter = ThreadWaiter(cost)
        started = self._clock.now()
        if self._join(waiter):
            return cost
        try:
            waiter.wait(self._clock, self.max_wait)
        except BaseException:  # KeyboardInterrupt in the main thread
            self._abandon(waiter)
            raise
        return self._after_wait(waiter, started)

    def settle(self, ticket: int, outcome: Outcome) -> None:
        """Take the permit and the reservation back, and let in whoever is next."""
        with self._lock:
            self._in_flight -= 1
            self._reserved -= ticket
            granted = self._room.grant(self._take) if self._room else ()
        _wake(granted)
        if events.sinks:
            events.emit(events.CallSettled(self.name, outcome.kind))

    # The sampler's side

    def on_reading(self, scopes: Sequence[Scope]) -> None:
        """Take a new reading of memory (on the sampler's thread), and let in whom it makes room for."""
        with self._lock:
            before = self._level
            level = self.watermarks.level(before, scopes)
            self._scopes = scopes
            self._level = level
            granted = self._room.grant(self._take) if self._room else ()
        if self._room:
            self._sampler.wanted = True
        _wake(granted)
        if level != before and events.sinks:
            worst = max(scopes, key=lambda scope: scope.share, default=Scope("none", 0, 0))
            events.emit(events.MemoryPressure(self.name, level, worst.used, worst.limit))

    # Inside

    def _take(self, cost: int) -> bool:
        # Under the lock.
        if self._in_flight >= self._max_permits or self._level != "normal":
            return False
        if cost and not self.watermarks.fits(self._scopes, self._reserved + cost):
            return False
        self._in_flight += 1
        self._reserved += cost
        return True

    def _why_refuse(self, cost: int) -> Rejected | None:
        # Under the lock.
        if self._level == "critical":
            detail = "memory is critical; new calls are refused until it has fallen"
            return MemoryRefused(self.name, retry_after=1.0, detail=detail)
        if cost and not self.watermarks.can_ever_fit(self._scopes, cost):
            smallest = min(scope.limit for scope in self._scopes)
            room = format_size(self.watermarks.high * smallest)
            detail = f"the call needs {format_size(cost)}, and even alone it may have {room} at most"
            return MemoryRefused(self.name, reason="memory_too_large", detail=detail)
        return None

    def _join(self, waiter: Waiter[int]) -> bool:
        # Room may have come free since try_enter looked: then the waiter need not wait.
        with self._lock:
            if not self._room and self._take(waiter.ticket):
                return True
            full = self._room.full
            if not full:
                self._room.join(waiter)
        if full:
            detail = f"{self._room.capacity} calls wait already"
            self._refuse(QueueFull(self.name, detail=detail))
        return False

    def _after_wait(self, waiter: Waiter[int], started: float) -> int:
        others: list[Waiter[int]] = []
        with self._lock:  # until it has left the room, another thread may grant it
            late = not waiter.granted
            if late:
                others = self._withdraw(waiter)
        _wake(others)
        if late:
            detail = f"no room within {self.max_wait:g} s"
            self._refuse(WaitTimeout(self.name, detail=detail))
        if events.sinks:
            events.emit(events.CallAdmitted(self.name, self._clock.now() - started))
        return waiter.ticket

    def _abandon(self, waiter: Waiter[int]) -> None:
        with self._lock:
            if waiter.granted:
                self._in_flight -= 1
                self._reserved -= waiter.ticket
            others = self._withdraw(waiter)
        _wake(others)

    def _withdraw(self, waiter: Waiter[int]) -> list[Waiter[int]]:
        # Under the lock. The one who leaves may have been the head that a lighter call was waiting behind.
        self._room.leave(waiter)
        return self._room.grant(self._take)

    def _cost_of(self, call: Call) -> int:
        if call.args is None or call.kwargs is None:
            msg = f"{self.name}: memory is a function of the call's arguments, and a block has none; give a size"
            raise TypeError(msg)
        assert self._cost is not None  # noqa: S101 - either fixed or a function
        value: Any = self._cost(*call.args, **call.kwargs)
        return 0 if value == 0 else parse_size(value, "memory(...)")

    def _refuse(self, refusal: Rejected) -> NoReturn:
        if events.sinks:
            events.emit(events.CallRejected(self.name, refusal.reason, refusal.retry_after))
        raise refusal


def _wake(waiters: Iterable[Waiter[int]]) -> None:
    for waiter in waiters:
        waiter.wake()


@overload
def admit(fn: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def admit(
    *,
    concurrency: int | None = None,
    memory: str | float | Cost | None = None,
    queue: int | None = None,
    max_wait: float = 30,
    limit: str | float | None = None,
    watermarks: Watermarks = Watermarks(),  # noqa: B008 - frozen
    name: str | None = None,
    sampler: MemorySampler | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Admit: ...
def admit(
    fn: Callable[P, R] | None = None,
    /,
    *,
    concurrency: int | None = None,
    memory: str | float | Cost | None = None,
    queue: int | None = None,
    max_wait: float = 30,
    limit: str | float | None = None,
    watermarks: Watermarks = Watermarks(),  # noqa: B008 - frozen
    name: str | None = None,
    sampler: MemorySampler | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Admit | Callable[P, R]:
    """Admission control: `@admit` bare, or `admit(memory="300MiB", concurrency=4)`.

    Args:
        concurrency: calls that may run at once. If neither it nor `memory` is given, 64; with `memory` alone, no limit.
        memory: what one call costs: a size, or a function of the call's arguments that returns one (0: nothing).
        queue: calls that may wait; by default ten for each that may run, at most 1000. 0: nobody waits.
        max_wait: seconds that a call may wait.
        limit: bytes that this process and its children may hold together; by default only the machine's limits count.
        watermarks: the shares of a limit at which calls wait, are refused, and run again.
        name: how it calls itself in errors and events; bare, the function's name.
        sampler: where readings of memory come from, for tests.
        clock: for tests.

    Raises:
        ValueError: an argument is out of range. TypeError: it has the wrong type.
    """
    if fn is not None:
        if not callable(fn):
            msg = f"admit takes keywords only, or decorates a function; got {type(fn).__name__}"
            raise TypeError(msg)
        return admit(name=getattr(fn, "__qualname__", "admit"))(fn)
    if concurrency is None and memory is None:
        concurrency = DEFAULT_CONCURRENCY
    for argument, value, least in (("concurrency", concurrency, 1), ("queue", queue, 0)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            msg = f"{argument} takes a whole number of at least {least}, not {value!r}"
            raise ValueError(msg)
    if isinstance(max_wait, bool) or not isinstance(max_wait, int | float):
        msg = f"max_wait takes a number of seconds, not {type(max_wait).__name__}"
        raise TypeError(msg)
    if not max_wait > 0:
        msg = f"max_wait takes a number of seconds above 0, not {max_wait!r}; for no waiting at all, pass queue=0"
        raise ValueError(msg)
    if queue is None:
        queue = min(1000, 10 * (concurrency or DEFAULT_CONCURRENCY))
    if sampler is None:
        sampler = shared_sampler() if limit is None else MemorySampler(scope_reader(parse_size(limit, "limit")))
    return Admit(
        name=name or "admit",
        concurrency=concurrency,
        memory=memory if callable(memory) else 0 if memory is None else parse_size(memory, "memory"),
        queue=queue,
        max_wait=max_wait,
        watermarks=watermarks,
        sampler=sampler,
        clock=clock,
    )


__all__ = ["Admit", "admit"]
