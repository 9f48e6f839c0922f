"""A task of our own beside the caller's, on asyncio and trio, for what must happen while nobody calls us."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from guardrails.core.waiting import enter_loop

_log = logging.getLogger("guardrails")

# asyncio holds its tasks weakly.
_alive: set[asyncio.Task[Any]] = set()


class Home:
    """The event loop that this is built on, from wherever it is used later. Build it inside a task."""

    __slots__ = ("_door", "_loop", "_thread")

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._loop = asyncio._get_running_loop()  # noqa: SLF001 - documented for framework authors, and does not raise
        self._door: Callable[[Callable[[], None]], object]
        if self._loop is not None:
            self._door = self._loop.call_soon_threadsafe
        else:
            import trio  # noqa: PLC0415 - only a trio task comes here, so it is loaded already

            self._door = trio.lowlevel.current_trio_token().run_sync_soon

    def do(self, action: Callable[[], None]) -> None:
        """Run `action` on the loop's thread: at once if this is it. A loop that is closed runs nothing any more."""
        enter_loop(self._thread, action, self._door)

    def start(self, work: Callable[[], Awaitable[object]]) -> Callable[[], None]:
        """Start `work` as a task; call it on the loop's thread. Returns what ends it. What it raises is logged."""
        if self._loop is not None:
            task = self._loop.create_task(_logged(work))
            _alive.add(task)
            task.add_done_callback(_alive.discard)
            return lambda: None if task.done() else void(task.cancel())
        import trio  # noqa: PLC0415

        scope = trio.CancelScope()

        async def run() -> None:
            with scope:
                await _logged(work)

        trio.lowlevel.spawn_system_task(run)
        return scope.cancel


async def _logged(work: Callable[[], Awaitable[object]]) -> None:
    try:
        await work()
    except Exception:
        _log.exception("a background task of a guard failed")


def void(_: object) -> None:
    """Nothing."""
