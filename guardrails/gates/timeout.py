"""Timeout: cuts off a call that takes too long, and a stream that falls silent.

`total` limits the whole call, `first` a stream's first item, `idle` each further one. The reader's own time between two
items counts towards `total` only.

On asyncio a deadline is an entry in the loop's timer wheel (see `guardrails.core.timers`) that cancels the task, and
the cancellation is told apart from everybody else's as `asyncio.timeout` does it: by `Task.cancelling`. On trio, and
on a fake clock, it is a cancel scope around each step. Neither is ever open while a stream's reader holds an item.

Threads: a call is entered and settled by one task; the guard itself holds no state that changes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import anyio

from guardrails.core import events
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.errors import TimedOut
from guardrails.core.guard import Call, Gate, Position
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Layer
from guardrails.core.timers import TimerWheel, wheel_of


class _Ticket:
    """One call under the clock. An entry of the timer wheel while it is armed."""

    __slots__ = ("cancelling", "cut", "fired", "items", "limit", "scope", "seconds", "slot", "started", "task", "wheel")

    def __init__(self) -> None:
        self.fired = False
        self.cut = False
        self.items = 0
        self.started = 0.0
        self.limit = "total"
        self.seconds = 0.0
        self.slot = 0
        self.scope: anyio.CancelScope | None = None
        self.task: asyncio.Task[Any] | None = None
        self.wheel: TimerWheel | None = None
        self.cancelling = 0

    def expire(self) -> None:
        """The time has come (called by the wheel, on the loop)."""
        task = self.task
        if task is None:
            return
        if getattr(task, "_must_cancel", False) and self.wheel is not None:
            # Somebody else's cancellation is on its way to the task. Ours would take the place of its message, by which
            # anyio knows its own: let it arrive, and look again.
            self.wheel.add(self, 0.0)
            return
        self.fired = True
        task.cancel()


class Timeout(Layer, Gate):
    """A limit on time. Build it with `timeout(...)`, which documents the arguments."""

    interrupts = True
    positions = (Position.DEADLINE, Position.TIMEOUT)

    def __init__(
        self, total: float | None, *, first: float | None, idle: float | None, name: str, clock: Clock
    ) -> None:
        self.name = name
        self.total = total
        self.first = first
        self.idle = idle
        self._clock = clock
        self._wheel: TimerWheel | None = None  # the last one used; threads with a loop each may share the guard

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        limits = (("total", self.total), ("first", self.first), ("idle", self.idle))
        return f"timeout {self.name!r}: " + ", ".join(
            f"{word} {limit:g} s" for word, limit in limits if limit is not None
        )

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    def try_enter(self, call: Call) -> _Ticket:
        """Start the clock. Never waits."""
        ticket = _Ticket()
        if call.stream:
            ticket.started = self._clock.now()
        elif self.total is not None:
            self._arm(ticket, self.total, "total", self.total)
        return ticket

    def settle(self, ticket: _Ticket, outcome: Outcome) -> None:  # noqa: ARG002 - the contract
        """Report a call that was cut off."""
        if ticket.cut and events.sinks:
            events.emit(events.CallTimedOut(self.name, ticket.limit, ticket.seconds))

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

    def disarm(self, ticket: _Ticket, exc: BaseException | None) -> BaseException | None:
        """Stop watching; a cancellation that was ours becomes `TimedOut`."""
        if ticket.scope is not None:
            return self._close_scope(ticket, exc)
        task, ticket.task = ticket.task, None
        if task is None:
            return exc  # nothing was armed
        if not ticket.fired:
            if ticket.wheel is not None:
                ticket.wheel.remove(ticket)
            return exc
        ticket.fired = False
        # Somebody else may have cancelled the task too: then the cancellation is theirs, and stays one.
        if task.uncancel() <= ticket.cancelling and isinstance(exc, asyncio.CancelledError):
            return self._cut(ticket)
        return exc

    def _arm(self, ticket: _Ticket, seconds: float, limit: str, configured: float) -> None:
        ticket.limit = limit
        ticket.seconds = configured
        task = _current_task() if self._clock is SYSTEM_CLOCK else None
        if task is None:
            ticket.scope = self._clock.scope(seconds)
            ticket.scope.__enter__()
            return
        loop = task.get_loop()
        wheel = self._wheel
        if wheel is None or not wheel.serves(loop):
            wheel = self._wheel = wheel_of(loop)
        ticket.task = task
        ticket.cancelling = task.cancelling()
        ticket.wheel = wheel
        wheel.add(ticket, seconds)

    def _close_scope(self, ticket: _Ticket, exc: BaseException | None) -> BaseException | None:
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

    def _cut(self, ticket: _Ticket) -> TimedOut:
        ticket.cut = True
        return TimedOut(self.name, limit=ticket.limit, seconds=ticket.seconds)


def timeout(
    total: float | None = None,
    *,
    first: float | None = None,
    idle: float | None = None,
    name: str = "timeout",
    clock: Clock = SYSTEM_CLOCK,
) -> Timeout:
    """Limit the time of an async call or stream; past it, `TimedOut` (a `TimeoutError`) is raised.

    A deadline fires up to 20 ms late and never early. Sync functions are refused: nothing can interrupt them.

    Args:
        total: seconds for the whole call, or the whole stream.
        first: seconds until a stream's first item.
        idle: seconds between two items of a stream.
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
    return Timeout(total, first=first, idle=idle, name=name, clock=clock)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # trio


__all__ = ["Timeout", "timeout"]
