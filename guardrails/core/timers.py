"""A timer wheel: one event-loop timer for all deadlines of a loop, whatever their number.

`loop.call_at` per call costs a heap entry that stays, cancelled, until its time has passed. Here a deadline is an
entry in the bucket of its 20 ms slot, and removing it is a set operation that leaves nothing behind. A deadline fires
up to one bucket late and never early. (The idea: Varghese and Lauck, "Hashed and hierarchical timing wheels", 1987.)

asyncio only (uvloop included); on trio a deadline is a cancel scope, which trio keeps cheaply itself. A wheel belongs
to one loop and is touched by that loop's thread alone.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from typing import Any, Protocol

BUCKET = 0.02

_now = time.monotonic


class Deadline(Protocol):
    """An entry of the wheel. `slot` is the wheel's own mark; `expire` is called on the loop when the time has come."""

    slot: int

    def expire(self) -> None: ...


class Bucket:
    """The deadlines of one slot. All of them fire after `until`, a time of the loop; 0.0 once the bucket is spent."""

    __slots__ = ("entries", "loop", "slot", "until", "wheel")

    #: Held and not inherited from: a plain set is twice as fast.
    entries: set[Deadline]
    slot: int
    until: float
    wheel: TimerWheel
    loop: weakref.ref[asyncio.AbstractEventLoop]

    def __init__(self) -> None:
        self.entries = set()

    def drop(self) -> None:
        """Forget this bucket, which is empty."""
        self.until = 0.0
        if self.wheel._buckets.get(self.slot) is self:  # noqa: SLF001 - the wheel's own
            del self.wheel._buckets[self.slot]  # noqa: SLF001


class TimerWheel:
    """All deadlines of one event loop.

    Attributes:
        monotonic: whether the loop's time is `time.monotonic`: asyncio's and uvloop's is, a test's own loop may differ.
    """

    __slots__ = ("__weakref__", "_buckets", "_handle", "_handle_slot", "_loop", "monotonic")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Weak, as is the timer, which holds its loop: the wheel is a value in a dictionary whose weak key is the loop.
        self._loop = weakref.ref(loop)
        self._buckets: dict[int, Bucket] = {}
        self._handle: weakref.ref[asyncio.TimerHandle] | None = None
        self._handle_slot = 0
        kind = type(loop)
        self.monotonic = (
            getattr(kind, "time", None) is asyncio.BaseEventLoop.time or kind.__module__.partition(".")[0] == "uvloop"
        )

    def __len__(self) -> int:
        return sum(len(bucket.entries) for bucket in self._buckets.values())

    def bucket(self, when: float) -> Bucket:
        """The bucket for deadlines at `when`, a time of the loop; who adds to it removes from it."""
        slot = int(when / BUCKET) + 1
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._buckets[slot] = Bucket()
            bucket.slot, bucket.until, bucket.wheel, bucket.loop = slot, slot * BUCKET, self, self._loop
            if self._handle is None or slot < self._handle_slot:
                self._set_timer(slot)
        return bucket

    def add(self, deadline: Deadline, seconds: float) -> Bucket:
        """Have `deadline.expire()` called in `seconds`, up to 20 ms late. Returns its bucket."""
        now = self._alive().time()
        if self.monotonic:
            now = max(now, _now())  # uvloop's time is that of the turn's beginning
        bucket = self.bucket(now + seconds)
        deadline.slot = bucket.slot
        bucket.entries.add(deadline)
        return bucket

    def remove(self, deadline: Deadline) -> None:
        """Forget a deadline. Nothing happens if it has fired or was removed."""
        bucket = self._buckets.get(deadline.slot)
        if bucket is not None:
            bucket.entries.discard(deadline)
            if not bucket.entries:
                bucket.drop()

    def _alive(self) -> asyncio.AbstractEventLoop:
        loop = self._loop()
        assert loop is not None  # noqa: S101 - who calls runs on it
        return loop

    def _set_timer(self, slot: int) -> None:
        handle = None if self._handle is None else self._handle()
        if handle is not None:
            handle.cancel()
        self._handle_slot = slot
        self._handle = weakref.ref(self._alive().call_at(slot * BUCKET, self._tick))

    def _tick(self) -> None:
        self._handle = None
        # A loop may call a timer up to its clock's resolution early: the slot that the timer was set for is due by
        # definition.
        due = max(int(self._alive().time() / BUCKET), self._handle_slot)
        for slot in sorted(slot for slot in self._buckets if slot <= due):
            bucket = self._buckets.pop(slot)
            bucket.until = 0.0  # whoever keeps it at hand must not add to it any more
            for deadline in bucket.entries:
                deadline.expire()
        if self._buckets:
            self._set_timer(min(self._buckets))


_wheels: weakref.WeakKeyDictionary[Any, TimerWheel] = weakref.WeakKeyDictionary()


def wheel_of(loop: asyncio.AbstractEventLoop) -> TimerWheel:
    """The wheel of `loop`, made on first use. It goes away with its loop."""
    wheel = _wheels.get(loop)
    if wheel is None:
        wheel = _wheels[loop] = TimerWheel(loop)
    return wheel
