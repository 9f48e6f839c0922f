"""Watches the workers of a supervisor: their memory against their budgets, their terms, and whether they still get on.

Twenty times a second while there is work, ten times while there is none. A look is two small reads (a `/proc` file,
the board): tens of microseconds. Near a threshold the exact reading is taken, in a thread, since the kernel may need
milliseconds for it; nothing here waits for that, so that one slow reading does not blind the watch over the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from guardrails.core import events
from guardrails.memory.reading import private_and_proportional, private_estimate
from runners.supervision.events import RunnerSampled
from runners.supervision.memory import in_thread
from runners.supervision.tasks import report
from runners.supervision.worker import Worker

if TYPE_CHECKING:
    from runners.supervision.supervisor import Supervisor

BUSY_INTERVAL = 0.05
IDLE_INTERVAL = 0.1  # a worker that gets work in between must not outgrow its hard budget unseen
#: While anybody listens to events, they are told how the runner does every so many seconds.
SAMPLE_EVERY = 1.0
#: Exact readings take at most a tenth of the time: after one that took so long, this many times that is waited.
_EXACT_PAUSE = 10.0
#: While somebody asks for `stats`, exact readings are at most so many seconds old.
EXACT_AGE = 5.0
#: A check that fails does so at each look: it is reported every so many seconds.
_REPORT_EVERY = 10.0


async def watch(supervisor: Supervisor) -> None:
    """Watch until cancelled."""
    loop = asyncio.get_running_loop()
    sampled_at = float("-inf")
    while True:
        busy = any(worker.in_flight for worker in supervisor.workers)
        due = loop.time() + (BUSY_INTERVAL if busy else IDLE_INTERVAL)
        await asyncio.sleep(due - loop.time())
        now = loop.time()
        for worker in tuple(supervisor.workers):
            if worker.state in ("ready", "draining"):
                worker.excuse(now - due, now)
                for check in (_check_memory, _check_progress, _check_term):
                    _try(check, supervisor, worker, now)
        if events.sinks and now - sampled_at >= SAMPLE_EVERY:
            sampled_at = now
            events.emit(RunnerSampled(supervisor.spec.name, supervisor.snapshot()))


def _try(
    check: Callable[[Supervisor, Worker, float], None], supervisor: Supervisor, worker: Worker, now: float
) -> None:
    """One check that fails leaves the others, and those of other workers, in force; it is reported now and then."""
    try:
        check(supervisor, worker, now)
    except Exception as error:
        if now >= supervisor.report_from:
            supervisor.report_from = now + _REPORT_EVERY
            report(supervisor.spec.name, "watch", error, BUSY_INTERVAL)


def _check_memory(supervisor: Supervisor, worker: Worker, now: float) -> None:
    memory = worker.memory
    try:
        worker.private = private_estimate(worker.pid)
    except OSError:
        return  # it has just ended, which is reported; or no descriptor is left: at the next look, then
    judgement = supervisor.limits.judge_estimate(worker.private)
    if judgement == "kill":
        worker.process.kill("hard_budget")
        return
    steps = worker.steps()
    memory.trend.add(now, worker.private, settled=steps != memory.steps or not worker.in_flight)
    memory.steps = steps
    look = memory.grown(worker.private)
    if look is not None:
        supervisor.growth.learn(*look)
    _check_forecast(supervisor, worker, now)
    asked = supervisor.asked_at + EXACT_AGE > now > memory.exact_at + EXACT_AGE
    hard = supervisor.limits.hard
    urgent = hard is not None and worker.private >= hard
    if (judgement == "look_closer" or asked) and not memory.reading and (urgent or now >= memory.exact_from):
        memory.reading = True
        _ = supervisor.spawn(_look_closer(supervisor, worker))


async def _look_closer(supervisor: Supervisor, worker: Worker) -> None:
    loop, memory = asyncio.get_running_loop(), worker.memory
    began = loop.time()
    try:
        private, memory.pss = await in_thread(partial(private_and_proportional, worker.pid))
    except (OSError, RuntimeError):
        return  # as above; or no thread is left
    finally:
        memory.reading = False
    memory.exact_at = loop.time()
    memory.exact_from = memory.exact_at + _EXACT_PAUSE * (memory.exact_at - began)
    if worker.process.exited:
        return
    worker.private = private
    judgement = supervisor.limits.judge(private)
    if judgement == "kill":
        worker.process.kill("hard_budget")
    elif judgement == "replace":
        supervisor.replacer.start(worker, "soft_budget")


def _check_forecast(supervisor: Supervisor, worker: Worker, now: float) -> None:
    limits, memory = supervisor.limits, worker.memory
    if limits.soft is None or supervisor.replacing or not limits.worth_a_forecast(worker.private, worker.baseline):
        return
    left = memory.trend.seconds_until(limits.soft, now)
    if limits.due(left, age=now - memory.since, load=memory.load):
        supervisor.replacer.start(worker, "forecast")


def _check_term(supervisor: Supervisor, worker: Worker, now: float) -> None:
    reason = worker.memory.term.over(now - worker.memory.since, worker.answered)
    if reason is not None:
        supervisor.replacer.start(worker, reason)


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
