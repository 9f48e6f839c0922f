"""What `timeout` hands out: a plain call, and a stream, on the wheel of an asyncio loop; and anything under a scope.

A plain call is an entry of the timer wheel itself, put there when it begins and taken off when it ends. A stream has a
limit for each item, thousands of them: its entry stays on the wheel from item to item, and when its bucket is due it
looks whether an item is late, goes on to a later bucket if not yet, and drops off if the reader holds the stream.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import anyio

from guardrails.core import deadline
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.timers import BUCKET, Bucket, TimerWheel

_ambient = deadline.current

#: Which limit a stream's item stands under.
LIMITS = ("total", "first", "idle")
TOTAL, FIRST, IDLE = range(3)


class Plain:
    """A plain call under the clock on asyncio: an entry of the timer wheel, and the ambient deadline of the work.

    ``bucket`` is where it stands on the wheel: None when it fired, or is not armed. ``seconds`` is the limit that it
    stands under: that of its guard when it began.
    """

    __slots__ = ("bucket", "cancelling", "owner", "parent", "seconds", "slot", "task", "until")
    enforced = True
    clock: Clock = SYSTEM_CLOCK
    scope: anyio.CancelScope | None = None

    bucket: Bucket | None
    cancelling: int
    owner: Any
    parent: deadline.Limit | None
    seconds: float
    slot: int
    task: asyncio.Task[Any] | None
    until: float | None

    def expire(self) -> None:
        """The time has come (called by the wheel, on the loop)."""
        task, bucket = self.task, self.bucket
        assert task is not None  # noqa: S101 - what is disarmed is off the wheel
        assert bucket is not None  # noqa: S101
        if cancel_is_pending(task):
            self.bucket = bucket.wheel.add(self, 0.0)
            return
        self.bucket = None
        task.cancel()


class Scoped(Plain):
    """A call, or an item of a stream, under a cancel scope, or on the wheel where an ambient deadline is nearer."""

    __slots__ = ("clock", "limit", "scope")

    def __init__(self, clock: Clock) -> None:
        self.clock: Clock = clock
        self.limit = "total"
        self.seconds = 0.0
        self.scope: anyio.CancelScope | None = None
        self.owner = self.bucket = self.parent = self.task = self.until = None


class Stepped(Scoped):
    """A stream. While `quick`, an item is watched by `entry`; else as `Scoped` says."""

    __slots__ = ("ends", "entry", "fired", "inside", "items", "kind", "quick", "started", "total")

    def __init__(self, clock: Clock, total: float | None) -> None:
        super().__init__(clock)
        self.started = clock.now()
        self.total = total
        self.ends = math.inf if total is None else self.started + total
        self.entry: Entry | None = None
        self.fired = False
        self.items = 0
        self.kind = TOTAL
        self.quick = False
        # What the stream's own code had set when the last step ended.
        self.inside: deadline.Limit | None = None

    def show(self) -> None:
        """A step begins: what is called in it has this deadline."""
        shown = self.inside or self
        if _ambient.get() is not shown:
            _ambient.set(shown)

    def hide(self) -> None:
        """The step is over, and its code left a limit of its own in the context: keep that for the next step.

        This ticket, which is over until then, stays in the reader's context up to the end of the stream: to set and
        reset a context variable for each item would take a third of the time that the item takes.
        """
        inside = found = _ambient.get()
        while found is not self:
            if found is None:  # finalised in another context, in the middle of a step
                return
            found = found.parent
        while inside is not None and inside is not self and inside.until is None:
            inside = inside.parent
        self.inside = None if inside is self else inside
        _ambient.set(self)

    def enter_wheel(self, wheel: TimerWheel, when: float) -> None:
        """Be watched on `wheel` until `when`."""
        self.leave_wheel()
        self.entry = Entry(self, wheel.bucket(when))

    def leave_wheel(self) -> None:
        """Be watched no longer. The entry may be on another loop's wheel: it is told, and finds out when it is due."""
        entry, self.entry = self.entry, None
        if entry is not None:
            entry.ticket = None

    def end(self) -> None:
        """The stream is over: on its own loop, where it mostly ends, nothing stays on the wheel."""
        self.inside = None
        deadline.tidy()
        entry = self.entry
        self.leave_wheel()
        if entry is not None and entry.bucket.loop() is asyncio._get_running_loop():  # noqa: SLF001
            entry.remove()


class Entry:
    """Where a stream stands on the wheel of one loop."""

    __slots__ = ("bucket", "slot", "ticket")

    def __init__(self, ticket: Stepped, bucket: Bucket) -> None:
        self.ticket: Stepped | None = ticket
        self._stand_in(bucket)

    def _stand_in(self, bucket: Bucket) -> None:
        self.bucket = bucket
        self.slot = bucket.slot
        bucket.entries.add(self)

    def remove(self) -> None:
        """Off the wheel."""
        entries = self.bucket.entries
        entries.discard(self)
        if not entries:
            self.bucket.drop()

    def expire(self) -> None:
        """Its bucket is due (called by the wheel, on the loop)."""
        ticket = self.ticket
        if ticket is None:
            return
        task, until, wheel = ticket.task, ticket.until, self.bucket.wheel
        if task is None or until is None:  # the reader holds the stream
            ticket.leave_wheel()
        elif until >= self.slot * BUCKET:
            self._stand_in(wheel.bucket(until))
        elif cancel_is_pending(task):
            self.bucket = wheel.add(self, 0.0)
        else:
            ticket.leave_wheel()
            ticket.fired = True
            task.cancel()


def cancel_is_pending(task: asyncio.Task[Any]) -> bool:
    """Whether somebody else's cancellation is on its way to the task.

    Ours would take the place of its message, by which anyio knows its own: let it arrive, and look again.
    """
    return bool(getattr(task, "_must_cancel", False))
