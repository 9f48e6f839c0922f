"""The guard of time: `timeout(...)` and its gate."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from guardrails.core import deadline, events, validate
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.errors import TimedOut
from guardrails.core.fixed import fixed
from guardrails.core.guard import Call, Gate, Position
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Layer
from guardrails.core.tasks import loop_here as _loop_here
from guardrails.core.tasks import task_of as _task_of
from guardrails.core.timers import BUCKET, Bucket, wheel_of
from guardrails.gates.timeout.tickets import FIRST, IDLE, LIMITS, TOTAL, Plain, Scoped, Stepped

_now = time.monotonic
_ambient = deadline.current


# Stands for "none at hand": spent, so that nothing is ever added to it.
_SPENT = Bucket()
_SPENT.until = 0.0


@fixed("clock")
class Timeout(Layer, Gate):
    """A limit on time. Build it with `timeout(...)`, which documents the arguments."""

    interrupts = True
    reads_call = False
    settles = False
    positions = (Position.DEADLINE, Position.TIMEOUT)

    def __init__(
        self,
        total: float | None,
        *,
        first: float | None,
        idle: float | None,
        ambient: bool,
        name: str,
        clock: Clock,
    ) -> None:
        self.name = name
        self._total = total
        self._first = first
        self._idle = idle
        self._ambient = ambient
        self._clock = clock
        self.now = _now if clock is SYSTEM_CLOCK else clock.now
        # The bucket of the last call: the next one mostly falls into the same 20 ms. Threads with a loop each may share
        # the guard, so a bucket knows its loop.
        self._bucket = _SPENT
        self._quick = total if clock is SYSTEM_CLOCK else None

    # Settings that can be assigned to: they hold for calls, and items of streams, that begin from then on

    @property
    def total(self) -> float | None:
        """Seconds for the whole call, or the whole stream; None for no such limit."""
        return self._total

    @total.setter
    def total(self, value: float | None) -> None:
        _check(value, self._first, self._idle)
        self._total = value
        self._quick = value if self._clock is SYSTEM_CLOCK else None

    @property
    def first(self) -> float | None:
        """Seconds until a stream's first item; None for no such limit."""
        return self._first

    @first.setter
    def first(self, value: float | None) -> None:
        _check(self._total, value, self._idle)
        self._first = value

    @property
    def idle(self) -> float | None:
        """Seconds between two items of a stream; None for no such limit."""
        return self._idle

    @idle.setter
    def idle(self, value: float | None) -> None:
        _check(self._total, self._first, value)
        self._idle = value

    @property
    def ambient(self) -> bool:
        """Whether the work inside knows what is left."""
        return self._ambient

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        limits = (("total", self._total), ("first", self._first), ("idle", self._idle))
        return f"timeout {self.name!r}: " + ", ".join(
            f"{word} {limit:g} s" for word, limit in limits if limit is not None
        )

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    def try_enter(self, call: Call) -> Plain:
        """Start the clock. Never waits."""
        quick = self._quick
        if quick is not None and not call.stream:
            loop = _loop_here()
            task = _task_of(loop)
            if loop is not None and task is not None:
                when = _now() + quick
                bucket = self._bucket
                if when >= bucket.until or bucket.loop() is not loop:
                    bucket = self._bucket_at(when, loop)
                outer = _ambient.get()
                while outer is not None and outer.until is None:  # `innermost`, without the call
                    outer = outer.parent
                if bucket is not _SPENT and (outer is None or outer.enforced):
                    ticket = Plain()
                    ticket.owner = self
                    ticket.task = task
                    ticket.cancelling = task.cancelling()
                    ticket.bucket = bucket
                    ticket.parent = outer
                    ticket.until = when
                    ticket.seconds = quick
                    bucket.entries.add(ticket)
                    if self._ambient:
                        _ambient.set(ticket)
                    return ticket
        if call.stream:
            return Stepped(self._clock, self._total)
        other = Scoped(self._clock)
        other.owner = self
        total = self._total  # read once: another thread may change it
        if total is not None:
            self._arm(other, total, TOTAL, total)
        return other

    def settle(self, ticket: Plain, outcome: Outcome) -> None:  # noqa: ARG002 - the contract
        """A stream is over. Of a plain call, `disarm` saw the end."""
        if type(ticket) is Stepped:
            ticket.end()

    def arm(self, ticket: Stepped) -> None:
        """Start to watch one item of a stream: the limit that comes first."""
        if ticket.items:
            kind, limit = IDLE, self._idle
        else:
            kind, limit = FIRST, self._first
            ticket.items = 1
        clock = self._clock
        on_system = clock is SYSTEM_CLOCK
        now = _now() if on_system else clock.now()
        until = ticket.ends
        if limit is not None and now + limit < until:
            until = now + limit
            ticket.kind = kind
        else:
            limit = ticket.total
            ticket.kind = TOTAL
        if limit is None:  # this item has no limit
            return
        ticket.seconds = limit
        if on_system:
            loop = _loop_here()
            task = _task_of(loop)
            if loop is not None and task is not None:
                shown = outer = _ambient.get()
                if outer is ticket:  # as the last step left it
                    outer = ticket.parent
                elif outer is not None:
                    outer = deadline.innermost(ticket)
                entry = ticket.entry
                if (outer is None or outer.enforced) and (
                    # Whether it will be looked at no later than `until`, on this loop.
                    (entry is not None and entry.bucket.until - BUCKET <= until and entry.bucket.loop() is loop)
                    or self._enter_wheel(ticket, loop, until)
                ):
                    if shown is not ticket or ticket.inside is not None:
                        ticket.parent = outer
                        if self._ambient:
                            _ambient.set(ticket.inside or ticket)
                    ticket.quick = True
                    ticket.until = until
                    ticket.task = task
                    ticket.cancelling = task.cancelling()
                    return
        ticket.quick = False
        self._arm(ticket, max(0.0, until - now), ticket.kind, limit)

    def _enter_wheel(self, ticket: Stepped, loop: asyncio.AbstractEventLoop, until: float) -> bool:
        wheel = wheel_of(loop)
        if wheel.monotonic:
            ticket.enter_wheel(wheel, until)
        return wheel.monotonic

    def disarm(self, ticket: Plain, exc: BaseException | None) -> BaseException | None:
        """Stop watching; a cancellation that was ours becomes `TimedOut`."""
        ticket.until = None
        if type(ticket) is Stepped:
            if self._ambient and _ambient.get() is not ticket:
                ticket.hide()
            if ticket.quick:
                ticket.quick = False
                task, ticket.task = ticket.task, None
                if not ticket.fired:
                    return exc
                ticket.fired = False
                ticket.limit = LIMITS[ticket.kind]
                return self._fired(ticket, task, exc)
        bucket = ticket.bucket
        if bucket is not None:
            ticket.bucket = ticket.task = None
            entries = bucket.entries
            entries.discard(ticket)
            if not entries and bucket is not self._bucket:
                bucket.drop()
            return exc
        task, ticket.task = ticket.task, None
        if task is None:
            return exc if ticket.scope is None else self._close_scope(ticket, exc)
        return self._fired(ticket, task, exc)

    def _fired(self, ticket: Plain, task: asyncio.Task[Any] | None, exc: BaseException | None) -> BaseException | None:
        assert task is not None  # noqa: S101 - what fires has a task
        # The task may have been cancelled from elsewhere too: that cancellation stays one. So does that of another
        # task, in which a block is left that this one entered.
        ours = task.uncancel() <= ticket.cancelling and task is _task_of(_loop_here())
        if ours and isinstance(exc, asyncio.CancelledError):
            return self._cut(ticket)
        return exc

    def _bucket_at(self, when: float, loop: asyncio.AbstractEventLoop) -> Bucket:
        # _SPENT for a loop whose time is not the machine's: there `_arm` asks the loop.
        wheel = wheel_of(loop)
        if not wheel.monotonic:
            return _SPENT
        last, self._bucket = self._bucket, wheel.bucket(when)
        if not last.entries and last.until and last is not self._bucket and last.loop() is loop:
            last.drop()
        return self._bucket

    def _arm(self, ticket: Scoped, seconds: float, kind: int, configured: float) -> None:
        outer = deadline.innermost(ticket)
        left = deadline.wait_limit(seconds)
        if left < seconds:  # an ambient deadline that nobody else enforces
            seconds = left
            kind, configured = TOTAL, left
        ticket.limit = LIMITS[kind]
        ticket.seconds = configured
        if self._ambient:
            ticket.parent = outer
            ticket.until = self._clock.now() + seconds
            if isinstance(ticket, Stepped):
                ticket.show()
            else:
                _ambient.set(ticket)
        loop = _loop_here() if self._clock is SYSTEM_CLOCK else None
        task = _task_of(loop)
        if loop is None or task is None:
            ticket.scope = self._clock.scope(seconds)
            ticket.scope.__enter__()
            return
        ticket.task = task
        ticket.cancelling = task.cancelling()
        ticket.bucket = wheel_of(loop).add(ticket, seconds)

    def _close_scope(self, ticket: Plain, exc: BaseException | None) -> BaseException | None:
        assert isinstance(ticket, Scoped)  # noqa: S101 - no other has a scope
        scope, ticket.scope = ticket.scope, None
        assert scope is not None  # noqa: S101 - the caller looked
        try:
            swallowed = scope.__exit__(
                None if exc is None else type(exc), exc, None if exc is None else exc.__traceback__
            )
        except BaseException as remaining:  # a group from which the scope took its own cancellations
            return remaining
        # trio's says True for a block that ended well, too.
        return self._cut(ticket) if swallowed and exc is not None else exc

    def _cut(self, ticket: Plain) -> TimedOut:
        limit, seconds = ticket.limit if isinstance(ticket, Scoped) else "total", ticket.seconds
        if events.sinks:
            events.emit(events.CallTimedOut(self.name, limit, seconds))
        return TimedOut(self.name, limit=limit, seconds=seconds)


