"""A clock that stands still until it is moved: by the test, or by itself when everybody waits for it.

*Autojump* is trio's (`trio.testing.MockClock(autojump_threshold=0)`): when no task can go on, the clock goes to the
moment at which the next one can. Here it needs no background task of the test's, and works on asyncio and uvloop too:
while a scope of the clock is open, a callback looks once in each turn of the event loop whether all tasks wait.

Threads: the lock guards the two heaps; scopes are cancelled and threads woken outside it.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
import threading
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio

#: Turns of an asyncio loop in which all tasks must have waited: what one callback hands on to the next takes a turn.
_QUIET_TURNS = 5
#: Real seconds that a waiting thread gives the others before it moves the clock: nobody can tell whether they work.
_GRACE = 0.005
#: Waits that are over are thrown away when there are more of them than this, and more than there are others.
_LITTER = 64


class _Thread:
    """A thread that waits."""

    __slots__ = ("event", "expired", "over")

    running = True

    def __init__(self, event: threading.Event) -> None:
        self.event = event
        self.expired = False
        self.over = False

    def expire(self) -> None:
        self.expired = True
        self.event.set()


class _Scope(anyio.CancelScope):
    """A cancel scope of the event loop's that tells its clock when it is open."""

    __slots__ = ("_clock", "_scope", "over", "running")

    def __new__(cls, *_: Any) -> Self:
        return object.__new__(cls)

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._scope = anyio.CancelScope()
        self.running = False
        self.over = False

    def expire(self) -> None:
        self._scope.cancel()

    def __enter__(self) -> Self:
        self._scope.__enter__()
        self.running = True
        self._clock._opened()  # noqa: SLF001 - its own
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.running, self.over = False, True
        return self._scope.__exit__(kind, exc, trace)

    def cancel(self, reason: str | None = None) -> None:
        if reason is None:
            self._scope.cancel()
        else:  # anyio takes it since 4.11
            self._scope.cancel(reason)

    @property
    def deadline(self) -> float:
        return self._scope.deadline

    @deadline.setter
    def deadline(self, value: float) -> None:
        self._scope.deadline = value

    @property
    def cancel_called(self) -> bool:
        return self._scope.cancel_called

    @property
    def cancelled_caught(self) -> bool:
        return self._scope.cancelled_caught

    @property
    def shield(self) -> bool:
        return self._scope.shield

    @shield.setter
    def shield(self, value: bool) -> None:
        self._scope.shield = value


_Wait = TypeVar("_Wait", _Scope, _Thread)
_Heap = list[tuple[float, int, _Wait]]


