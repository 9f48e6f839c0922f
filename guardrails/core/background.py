"""A task of our own beside the caller's, on asyncio and trio, for what must happen while nobody calls us."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from guardrails.core.waiting import enter_loop

_log = logging.getLogger("guardrails")

#: asyncio holds its tasks weakly. By loop, so that those of a loop that was closed under them can be let go.
_alive: dict[asyncio.AbstractEventLoop, set[asyncio.Task[Any]]] = {}


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

    def start(
        self, work: Callable[[], Awaitable[object]], ended: Callable[[], object] | None = None
    ) -> Callable[[], None]:
        """Start `work` as a task with the caller's context variables; call it on the loop's thread.

        It ends with the loop, and is no part of the caller's cancel scopes. `ended` is called when it is over, also if
        it was cancelled before its first step. Returns what ends it. What it raises is logged.
        """
        if self._loop is not None:
            task = self._loop.create_task(_logged(work))
            _keep(self._loop, task)
            if ended is not None:
                task.add_done_callback(lambda _: void(ended()))
            return lambda: None if task.done() else void(task.cancel())
        import trio  # noqa: PLC0415

        scope = trio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    await _logged(work)
            finally:
                if ended is not None:
                    ended()

        trio.lowlevel.spawn_system_task(run, context=contextvars.copy_context())
        return scope.cancel


def _keep(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    tasks = _alive.get(loop)
    if tasks is None:
        for closed in [other for other in tuple(_alive) if other.is_closed()]:
            _alive.pop(closed, None)
        tasks = _alive[loop] = set()
    tasks.add(task)

    def over(task: asyncio.Task[Any]) -> None:
        tasks.discard(task)
        if not tasks:
            _alive.pop(loop, None)

    task.add_done_callback(over)


async def _logged(work: Callable[[], Awaitable[object]]) -> None:
    try:
        await work()
    except Exception:
        _log.exception("a background task of a guard failed")


def void(_: object) -> None:
    """Nothing."""
