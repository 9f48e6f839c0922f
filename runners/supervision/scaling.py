"""Keeps the number of a runner's workers right: one look every 100 ms, of a few microseconds a worker.

What to do is decided in `autoscale`; here it is seen, and done. Nothing is lost by it: a worker is drained only while
it has nothing to do, and all of them are unloaded only when nothing waits or runs.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from guardrails.core import events
from runners.errors import MissingExtra, StartFailed
from runners.supervision.autoscale import IdleClock, Load, Scaler, fits
from runners.supervision.events import RunnerScaled, ScaleUpHeld
from runners.supervision.tasks import report

if TYPE_CHECKING:
    from runners.supervision.pool import Pool

_log = logging.getLogger("runners")

INTERVAL = 0.1
#: Seconds before one more worker is tried again when there was no memory for it, and when it could not be started.
_NO_ROOM_AGAIN = 1.0
_FAILED_AGAIN = 5.0


async def keep_size(pool: Pool) -> None:
    """Scale, and unload when idle, until cancelled."""
    loop = asyncio.get_running_loop()
    scaler, idle = Scaler(pool.size), IdleClock(pool.idle_unload)
    while True:
        await asyncio.sleep(INTERVAL)
        now, newest = loop.time(), pool.supervisor.dispatcher.counts["submitted"]
        if idle.expired(now, newest=newest, quiet=pool.quiet):
            pool.unload("idle")
        if pool.supervisor.state != "ready" or not pool.size.scales:
            continue
        workers = [worker for worker in pool.workers if worker.state == "ready"]
        load = Load(
            workers=len(workers),
            busy=sum(bool(worker.in_flight) for worker in workers),
            delay=_longest_wait(pool, now),
            settled=pool.settled,
        )
        step = scaler.decide(now, load)
        if step > 0:
            await _try_one(pool, scaler)
        elif step < 0:
            _drain_one(pool)


def _longest_wait(pool: Pool, now: float) -> float:
    """Seconds that the oldest request waits that is not being run: a worker has some in hand that wait there."""
    oldest = pool.supervisor.dispatcher.oldest_queued or now
    for worker in pool.workers:
        running = worker.running()
        for number, request in worker.in_flight.items():
            if number not in running and request.waited_for and not request.begun:
                oldest = min(oldest, request.accepted)
                break
    return now - oldest


async def _try_one(pool: Pool, scaler: Scaler) -> None:
    try:
        await _start_one(pool, scaler)
    except Exception as error:
        scaler.hold(asyncio.get_running_loop().time() + _FAILED_AGAIN)
        if isinstance(error, (StartFailed, MissingExtra)):
            pool.supervisor.count_replacement("start_failed")
            _log.warning("%s: one more worker could not be started: %s", pool.name, error)
        else:
            report(pool.name, "scale", error, _FAILED_AGAIN)


async def _start_one(pool: Pool, scaler: Scaler) -> None:
    loop = asyncio.get_running_loop()
    free = await pool.free_memory()
    if pool.supervisor.state != "ready" or not pool.settled:
        return  # something else began while the memory was read
    before = pool.serving
    if not fits(pool.expected, free):
        scaler.hold(loop.time() + _NO_ROOM_AGAIN)
        if events.sinks:
            events.emit(ScaleUpHeld(pool.name, before, pool.expected, free))
        return
    pool.target += 1
    try:
        pool.supervisor.put_in_service(await pool.supervisor.bring_up())
    except Exception:
        if pool.target > pool.size.floor:
            pool.target -= 1
        raise
    _report(pool, before, before + 1)


def _drain_one(pool: Pool) -> None:
    idle = [worker for worker in pool.workers if worker.state == "ready" and not worker.in_flight]
    if idle:
        before = pool.serving
        pool.target = max(pool.size.floor, pool.target - 1)
        worker = idle[-1]  # the first ones are given most requests, and are warmest
        worker.drain()  # in this turn, before anything can be given to it
        _ = pool.supervisor.spawn(pool.retire(worker))
        _report(pool, before, before - 1)


def _report(pool: Pool, old: int, new: int) -> None:
    _log.info("%s: %d -> %d workers", pool.name, old, new, extra={"event": "runner.scaled"})
    if events.sinks:
        events.emit(RunnerScaled(pool.name, old, new))
