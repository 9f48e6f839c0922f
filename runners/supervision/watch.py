"""Watches the workers of a supervisor: their memory against their budgets, and whether they still get on.

Twenty times a second while there is work, five times while there is none. A look is two small reads (a `/proc` file,
the board): tens of microseconds. Near a threshold the exact reading is taken, in a thread, since the kernel may need
milliseconds for it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from guardrails.core import events
from guardrails.memory.reading import headroom, private_bytes, private_estimate
from runners.errors import MissingExtra, StartFailed
from runners.supervision.events import WorkerReplaced
from runners.supervision.worker import Worker

if TYPE_CHECKING:
    from runners.supervision.supervisor import Supervisor

_log = logging.getLogger("runners")

BUSY_INTERVAL = 0.05
IDLE_INTERVAL = 0.2  # a worker that gets work in between must not outgrow its hard budget unseen
#: A replacement runs beside its predecessor only if this many times its expected size is free.
_SAFETY = 1.2
#: Seconds before a replacement that failed is tried again.
_REPLACE_AGAIN = 5.0


async def watch(supervisor: Supervisor) -> None:
    """Watch until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        busy = any(worker.in_flight for worker in supervisor.workers)
        await asyncio.sleep(BUSY_INTERVAL if busy else IDLE_INTERVAL)
        for worker in tuple(supervisor.workers):
            if worker.state in ("ready", "draining"):
                await _check_memory(supervisor, worker)
                _check_progress(supervisor, worker, loop.time())


async def _check_memory(supervisor: Supervisor, worker: Worker) -> None:
    limits = supervisor.limits
    try:
        worker.private = private_estimate(worker.pid)
        if limits.judge_estimate(worker.private) == "fine":
            return
        worker.private = await asyncio.to_thread(private_bytes, worker.pid)
    except (OSError, RuntimeError):
        return  # it has just ended, which is reported; or no descriptor or thread is left: at the next look, then
    judgement = limits.judge(worker.private)
    if judgement == "kill":
        worker.process.kill("hard_budget")
    elif judgement == "replace" and worker.state == "ready" and not supervisor.replacing:
        supervisor.replacing = True
        supervisor.spawn(replace(supervisor, worker, "soft_budget"))


def _check_progress(supervisor: Supervisor, worker: Worker, now: float) -> None:
    worker.note_progress(now)
    requests = [worker.in_flight[number] for number in worker.running() if number in worker.in_flight]
    left = [request.abandoned_at for request in requests if request.abandoned_at is not None]
    why = supervisor.limits.stuck(
        in_flight=len(worker.in_flight),
        busy_for=worker.busy_for(),
        since_progress=now - worker.last_progress,
        abandoned_for=now - max(left) if left and len(left) == len(requests) else None,
    )
    if why is not None:
        worker.process.kill(f"stuck_{why}")


async def replace(supervisor: Supervisor, worker: Worker, reason: str) -> None:
    """Put a new worker in the place of `worker`, with no request lost. `supervisor.replacing` is set, and cleared here.

    If both fit, the new one is ready before the old one stops. If not, the old one answers what it has and goes, and
    then the new one comes; what no other worker can take waits in the queue meanwhile.
    """
    try:
        free = await asyncio.to_thread(headroom)
        overlap = free > worker.baseline * _SAFETY
        if not overlap:
            await _retire(supervisor, worker)
        new = await supervisor.bring_up()
        supervisor.put_in_service(new)
        if overlap:
            await _retire(supervisor, worker)
    except (StartFailed, MissingExtra) as error:
        _log.warning("%s: replacing worker %d failed: %s", supervisor.spec.name, worker.pid, error)
        supervisor.restore()  # if the old one is gone already, or has crashed meanwhile
        await asyncio.sleep(_REPLACE_AGAIN)
    else:
        supervisor.count_replacement(reason)
        _log.info("%s: worker %d replaced by %d (%s)", supervisor.spec.name, worker.pid, new.pid, reason)
        if events.sinks:
            events.emit(WorkerReplaced(supervisor.spec.name, worker.pid, new.pid, reason, overlap))
    finally:
        supervisor.replacing = False


async def _retire(supervisor: Supervisor, worker: Worker) -> None:
    worker.drain()
    if not await worker.wait_exit(supervisor.drain_timeout):
        await worker.end("drain_timeout")
