"""Timeout: cuts off a call that takes too long, and a stream that falls silent.

`total` limits the whole call, `first` a stream's first item, `idle` each further one. The reader's own time between two
items counts towards `total` only. What is left is the ambient deadline of the work inside (`guardrails.core.deadline`).

On asyncio a deadline is an entry in the loop's timer wheel (see `guardrails.core.timers`) that cancels the task, and
the cancellation is told apart from everybody else's as `asyncio.timeout` does it: by `Task.cancelling`. On trio, and
on a fake clock, it is a cancel scope around each step. Neither is ever open while a stream's reader holds an item.

Threads: a call is entered and settled by one task; of the guard itself only the bucket at hand changes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

import anyio

from guardrails.core import deadline, events
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.errors import TimedOut
from guardrails.core.guard import Call, Gate, Position
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Layer
from guardrails.core.timers import Bucket, wheel_of

_now = time.monotonic
_ambient = deadline.current


def _current_task(loop: object) -> asyncio.Task[Any] | None:
    return None if loop is None else asyncio.current_task()


# Before 3.12 asyncio.current_task is written in Python, and looks for the loop again.
_task_of: Callable[[object], asyncio.Task[Any] | None] = (
    _current_task if sys.version_info >= (3, 12) else asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]  # noqa: SLF001
)

_loop_here = asyncio._get_running_loop  # noqa: SLF001 - documented for framework authors, and does not raise


class _Quick:
    """A plain call under the clock on asyncio: an entry of the timer wheel, and the ambient deadline of the work.

    ``bucket`` is where it stands on the wheel: None when it fired, or is not armed.
    """

    __slots__ = ("bucket", "cancelling", "parent", "slot", "task", "until")
    enforced = True
    clock: Clock = SYSTEM_CLOCK
    scope: anyio.CancelScope | None = None

    bucket: Bucket | None
    cancelling: int
    parent: deadline.Limit | None
    slot: int
    task: asyncio.Task[Any] | None
    until: float | None

    def expire(self) -> None:
        """The time has come (called by the wheel, on the loop)."""
        task, bucket = self.task, self.bucket
        assert task is not None  # noqa: S101 - what is disarmed is off the wheel
        assert bucket is not None  # noqa: S101
        if getattr(task, "_must_cancel", False):
            # Somebody else's cancellation is on its way to the task. Ours would take the place of its message, by which
            # anyio knows its own: let it arrive, and look again.
            self.bucket = bucket.wheel.add(self, 0.0)
            return
        self.bucket = None
        task.cancel()


class _Ticket(_Quick):
    """Any other call, or a stream."""

    __slots__ = ("clock", "items", "limit", "scope", "seconds", "started")

    def __init__(self, clock: Clock) -> None:
        self.clock: Clock = clock
        self.items = 0
        self.limit = "total"
        self.seconds = 0.0
        self.started = 0.0
        self.scope: anyio.CancelScope | None = None
        self.bucket = self.parent = self.task = self.until = None


# Stands for "none at hand": spent, so that nothing is ever added to it.
_SPENT = Bucket()
_SPENT.until = 0.0


class Timeout(Layer, Gate):
    """A limit on time. Build it with `timeout(...)`, which documents the arguments."""

    interrupts = True
    reads_call = False
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
        self.total = total
        self.first = first
        self.idle = idle
        self.ambient = ambient
        self._clock = clock
        # The bucket of the last call: the next one mostly falls into the same 20 ms. Threads with a loop each may share
        # the guard, so a bucket knows its loop.
        self._bucket = _SPENT
        self._quick = total if clock is SYSTEM_CLOCK else None

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        limits = (("total", self.total), ("first", self.first), ("idle", self.idle))
        return f"timeout {self.name!r}: " + ", ".join(
            f"{word} {limit:g} s" for word, limit in limits if limit is not None
        )

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    def try_enter(self, call: Call) -> _Quick:
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
                    ticket = _Quick()
                    ticket.task = task
                    ticket.cancelling = task.cancelling()
                    ticket.bucket = bucket
                    ticket.parent = outer
                    ticket.until = when
                    bucket.add(ticket)
                    if self.ambient:
                        _ambient.set(ticket)
                    return ticket
        other = _Ticket(self._clock)
        if call.stream:
            other.started = self._clock.now()
        elif self.total is not None:
            self._arm(other, self.total, "total", self.total)
        return other

    def settle(self, ticket: _Quick, outcome: Outcome) -> None:
        """Nothing is left to do: `disarm` saw the end."""

    def arm(self, ticket: _Ticket) -> None:
        """Start to watch one item of a stream: the limit that comes first."""
        limits = [("idle", self.idle, self.idle)] if ticket.items else [("first", self.first, self.first)]
        if self.total is not None:
            limits.append(("total", self.total, max(0.0, ticket.started + self.total - self._clock.now())))
        nearest = min(
            (limit for limit in limits if limit[2] is not None), key=lambda limit: limit[2] or 0.0, default=None
        )
        ticket.items += 1
        if nearest is not None and nearest[1] is not None and nearest[2] is not None:
            self._arm(ticket, nearest[2], nearest[0], nearest[1])

    def disarm(self, ticket: _Quick, exc: BaseException | None) -> BaseException | None:
        """Stop watching; a cancellation that was ours becomes `TimedOut`."""
        ticket.until = None
        bucket = ticket.bucket
        if bucket is not None:
            ticket.bucket = ticket.task = None
            bucket.discard(ticket)
            if not bucket and bucket is not self._bucket:
                bucket.drop()
            return exc
        task, ticket.task = ticket.task, None
        if task is None:
            return exc if ticket.scope is None else self._close_scope(ticket, exc)
        # It fired. Somebody else may have cancelled the task too: then the cancellation is theirs, and stays one.
        if task.uncancel() <= ticket.cancelling and isinstance(exc, asyncio.CancelledError):
            return self._cut(ticket)
        return exc

    def _bucket_at(self, when: float, loop: asyncio.AbstractEventLoop) -> Bucket:
        # _SPENT for a loop whose time is not the machine's: there `_arm` asks the loop.
        wheel = wheel_of(loop)
        if not wheel.monotonic:
            return _SPENT
        last, self._bucket = self._bucket, wheel.bucket(when)
        if not last and last.until and last is not self._bucket and last.loop() is loop:
            last.drop()
        return self._bucket

    def _arm(self, ticket: _Ticket, seconds: float, limit: str, configured: float) -> None:
        outer = deadline.innermost(ticket)
        left = deadline.wait_limit(seconds)
        if left < seconds:  # an ambient deadline that nobody else enforces
            seconds = left
            limit, configured = "total", left
        ticket.limit = limit
        ticket.seconds = configured
        if self.ambient:
            ticket.parent = outer
            ticket.until = self._clock.now() + seconds
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

    def _close_scope(self, ticket: _Quick, exc: BaseException | None) -> BaseException | None:
        assert isinstance(ticket, _Ticket)  # noqa: S101 - no other has a scope
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

    def _cut(self, ticket: _Quick) -> TimedOut:
        limit, seconds = "total", self.total or 0.0
        if isinstance(ticket, _Ticket):
            limit, seconds = ticket.limit, ticket.seconds
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
    if total is None and first is None and idle is None:
        msg = "timeout takes at least one of total, first and idle (seconds)"
        raise ValueError(msg)
    for argument, seconds in (("total", total), ("first", first), ("idle", idle)):
        if seconds is None:
            continue
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            msg = f"{argument} takes a number of seconds, not {type(seconds).__name__}; write @timeout(30)"
            raise TypeError(msg)
        if not 0 < seconds < float("inf"):
            msg = f"{argument} takes a number of seconds above 0, not {seconds!r}"
            raise ValueError(msg)
    return Timeout(total, first=first, idle=idle, ambient=ambient, name=name, clock=clock)


__all__ = ["Timeout", "timeout"]
