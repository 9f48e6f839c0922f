"""Admission control: how many calls may run at once, and how much memory they may take together.

A call is let in when a permit is free and::

    measured + reserved by calls in flight + this call's cost  <=  high watermark x limit

for the host, for every cgroup up the tree, and for this process and its children if `limit` is given. Otherwise it
waits, in a queue bounded by count, by time and by the wait to be expected. Above the critical watermark new calls are
refused, and those that wait are sent away: what they hold is memory too.

A reservation is held until the call is settled, so memory that the call has taken by then counts twice for that time.
That errs on the safe side.

Where all calls cost the same, each reading of memory says how many of them fit, and a call takes one of so many
permits; else costs are added up under the lock (see `guardrails.core.permits`).

Threads: as `guardrails.core.turnstile` says. The memory sampler's thread changes the level and wakes waiters, of any
loop or thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar, overload

from guardrails.core import events, validate
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.errors import MemoryRefused, Rejected
from guardrails.core.fixed import fixed
from guardrails.core.guard import Call
from guardrails.core.outcome import Outcome
from guardrails.core.permits import Ledger, Permits
from guardrails.core.pipeline import Layer
from guardrails.core.queue_options import Key, Priority, check_options
from guardrails.core.sizes import format_size, parse_size
from guardrails.core.turnstile import Held, Turnstile
from guardrails.core.waiting import Waiter, wake
from guardrails.gates.concurrency import Aimd, Gradient
from guardrails.gates.memory_cost import Charge, CostBook, Learned, size_class
from guardrails.memory.reading import Scope
from guardrails.memory.sampler import NO_LIMIT, MemorySampler, shared_sampler
from guardrails.memory.watermarks import Level, Watermarks

P = ParamSpec("P")
R = TypeVar("R")
Cost = Callable[..., "int | float | str"]

DEFAULT_CONCURRENCY = 64
#: Stands for "as many as memory has room for".
_UNLIMITED = 1 << 40


@fixed("priority", "aging", "key", "sampler", "clock")
class Admit(Layer, Turnstile):
    """Admission for one kind of work. Build it with `admit(...)`, which documents the arguments."""

    def __init__(
        self,
        *,
        name: str,
        concurrency: int | Aimd | Gradient | None,
        memory: int | Cost | Learned,
        queue: int,
        max_wait: float,
        priority: float | Priority,
        aging: float,
        key: Key | None,
        limit: int | None,
        watermarks: Watermarks,
        sampler: MemorySampler,
        clock: Clock,
    ) -> None:
        self._concurrency = concurrency
        self._watermarks = watermarks
        self._memory = memory
        self._fixed = memory if isinstance(memory, int) else None
        self._learned = memory if isinstance(memory, Learned) else None
        self._book = None if self._learned is None else CostBook(self._learned)
        self._cost = memory if callable(memory) else None
        self.reads_call = self._cost is not None or (self._learned is not None and self._learned.size is not None)
        self._tree_limit = limit
        self._scopes: Sequence[Scope] = ()
        self._headroom = 0  # bytes that calls may reserve together
        self._level: Level = "normal"
        # The cost of a call that has to wait, from try_enter to enter: by thread, for they follow at once.
        self._asked: dict[int, tuple[Call, int]] = {}
        super().__init__(
            name=name,
            books=Ledger(0, self._fits) if self._fixed is None else Permits(0, self._fixed),
            limiter=concurrency.start() if isinstance(concurrency, Aimd | Gradient) else None,
            queue=queue,
            max_wait=max_wait,
            priority=priority,
            aging=aging,
            key=key,
            clock=clock,
            noted=self._learned is not None,
            demand=sampler,
        )
        self._sampler = sampler
        sampler.watch(self)

    # Settings that can be assigned to

    @property
    def concurrency(self) -> int | Aimd | Gradient | None:
        """Calls that may run at once, how that is found, or None for no limit but memory. Can be assigned to.

        More lets in at once those that find room; less lets those finish that run.
        """
        return self._concurrency

    @concurrency.setter
    def concurrency(self, value: int | Aimd | Gradient | None) -> None:
        _check_concurrency(value)
        adaptive = value.start() if isinstance(value, Aimd | Gradient) else None

        def change() -> None:
            self._concurrency = value
            self._adapt(adaptive)

        self._resize(change)

    @property
    def memory(self) -> int | Cost | Learned:
        """What a call costs: bytes, a function of its arguments, or how that is learned.

        Can be assigned to, what is of the same kind: a size to a guard that was built with a size (or without memory),
        a function to one with a function. It holds for calls that come from now on; those that run keep what they have
        reserved, except that of equal sizes all count as the new one.
        """
        return self._memory

    @memory.setter
    def memory(self, value: str | float | Cost | Learned | None) -> None:
        if self._learned is not None:
            msg = f"{self.name}: memory is learned, which cannot be changed: build another guard"
            raise AttributeError(msg)
        if self._cost is not None:
            if not callable(value):
                msg = f"{self.name}: memory must be a function of the call's arguments here, as before"
                raise TypeError(msg)
            self._cost = self._memory = value
            return
        if callable(value) or isinstance(value, Learned) or value == "learned":
            msg = f"{self.name}: memory must be a size here, as before; for another kind, build another guard"
            raise TypeError(msg)
        size = 0 if value is None else parse_size(value, "memory")

        def change() -> None:
            self._fixed = self._memory = size
            if isinstance(self._books, Permits):
                self._books.permit = size

        self._resize(change)

    @property
    def watermarks(self) -> Watermarks:
        """The shares of a limit at which calls wait, are refused, and run again."""
        return self._watermarks

    # What it is now

    @property
    def reserved(self) -> int:
        """Bytes reserved by the calls that run."""
        return self._books.reserved

    @property
    def level(self) -> Level:
        """Memory now: ``normal``, ``high`` (new calls wait) or ``critical`` (new calls are refused)."""
        return self._level

    @property
    def limit(self) -> int | None:
        """Calls that may run at once as far as `concurrency` goes, or None for no limit. An adaptive one moves."""
        if self._limiter is not None:
            return self._limiter.limit
        return self._concurrency if isinstance(self._concurrency, int) else None

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        limits = []
        if isinstance(self._concurrency, int):
            limits.append(f"{self._concurrency} at once")
        elif self._concurrency is not None:
            adaptive = self._concurrency
            limits.append(f"{adaptive.minimum} to {adaptive.maximum} at once by {type(adaptive).__name__}")
        if self._learned is not None:
            limits.append("memory as learned")
        elif self._fixed is None:
            limits.append("memory by its arguments")
        elif self._fixed:
            limits.append(f"{format_size(self._fixed)} each")
        queue = f"{self.queue} may wait for {self.max_wait:g} s"
        return f"admit {self.name!r}: {', '.join((*limits, queue))}"

    def __repr__(self) -> str:
        return f"<admit {self.name!r} {self.in_flight} in flight, {self.waiting} waiting, memory {self._level}>"

    # The sampler's side

    def on_reading(self, scopes: Sequence[Scope]) -> None:
        """Take a new reading of memory (on the sampler's thread), and let in whom it makes room for."""
        dismissed: list[Waiter[int]] = []
        if self._tree_limit is not None:
            scopes = tuple(
                replace(scope, limit=self._tree_limit) if scope.name == "processes" else scope for scope in scopes
            )
        with self._lock:
            before = self._level
            level = self._watermarks.level(before, scopes)
            self._scopes = scopes
            self._level = level
            if self._book is not None:
                self._book.reading(sum(scope.used for scope in scopes if scope.name == "processes"))
            self._fit()
            if level == "critical":
                dismissed = self._room.dismiss()
                for waiter in dismissed:
                    waiter.refusal = self._critical()
            granted = self._grant()
        if self._waiting:
            self._sampler.wanted = True
        wake(granted)
        wake(dismissed)
        if level != before and events.sinks:
            worst = max(scopes, key=lambda scope: scope.share, default=Scope("none", 0, 0))
            events.emit(events.MemoryPressure(self.name, level, worst.used, worst.limit))

    # Inside

    def _fit(self) -> None:
        size = self.limit
        most = _UNLIMITED if size is None else size
        if self._level != "normal":
            most = 0
        elif self._fixed:
            most = self._watermarks.room(self._scopes, self._fixed, most)
        self._books.resize(most)
        if self._fixed is None:
            self._headroom = self._watermarks.room(self._scopes, 1, NO_LIMIT)

    def _fits(self, nbytes: int) -> bool:
        return nbytes <= self._headroom

    def _critical(self) -> MemoryRefused:
        detail = "memory is critical; new calls are refused until it has fallen"
        return MemoryRefused(self.name, retry_after=1.0, detail=detail)

    def _why_refuse(self, cost: int) -> Rejected | None:
        if self._level == "critical":
            return self._critical()
        if cost and not self._watermarks.can_ever_fit(self._scopes, cost):
            smallest = min(scope.limit for scope in self._scopes)
            room = format_size(self._watermarks.high * smallest)
            detail = f"the call needs {format_size(cost)}, and even alone it may have {room} at most"
            return MemoryRefused(self.name, reason="memory_too_large", detail=detail)
        return None

    def _cost_of(self, call: Call) -> int:
        if self._fixed is not None:
            return self._fixed
        if self._book is not None:
            group = self._group(call)
            with self._lock:
                return self._book.cost(group)
        if call.args is None or call.kwargs is None:
            msg = f"{self.name}: memory is a function of the call's arguments, and a block has none; give a size"
            raise TypeError(msg)
        assert self._cost is not None  # noqa: S101 - fixed, learned, or a function
        value: Any = self._cost(*call.args, **call.kwargs)
        if type(value) is int and 0 <= value < _UNLIMITED:
            return value
        is_zero = isinstance(value, int | float) and not isinstance(value, bool) and value == 0
        return 0 if is_zero else parse_size(value, f"{self.name}: memory(...)")

    def _must_wait(self, call: Call, cost: int) -> None:
        if self._fixed is None:
            self._asked[threading.get_ident()] = call, cost

    def _cost_again(self, call: Call) -> int:
        asked = self._asked.pop(threading.get_ident(), None)
        return asked[1] if asked is not None and asked[0] is call else self._cost_of(call)

    def _group(self, call: Call) -> int:
        size = None if self._learned is None else self._learned.size
        if size is None or call.args is None:
            return 0
        return size_class(validate.finite(f"{self.name}: size(...)", size(*call.args, **(call.kwargs or {}))))

    def _issued(self, ticket: Held) -> None:
        if self._book is not None and isinstance(ticket.cost, Charge):
            with self._lock:
                ticket.note = self._book.begin(ticket.cost.group)

    def _ended(self, ticket: Held, running: int, outcome: Outcome) -> None:
        if self._book is not None:
            self._book.end(ticket.note)
        super()._ended(ticket, running, outcome)


@overload
def admit(fn: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def admit(
    *,
    concurrency: int | Aimd | Gradient | None = None,
    memory: str | float | Cost | Learned | None = None,
    queue: int | None = None,
    max_wait: float = 30,
    priority: float | Priority = 0,
    aging: float = 10,
    key: Key | None = None,
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
    concurrency: int | Aimd | Gradient | None = None,
    memory: str | float | Cost | Learned | None = None,
    queue: int | None = None,
    max_wait: float = 30,
    priority: float | Priority = 0,
    aging: float = 10,
    key: Key | None = None,
    limit: str | float | None = None,
    watermarks: Watermarks = Watermarks(),  # noqa: B008 - frozen
    name: str | None = None,
    sampler: MemorySampler | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Admit | Callable[P, R]:
    """Admission control: `@admit` bare, or `admit(memory="300MiB", concurrency=4)`.

    Args:
        concurrency: calls that may run at once, or `Aimd(...)` or `Gradient(...)` to have it found (see
            `guardrails.gates.concurrency`). If neither it nor `memory` is given, 64; with `memory` alone, no limit.
        memory: what one call costs: a size, a function of the call's arguments that returns one (0: nothing), or
            ``"learned"`` or `Learned(...)` (see `guardrails.gates.memory_cost`).
        queue: calls that may wait; by default ten for each that may run, at most 1000. 0: nobody waits.
        max_wait: seconds that a call may wait. One that would have to wait longer, by the pace at which calls are let
            in, or longer than its ambient deadline allows, is refused at once.
        priority: who is let in first, a lower number before a higher one: a number for all calls, or a function of the
            call's arguments. For blocks a function means 0.
        aging: seconds of waiting that count as one step of priority, so that nothing starves.
        key: a function of the call's arguments that says whose call it is: the waiting calls of the same priority are
            let in in turn between keys. None: in arrival order.
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
    at_once = _check_concurrency(concurrency)
    queue = check_options(
        queue=queue,
        max_wait=max_wait,
        priority=priority,
        aging=aging,
        key=key,
        at_once=at_once or DEFAULT_CONCURRENCY,
    )
    if memory == "learned":
        memory = Learned()
    if not isinstance(memory, Learned) and not callable(memory):
        memory = 0 if memory is None else parse_size(memory, "memory")
    most = None if limit is None else parse_size(limit, "limit")
    if sampler is None:
        sampler = shared_sampler(tree=most is not None or isinstance(memory, Learned))
    return Admit(
        name=name or "admit",
        concurrency=concurrency,
        memory=memory,
        queue=queue,
        max_wait=max_wait,
        priority=priority,
        aging=aging,
        key=key,
        limit=most,
        watermarks=watermarks,
        sampler=sampler,
        clock=clock,
    )


def _check_concurrency(concurrency: int | Aimd | Gradient | None) -> int | None:
    """The most calls that may ever run at once; None for no limit."""
    at_once = concurrency.maximum if isinstance(concurrency, Aimd | Gradient) else concurrency
    if at_once is not None and (not isinstance(at_once, int) or isinstance(at_once, bool) or at_once < 1):
        msg = f"concurrency takes a whole number of at least 1, Aimd(...) or Gradient(...), not {concurrency!r}"
        raise ValueError(msg)
    return at_once


__all__ = ["Admit", "Aimd", "Gradient", "Learned", "admit"]
