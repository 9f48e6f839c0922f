"""Background tasks of supervision: any exception is a failed attempt, reported and tried again, never a silent end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from guardrails.core import events
from runners.supervision.events import SupervisionFailed

_log = logging.getLogger("runners")
#: What marks a plain line as one on an event, which is not logged twice: see `guardrails.telemetry.logs`.
_EVENT = {"event": "runner.supervision_failed"}

#: Seconds before a task that failed is started again: doubled with each failure in a row, up to the second.
_FIRST = 0.1
_LONGEST = 5.0
#: A task that ran for so many seconds has recovered from earlier failures.
_STEADY = 10.0


def report(source: str, task: str, error: BaseException, retry_in: float | None) -> None:
    """Log a failure of a supervision task with its traceback, and emit it as an event."""
    again = "" if retry_in is None else f"; trying again in {retry_in:.3g} s"
    _log.error("%s: %s failed: %s%s", source, task, error, again, exc_info=error, extra=_EVENT)
    if events.sinks:
        events.emit(SupervisionFailed(source, task, f"{type(error).__name__}: {error}", retry_in))


async def keep(source: str, task: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work` until it returns or is cancelled, and start it again after a pause whenever it raises."""
    loop = asyncio.get_running_loop()
    pause = 0.0
    while True:
        began = loop.time()
        try:
            await work()
        except Exception as error:
            steady = loop.time() - began >= _STEADY
            pause = _FIRST if steady or not pause else min(_LONGEST, 2 * pause)
            report(source, task, error, pause)
        else:
            return
        await asyncio.sleep(pause)


__all__ = ["keep", "report"]