def timeout(
    total: float | None = None,
    *,
    first: float | None = None,
    idle: float | None = None,
    ambient: bool = True,
    name: str = "timeout",
    clock: Clock = SYSTEM_CLOCK,
) -> Timeout:
    """Limit the time of an async call or stream; past it, `TimedOut` (a `TimeoutError`) is raised.

    A deadline fires up to 20 ms late and never early. Sync functions are refused: nothing can interrupt them.

    Args:
        total: seconds for the whole call, or the whole stream.
        first: seconds until a stream's first item.
        idle: seconds between two items of a stream.
        ambient: whether what is left is told to the work inside, as its ambient deadline (see
            `guardrails.core.deadline`): queues then refuse at once what cannot make it, and runners stop in time. Costs
            a tenth of a microsecond.
        name: how it calls itself in errors and events.
        clock: for tests.

    Raises:
        ValueError: no limit is given, or one is not above 0. TypeError: one is not a number.
    """
    _check(total, first, idle)
    return Timeout(total, first=first, idle=idle, ambient=ambient, name=name, clock=clock)


def _check(total: object, first: object, idle: object) -> None:
    if total is None and first is None and idle is None:
        msg = "timeout takes at least one of total, first and idle (seconds)"
        raise ValueError(msg)
    for argument, seconds in (("total", total), ("first", first), ("idle", idle)):
        if seconds is None:
            continue
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            msg = f"{argument} takes a number of seconds, not {type(seconds).__name__}; write @timeout(30)"
            raise TypeError(msg)
        validate.real(argument, seconds)  # a whole number may be too large for a float
        if not 0 < seconds < float("inf"):
            msg = f"{argument} takes a number of seconds above 0, not {seconds!r}"
            raise ValueError(msg)
