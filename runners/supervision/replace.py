"""Puts new workers in the place of old ones, with no request lost. One at a time in a runner.

::

    both fit      load the new one ──▶ give it requests ──▶ the old one answers what it has ──▶ and goes
                  (however long that takes; the next replacement does not wait for it)
    they do not   the old one answers what it has ──▶ and goes ──▶ load the new one
                  (what no other worker can take waits in the queue meanwhile)
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from guardrails.core import events
from runners.errors import MissingExtra, RunnerClosed, StartFailed
from runners.supervision.events import WorkerReplaced
from runners.supervision.limits import both_fit
from runners.supervision.tasks import report
from runners.supervision.worker import Worker

if TYPE_CHECKING:
    from runners.supervision.supervisor import Supervisor

_log = logging.getLogger("runners")
#: What marks a plain line as one on an event, which is not logged twice: see `guardrails.telemetry.logs`.
_REPLACED = {"event": "runner.worker_replaced"}

#: Seconds before a replacement that failed is tried again.
_REPLACE_AGAIN = 5.0


class Replacer:
    """The replacements of one supervisor. `supervisor.replacing` says whether one is under way."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._free = asyncio.Event()
        self._free.set()
        self._not_before = 0.0
        self._recycling: asyncio.Future[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    def start(self, worker: Worker, reason: str) -> None:
        """Replace `worker`, unless it is going already, another one is being replaced, or the last try failed a short
        while ago. The caller sees to asking again.
        """
        supervisor = self._supervisor
        now = asyncio.get_running_loop().time()
        if worker.state != "ready" or supervisor.replacing or now < self._not_before:
            return
        if supervisor.state != "ready" and reason != "soft_budget":
            return  # closing, or failed: what can wait does
        self._begin()
        _ = supervisor.spawn(self._replace_or_wait(worker, reason))

    async def recycle(self) -> None:
        """Replace all workers that are in service now, one after the other. A call while that goes on joins it. If the
        first new one has loaded another model, all old ones get nothing new from then on.

        The work goes on when a caller stops waiting.

        Raises:
            StartFailed: a new worker could not be brought up. Those not replaced yet stay in service.
            RunnerClosed: the runner was closed meanwhile.
        """
        if self._recycling is None:
            self._recycling = asyncio.get_running_loop().create_future()
            _ = self._supervisor.spawn(self._recycle(tuple(self._supervisor.workers)))
        await asyncio.shield(self._recycling)

    async def _recycle(self, workers: tuple[Worker, ...]) -> None:
        model = self._supervisor.model
        model.renew()
        try:
            for worker in workers:
                while self._supervisor.replacing:
                    await self._free.wait()
                if worker.state == "ready" or worker.superseded:  # else it went by itself meanwhile
                    self._begin()
                    await self._replace(worker, "recycle")
            await asyncio.gather(*self._leaving)
        except Exception as error:
            if not isinstance(error, (StartFailed, MissingExtra)):
                report(self._supervisor.spec.name, "recycle", error, None)
            self._supervisor.pool.start_failed()
            self._recycled(error)
        else:
            self._recycled(None)
        finally:
            model.keep()

    def stop(self) -> None:
        """The runner is closed: tell those who wait for `recycle`."""
        name = self._supervisor.spec.name
        self._recycled(RunnerClosed(name, detail="the runner was closed before all workers were replaced"))

    def _recycled(self, error: Exception | None) -> None:
        done, self._recycling = self._recycling, None
        if done is None or done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
            done.exception()  # looked at: whoever asked may have left

    def _begin(self) -> None:
        self._supervisor.replacing = True
        self._free.clear()

    async def _replace_or_wait(self, worker: Worker, reason: str) -> None:
        try:
            await self._replace(worker, reason)
        except Exception as error:
            if isinstance(error, (StartFailed, MissingExtra)):
                _log.warning("%s: replacing worker %d failed: %s", self._supervisor.spec.name, worker.pid, error)
            else:
                report(self._supervisor.spec.name, "replace", error, _REPLACE_AGAIN)
            self._not_before = asyncio.get_running_loop().time() + _REPLACE_AGAIN
            self._supervisor.pool.start_failed()

    async def _replace(self, worker: Worker, reason: str) -> None:
        """Put a new worker in the place of `worker`. That one may still have calls to end."""
        supervisor = self._supervisor
        try:
            overlap = await self._fits(worker)
            if not overlap:
                await worker.leave(supervisor.drain_timeout)
            new = await supervisor.bring_up()
            supervisor.put_in_service(new)
            worker.drain()
        finally:
            supervisor.replacing = False
            self._free.set()
        leaving = supervisor.spawn(self._see_off(worker, new, reason, overlap=overlap))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _see_off(self, worker: Worker, new: Worker, reason: str, *, overlap: bool) -> None:
        supervisor = self._supervisor
        await worker.leave(supervisor.drain_timeout)
        supervisor.count_replacement(reason)
        _log.info(
            "%s: worker %d replaced by %d (%s)", supervisor.spec.name, worker.pid, new.pid, reason, extra=_REPLACED
        )
        if events.sinks:
            events.emit(WorkerReplaced(supervisor.spec.name, worker.pid, new.pid, reason, overlap))

    async def _fits(self, worker: Worker) -> bool:
        try:
            free = await self._supervisor.free_memory()
        except (OSError, RuntimeError):  # no descriptor, no thread: then nothing is certain
            return False
        growth = sum(other.memory.trend.climb() for other in self._supervisor.workers)
        return both_fit(free, worker.baseline, growth, worker.memory.load)


__all__ = ["Replacer"]
