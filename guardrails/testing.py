"""What tests of guarded code need: a clock that a test moves by hand, and a record of events."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from guardrails.core.events import Event, subscribe


class FakeClock:
    """A clock that stands still until `advance` moves it. Pass it as `clock=` to a guard.

    Cancel scopes and sleeps made through it end when it passes their time, on asyncio and trio. Use it from the thread
    whose tasks wait on it.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._number = itertools.count()
        self._scopes: list[tuple[float, int, anyio.CancelScope]] = []
        self._threads: list[tuple[float, int, threading.Event]] = []

    def now(self) -> float:
        """The time on the clock."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been moved on by `seconds`."""
        with self.scope(seconds):
            await anyio.sleep_forever()

    def scope(self, seconds: float) -> anyio.CancelScope:
        """A cancel scope that is cancelled when the clock passes `seconds` from now."""
        scope = anyio.CancelScope()
        if seconds <= 0:
            scope.cancel()
        else:
            heapq.heappush(self._scopes, (self._now + seconds, next(self._number), scope))
        return scope

    def wait_thread(self, event: threading.Event, seconds: float | None) -> bool:
        """Block this thread until `event` is set or another thread moves the clock past `seconds`."""
        if seconds is not None:
            # One event stands for both ends; whether the waited-for thing happened is for the waiter to look at.
            heapq.heappush(self._threads, (self._now + seconds, next(self._number), event))
        event.wait()
        return True

    def advance(self, seconds: float) -> None:
        """Move the clock on, and end every wait whose time has come. The tasks run when the caller next awaits."""
        self._now += seconds
        while self._scopes and self._scopes[0][0] <= self._now:
            heapq.heappop(self._scopes)[2].cancel()
        while self._threads and self._threads[0][0] <= self._now:
            heapq.heappop(self._threads)[2].set()


@contextmanager
def capture_events() -> Iterator[list[Event]]:
    """Collect every event that is emitted within the block, in a list."""
    seen: list[Event] = []
    unsubscribe = subscribe(seen.append)
    try:
        yield seen
    finally:
        unsubscribe()