class FakeClock:
    """A clock that stands still until it is moved. Pass it as `clock=` to a guard.

    Cancel scopes and sleeps made through it end when it passes their time, on asyncio, uvloop and trio, and so do the
    waits of threads. Use it from the thread whose tasks wait on it; `wait_thread` from any.

    With `autojump` nobody has to call `advance`: when all tasks of the event loop wait, the clock goes to the next
    moment at which a sleep or a scope of it ends. Real time, sockets and `to_thread` are not seen: a task that waits
    for them waits. A thread in `wait_thread` that nobody wakes moves the clock itself, if nothing else is due earlier:
    at once where it is the only thread there is, else after 5 ms of real time.

    Args:
        start: the time at first, in seconds.
        autojump: whether it moves itself.

    Attributes:
        autojump: see there.
        waits: the seconds of each `sleep`, and of each bounded `wait_thread`, in the order of their beginning.
    """

    def __init__(self, start: float = 1000.0, *, autojump: bool = False) -> None:
        self.autojump = autojump
        self.waits: list[float] = []
        self._now = start
        self._number = itertools.count()
        self._scopes: _Heap[_Scope] = []
        self._threads: _Heap[_Thread] = []
        self._lock = threading.RLock()
        self._watched: object = None  # the event loop that is looked at

    def __repr__(self) -> str:
        return f"<fake clock at {self._now:g}{', jumping' if self.autojump else ''}>"

    def now(self) -> float:
        """The time on the clock, in seconds."""
        return self._now

    @property
    def due(self) -> float | None:
        """The time at which the next open sleep, scope or thread's wait ends; None if there is none."""
        with self._lock:
            moments = [moment for moment in (_first(self._scopes), _first(self._threads)) if moment is not None]
        return min(moments, default=None)

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been moved on by `seconds`."""
        self.waits.append(seconds)
        with self.scope(seconds):
            await anyio.sleep_forever()

    def scope(self, seconds: float) -> anyio.CancelScope:
        """A cancel scope that is cancelled when the clock passes `seconds` from now."""
        scope = _Scope(self)
        if seconds <= 0:
            scope.cancel()
        else:
            self._push(self._scopes, seconds, scope)
        return scope

    def wait_thread(self, event: threading.Event, seconds: float | None) -> bool:
        """Block this thread until `event` is set, or the clock passes `seconds`. False if the clock was first.

        The clock sets `event` too: one event stands for both ends.
        """
        wait = _Thread(event)
        if seconds is not None:
            self.waits.append(seconds)
            if seconds <= 0:
                return event.is_set()
            self._push(self._threads, seconds, wait)
        try:
            while not event.wait(self._grace()):
                self._jump(wait)
        finally:
            wait.over = True
        return not wait.expired

    def advance(self, seconds: float) -> None:
        """Move the clock on, and end every wait whose time has come. The tasks run when the caller next awaits.

        Raises:
            ValueError: `seconds` is below 0.
        """
        if not seconds >= 0:
            msg = f"seconds takes a number of at least 0, not {seconds!r}: a clock never goes back"
            raise ValueError(msg)
        self._go(self._now + seconds)

    def jump(self) -> bool:
        """Move the clock to where the next wait ends, if anybody waits; whether that was so."""
        moment = self.due
        if moment is None:
            return False
        self._go(max(moment, self._now))
        return True

    # Inside

    def _go(self, moment: float) -> None:
        ended: list[_Scope | _Thread] = []
        with self._lock:
            self._now = moment
            while self._scopes and self._scopes[0][0] <= moment:
                ended.append(heapq.heappop(self._scopes)[2])
            while self._threads and self._threads[0][0] <= moment:
                ended.append(heapq.heappop(self._threads)[2])
        for wait in ended:
            if not wait.over:
                wait.expire()

    def _push(self, heap: _Heap[_Wait], seconds: float, wait: _Wait) -> None:
        with self._lock:
            if len(heap) > _LITTER and sum(entry[2].over for entry in heap) * 2 > len(heap):
                heap[:] = [entry for entry in heap if not entry[2].over]
                heapq.heapify(heap)
            heapq.heappush(heap, (self._now + seconds, next(self._number), wait))

    def _opened(self) -> None:
        """A scope was entered here: look after this event loop, if nobody does so yet."""
        if not self.autojump:
            return
        loop = asyncio._get_running_loop()  # noqa: SLF001 - documented for framework authors, and does not raise
        if loop is not None:
            if self._watched is not loop:
                self._watched = loop
                loop.call_soon(self._look, loop, 0, context=contextvars.Context())
            return
        import trio  # noqa: PLC0415 - only a trio task comes here, so it is loaded already

        token = trio.lowlevel.current_trio_token()
        if self._watched is not token:
            self._watched = token
            trio.lowlevel.spawn_system_task(self._watch_trio, token, context=contextvars.Context())

    def _look(self, loop: asyncio.AbstractEventLoop, quiet: int) -> None:
        # Not `anyio.wait_all_tasks_blocked`, which on asyncio looks ten times a second.
        if self._watched is not loop:
            return  # the clock is used on another loop by now
        quiet = quiet + 1 if _all_wait(loop) else 0
        if quiet == _QUIET_TURNS:
            quiet = 0
            if not self.jump():
                self._watched = None  # the next scope begins anew
                return
        loop.call_soon(self._look, loop, quiet, context=contextvars.Context())

    async def _watch_trio(self, token: object) -> None:
        import trio.testing  # noqa: PLC0415

        while True:
            await trio.testing.wait_all_tasks_blocked()
            if self._watched is not token:
                return
            if not self.jump():
                self._watched = None
                return

    def _grace(self) -> float | None:
        if not self.autojump:
            return None
        return 0 if threading.active_count() == 1 else _GRACE

    def _jump(self, wait: _Thread) -> None:
        with self._lock:
            mine = next((moment for moment, _, each in self._threads if each is wait), math.inf)
            scopes = _first(self._scopes)
            # A scope that ends at the same moment is cancelled on its own thread only.
            first = self.due == mine and scopes != mine
        if first:
            self._go(mine)


def _first(heap: _Heap[_Wait]) -> float | None:
    """The earliest end of a wait that goes on. One that has not begun yet is not waited for."""
    while heap and heap[0][2].over:
        heapq.heappop(heap)
    if heap and not heap[0][2].running:
        moment = min((moment for moment, _, wait in heap if wait.running and not wait.over), default=math.inf)
    else:
        moment = heap[0][0] if heap else math.inf
    return moment if moment < math.inf else None


def _all_wait(loop: asyncio.AbstractEventLoop) -> bool:
    for task in asyncio.all_tasks(loop):
        waiter = task._fut_waiter  # type: ignore[attr-defined]  # noqa: SLF001 - as anyio finds it out
        if waiter is None or waiter.done():
            return False
    return True
