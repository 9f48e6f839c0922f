"""Time, injected: every guard reads and waits through a `Clock`, so that tests run on a fake one and never sleep.

Seconds everywhere. `now` is monotonic and has no meaning outside the process; wall-clock time is used nowhere.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol

import anyio


class Clock(Protocol):
    """What a guard needs from time."""

    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait, on asyncio or trio."""
        ...

    def scope(self, seconds: float) -> anyio.CancelScope:
        """A cancel scope, not yet entered, that is cancelled `seconds` from now. Needs a running event loop."""
        ...

    def wait_thread(self, event: threading.Event, seconds: float | None) -> bool:
        """Block this thread until `event` is set or `seconds` have passed; whether it was set."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    #: Bound once: the call is on every hot path that needs the time.
    now = staticmethod(time.monotonic)

    async def sleep(self, seconds: float) -> None:
        """Wait, on asyncio or trio."""
        await anyio.sleep(seconds)

    def scope(self, seconds: float) -> anyio.CancelScope:
        """A cancel scope whose deadline is `seconds` from now on the running event loop."""
        return anyio.CancelScope(deadline=anyio.current_time() + seconds)

    def wait_thread(self, event: threading.Event, seconds: float | None) -> bool:
        """Block this thread until `event` is set or `seconds` have passed; whether it was set."""
        return event.wait(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))


SYSTEM_CLOCK = SystemClock()
