"""A bounded waiting room for permits, for tasks of asyncio and trio and for threads alike.

The rules (contract, rule 6) and how they are kept:

* FIFO by arrival whatever the weight: only the head is ever offered a permit, so a heavy call is not starved by light
  ones. A `FairRoom` has a head too, but takes it by priority, age and key.
* A permit is handed over, not raced for: whoever frees one takes it in the waiter's name (`granted`) before waking it.
* Cancel at any moment loses nothing: a waiter that leaves ungranted is removed in O(1); one that leaves granted gives
  back.

Threads: the owner's lock guards the room; it is never held across an await, a wake-up or user code. A wake-up may come
from any thread: within the waiter's own thread it is direct, from another it goes through the loop's thread-safe door.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

from guardrails.core.clock import Clock
from guardrails.core.errors import Rejected
from guardrails.core.fair_queue import FairQueue

T = TypeVar("T")


class Waiter(Generic[T]):
    """One call in the room. `ticket` is what it will hold; `granted` once the ticket is its own; `refusal` instead when
    it was sent away.
    """

    __slots__ = ("_ready", "_wait", "granted", "refusal", "ticket")

    def __init__(self, ticket: T) -> None:
        self.ticket = ticket
        self.granted = False
        self.refusal: Rejected | None = None
        self._ready: Callable[[], None]
        self._wait: Any

    def wake(self) -> None:
        """Let the waiter go on. Call it after `granted` or `refusal` is set, from any thread, outside the lock."""
        self._ready()


class TaskWaiter(Waiter[T]):
    """A waiter that is a task of asyncio or trio. Build it inside that task."""

    __slots__ = ()

    def __init__(self, ticket: T) -> None:
        super().__init__(ticket)
        task = _asyncio_task()
        home = threading.get_ident()
        if task is not None:
            loop = task.get_loop()
            future: asyncio.Future[None] = loop.create_future()

            def resolve() -> None:
                if not future.done():  # done: the task was cancelled meanwhile, and gives the ticket back itself
                    future.set_result(None)

            self._wait = future
            self._ready = lambda: enter_loop(home, resolve, loop.call_soon_threadsafe)
        else:
            import trio  # noqa: PLC0415 - only a trio task comes here, so it is loaded already

            event = trio.Event()
            token = trio.lowlevel.current_trio_token()
            self._wait = event
            self._ready = lambda: enter_loop(home, event.set, token.run_sync_soon)

    async def wait(self) -> None:
        """Suspend until woken."""
        if isinstance(self._wait, asyncio.Future):
            await self._wait
        else:
            await self._wait.wait()


class ThreadWaiter(Waiter[T]):
    """A waiter that is a thread, for sync functions."""

    __slots__ = ()

    def __init__(self, ticket: T) -> None:
        super().__init__(ticket)
        self._wait = threading.Event()
        self._ready = self._wait.set

    def wait(self, clock: Clock, seconds: float | None) -> bool:
        """Block until woken, or for `seconds`; whether it was woken."""
        return clock.wait_thread(self._wait, seconds)


class WaitingRoom(Generic[T]):
    """The waiters, oldest first. Every method is called under the owner's lock."""

    __slots__ = ("_waiters", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._waiters: OrderedDict[Waiter[T], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def full(self) -> bool:
        """Whether no further call may wait."""
        return len(self._waiters) >= self.capacity

    def join(self, waiter: Waiter[T]) -> None:
        """Add a waiter at the end."""
        self._waiters[waiter] = None

    def leave(self, waiter: Waiter[T]) -> None:
        """Remove a waiter that goes away ungranted. Nothing happens if it is not in the room."""
        self._waiters.pop(waiter, None)

    def grant(self, take: Callable[[T], bool]) -> list[Waiter[T]]:
        """Offer permits from the head on until `take` says no. Returns the granted, to be woken outside the lock."""
        granted: list[Waiter[T]] = []
        while self._waiters:
            # Out of the room before it is offered anything: should a call be settled in the middle of this (see the
            # owner's lock), nobody else grants the same waiter.
            head, _ = self._waiters.popitem(last=False)
            if not take(head.ticket):
                self._waiters[head] = None
                self._waiters.move_to_end(head, last=False)
                break
            head.granted = True
            granted.append(head)
        return granted


class FairRoom(Generic[T]):
    """A room in the order of priority, age and key (see `guardrails.core.fair_queue`).

    Every method is called under the owner's lock.

    Args:
        capacity: waiters that find room.
        aging: seconds of waiting that count as one step of priority.
    """

    __slots__ = ("_queue", "capacity")

    def __init__(self, capacity: int, *, aging: float = 10.0) -> None:
        self.capacity = capacity
        self._queue: FairQueue[Waiter[T]] = FairQueue(aging)

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self._queue

    @property
    def full(self) -> bool:
        """Whether no further call may wait."""
        return len(self._queue) >= self.capacity

    def join(self, waiter: Waiter[T], *, now: float = 0.0, priority: float = 0, key: Hashable = None) -> None:
        """Add a waiter that comes at `now`. `key` is whose it is: keys are served in turn."""
        self._queue.push(waiter, now=now, priority=priority, key=key)

    def leave(self, waiter: Waiter[T]) -> None:
        """Remove a waiter that goes away ungranted. Nothing happens if it is not in the room."""
        self._queue.discard(waiter)

    def grant(self, take: Callable[[T], bool], now: float = 0.0) -> list[Waiter[T]]:
        """Offer permits from the head on until `take` says no. Returns the granted, to be woken outside the lock."""
        granted: list[Waiter[T]] = []
        while (head := self._queue.head(now)) is not None and take(head.ticket):
            self._queue.serve(head)
            head.granted = True
            granted.append(head)
        return granted

    def ahead(self, *, now: float, priority: float, key: Hashable) -> int:
        """How many would be served before a waiter who came now, as far as can be told."""
        return self._queue.ahead(now=now, priority=priority, key=key)

    def dismiss(self) -> list[Waiter[T]]:
        """Send everybody away. The caller sets each one's `refusal`, and wakes them outside the lock."""
        return self._queue.drain()


def wake(waiters: Iterable[Waiter[T]]) -> None:
    """Let waiters go on that were granted, or refused. Outside the lock."""
    for waiter in waiters:
        waiter.wake()


def on_event_loop() -> bool:
    """Whether this thread is running an event loop right now: a blocking wait here would stop every task of it."""
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - documented for framework authors, and does not raise
        return True
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_run()


def _asyncio_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # no asyncio loop here: trio


def enter_loop(home: int, action: Callable[[], None], door: Callable[[Callable[[], None]], object]) -> None:
    """Run `action` on the thread `home`: directly, or through its loop's `door` for calls from other threads."""
    if threading.get_ident() == home:
        action()
        return
    try:
        door(action)
    except RuntimeError:
        # The waiter's loop is closed. Its task is gone with it and gave its place back on the way out.
        return
