"""The supervisor: keeps workers running and gives every accepted request exactly one answer.

::

              submit                 give                     answer
    caller ─────────▶ queue (FIFO) ─────────▶ worker ready ─────────▶ caller
                        ▲  ▲                    │     │
                        │  │ worker died:       │     │ soft budget: start another, switch over,
                        │  └ redeliver, in front┘     │ drain this one
                        └─────────────────────────────┘

      ┌── idle ◀──┐ no work for long: unloaded
      ▼           │
    starting ──▶ ready ──▶ draining ──▶ stopped
                  ▲  │ more crashes than the restart policy allows
     a probe loads│  ▼
                 failed: refuses at once, with a true retry_after

Everything runs on one event loop's thread and nothing is shared beyond it, so there is no lock. Callbacks of the
workers are synchronous and finish in microseconds; what takes time (starting, draining, exact memory readings) is a
task or a thread. A reading that needs the kernel to walk page tables is taken in a thread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import random
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

from guardrails.core import events
from guardrails.memory.monitor.names import forget_process, name_process
from runners.errors import RunnerClosed, RunnerUnavailable, StartFailed, WrongEventLoop
from runners.protocol.messages import Done, Failed
from runners.protocol.parts import Incoming, Payload
from runners.spec import WorkerSpec
from runners.supervision.autoscale import Autoscale
from runners.supervision.dispatch import Dispatcher
from runners.supervision.events import RunnerStateChanged, WorkerExited, WorkerReady
from runners.supervision.exit import Exit
from runners.supervision.forecast import GrowthPerRequest
from runners.supervision.limits import Limits
from runners.supervision.pool import Pool
from runners.supervision.replace import Replacer
from runners.supervision.request import Request
from runners.supervision.restart import RestartPolicy
from runners.supervision.scaling import keep_size
from runners.supervision.served_model import ServedModel
from runners.supervision.stats import RunnerStats, runner_stats, worker_stats
from runners.supervision.tasks import keep, report
from runners.supervision.watch import watch
from runners.supervision.worker import Worker

State = Literal["new", "idle", "starting", "ready", "draining", "failed", "stopped"]

_log = logging.getLogger("runners")
#: What marks a plain line as one on an event, which is not logged twice: see `guardrails.telemetry.logs`.
_STATE, _EXITED = {"event": "runner.state_changed"}, {"event": "runner.worker_exited"}
_FOREVER = float("inf")
#: Those that were started. What is left of them at the end of the program is ended: the last resort.
_alive: weakref.WeakSet[Supervisor] = weakref.WeakSet()


@atexit.register
def _kill_all() -> None:
    for supervisor in tuple(_alive):
        supervisor.kill()


class Supervisor:
    """Workers of one spec behind one queue.

    Args:
        spec: what to run.
        limits: what a worker may not do.
        workers: how many, or ``(minimum, maximum)``, or an `Autoscale`. With a minimum of 0 it is `lazy`, and unloads
            when idle.
        lazy: load with the first request, which waits for it, and not before.
        idle_unload: seconds without a request after which all workers are drained; the next one loads again. None:
            never, or 60 s with a minimum of 0.
        queue: requests that may wait here for a worker, beyond those that workers have.
        queue_bytes: bytes that these may hold together.
        policy: when to restart.
        start_timeout: seconds that a worker may take to load.
        drain_timeout: seconds after which a replaced worker is ended whatever it still has. None: it answers what it
            has, for as long as the requests' own deadlines allow.
        python: the interpreter to run workers with; by default this one.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        limits: Limits,
        workers: int | tuple[int, int] | Autoscale = 1,
        lazy: bool = False,
        idle_unload: float | None = None,
        queue: int = 1024,
        queue_bytes: int = 1 << 30,
        policy: RestartPolicy | None = None,
        start_timeout: float = 120,
        drain_timeout: float | None = None,
        python: str | None = None,
    ) -> None:
        self.spec = spec
        self.limits = limits
        self.state: State = "new"
        self.model = ServedModel(spec.name)
        self.replacing = False
        self.replacer = Replacer(self)
        self.growth = GrowthPerRequest()
        self.asked_at = float("-inf")  # when somebody last wanted `stats`
        self.report_from = float("-inf")  # when a failing check of the watch is reported again
        self.drain_timeout = drain_timeout
        self.pool = Pool(self, workers=workers, lazy=lazy, idle_unload=idle_unload, policy=policy)
        if queue == 0 and (self.pool.lazy or self.pool.idle_unload is not None):
            msg = "queue=0 does not go with lazy, idle_unload or a minimum of 0: a request waits there for the load"
            raise ValueError(msg)
        self.used = 0.0
        self.dispatcher = Dispatcher(
            spec.name, queue=queue, queue_bytes=queue_bytes, fresh_comes=lambda: self.pool.fresh_comes
        )
        self._start_timeout = start_timeout
        self._python = python
        self._loop: asyncio.AbstractEventLoop
        self._tasks: set[asyncio.Task[None]] = set()
        self.load_seconds = 0.0
        self._owner = 0
        self._was: State = "new"
        self._killed: tuple[Worker, ...] = ()
        self._was_failed = False
        self._exits: Counter[str] = Counter()

    @property
    def workers(self) -> list[Worker]:
        """The workers in service."""
        return self.dispatcher.workers

    # Life

    async def start(self) -> None:
        """Bring up all workers. On any error nothing is left running.

        Raises:
            StartFailed: a worker could not be brought up; the subclass says why.
        """
        if self.state != "new":
            detail = f"a runner starts once; it is {self.state}. Make a new one"
            raise RunnerClosed(self.spec.name, reason="started", detail=detail)
        self._loop, self._owner = asyncio.get_running_loop(), os.getpid()
        _alive.add(self)
        self.dispatcher.begin(self._loop)
        if self.pool.lazy:
            self.set_state("idle")
        else:
            await self._start_workers()
        self.keep("watch", lambda: watch(self))
        if self.pool.size.scales or self.pool.idle_unload is not None:
            self.keep("scale", lambda: keep_size(self.pool))

    async def _start_workers(self) -> None:
        self.set_state("starting")
        target = self.pool.target = self.pool.size.floor
        try:
            results = await asyncio.gather(*(self.bring_into_service() for _ in range(target)), return_exceptions=True)
            self._check_started(results)
        except BaseException:
            await self._stop("start_failed")
            raise
        self.set_state("ready")

    def _check_started(self, results: Sequence[BaseException | None]) -> None:
        if self.closing:
            raise RunnerClosed(self.spec.name, detail="the runner was closed while it was starting")
        for failure in results:
            if failure is not None:
                raise failure

    async def close(self, grace: float) -> None:
        """Answer what is accepted, for `grace` seconds at most, then end all workers. Again, it does nothing."""
        if self.state in ("new", "stopped"):
            self.state = "stopped"
            await asyncio.gather(*(worker.end("killed") for worker in self._killed if not worker.process.exited))
            return
        if asyncio.get_running_loop() is not self._loop:
            raise self._wrong_loop("close it there")
        self.set_state("draining")
        self.dispatcher.idle.clear()
        self.dispatcher.note_idle()
        try:
            if grace > 0:
                async with asyncio.timeout(grace):
                    await self.dispatcher.idle.wait()
        except TimeoutError:
            _log.warning("%s: closing with requests unanswered after %g s of grace", self.spec.name, grace)
        finally:  # also when cancelled: nobody will ask again
            await self._stop("stopped")

    def kill(self) -> None:
        """End all workers at once, from any thread, also when the event loop is closed. Again, it does nothing."""
        if self.state == "new":
            self.state = "stopped"
        if self.state == "stopped" or os.getpid() != self._owner:  # a fork has this object, and not the workers
            return
        self._was, self.state = self.state, "stopped"  # from here on no exit is followed by a restart
        self._killed = (*self.workers, *self.pool.coming)
        for worker in self._killed:
            worker.process.kill("killed")
        with contextlib.suppress(RuntimeError):  # it was closed in this moment
            if self._loop.is_running():
                self._loop.call_soon_threadsafe(self._after_kill)
                return
        for worker in self._killed:
            worker.process.abandon()

    def _after_kill(self) -> None:
        for worker in (*self.workers, *self.pool.coming):
            worker.process.kill("killed")
        for task in tuple(self._tasks):
            task.cancel()
        self.state = self._was
        self.set_state("stopped")
        self.replacer.stop()
        self.dispatcher.flush(self._closed)

    async def _stop(self, reason: str) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        self.set_state("stopped")
        self.replacer.stop()
        for worker in self.workers:
            worker.drain()
        try:
            patient = [worker.wait_exit(1.0) for worker in self.workers if not worker.in_flight]
            await asyncio.gather(*patient)
        finally:
            await asyncio.gather(*(worker.end(reason) for worker in (*self.workers, *self.pool.coming)))
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self.dispatcher.flush(self._closed)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task of the supervisor's own; it ends with the supervisor at the latest, and a failure is reported."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def keep(self, task: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a task for as long as the supervisor lives: it is started again whenever it fails."""
        _ = self.spawn(keep(self.spec.name, task, work))

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            report(self.spec.name, getattr(task.get_coro(), "__name__", "task").strip("_"), error, None)

    @property
    def closing(self) -> bool:
        """Whether it takes no more requests."""
        return self.state in ("draining", "stopped")

    def set_state(self, new: State) -> None:
        """Move, and say so."""
        old, self.state = self.state, new
        self._was_failed |= new == "failed"
        if old != new:
            _log.info("%s: %s -> %s", self.spec.name, old, new, extra=_STATE)
            if events.sinks:
                events.emit(RunnerStateChanged(self.spec.name, old, new))

    # Requests

    def submit(
        self,
        body: bytes,
        payload: Payload = b"",
        *,
        seconds: float,
        redeliver: bool,
        affinity: int | None = None,
        window: int = 0,
    ) -> Request:
        """Accept a request, to be answered within so many seconds (infinity: whenever). Await its `future`; if you stop
        waiting, call `withdraw`. With a `window` it is a `StreamRequest`, to be read through a `Stream`.

        Raises:
            RunnerClosed, WrongEventLoop: the runner cannot be used so.
            QueueFull, RunnerUnavailable: it is refused, for now.
        """
        self.used = now = self._usable().time()
        deadline = now + seconds if seconds < _FOREVER else None
        request = self.dispatcher.submit(
            body, payload, now=now, deadline=deadline, redeliver=redeliver, affinity=affinity, window=window
        )
        if self.state != "ready":
            self.pool.wake()
        return request

    def withdraw(self, request: Request) -> None:
        """The caller has left. What has not begun is dropped; what runs goes on until it ends or its grace is over."""
        self.dispatcher.withdraw(request)

    def _usable(self) -> asyncio.AbstractEventLoop:
        if self.state == "ready" and asyncio.get_running_loop() is self._loop:
            return self._loop  # nearly always
        if self.state == "new":
            detail = "the runner is not started; use 'async with runner:' or await runner.start()"
            raise RunnerClosed(self.spec.name, reason="not_started", detail=detail)
        if self.state == "draining":
            detail = "the runner is closed to new requests, and answers what it has accepted"
            raise RunnerClosed(self.spec.name, reason="draining", detail=detail)
        if self.closing:
            raise RunnerClosed(self.spec.name, detail="the runner is closed; make a new one")
        if asyncio.get_running_loop() is not self._loop:
            raise self._wrong_loop("start one runner in each loop")
        if self.state in ("failed", "idle") and not self._may_load():
            raise self._unavailable()
        return self._loop

    def _may_load(self) -> bool:
        return self.pool.resting and self._loop.time() >= self.pool.retry_at

    def _wrong_loop(self, mend: str) -> WrongEventLoop:
        return WrongEventLoop(f"{self.spec.name}: the runner belongs to the event loop it was started in; {mend}")

    def _answered(self, request: Request, message: Done | Failed, payload: Incoming) -> None:
        if self._was_failed and isinstance(message, Done):
            self._was_failed = False
            self.pool.policy.recovered()
        self.dispatcher.answered(request, message, payload)

    def _closed(self) -> RunnerClosed:
        detail = "the runner was closed before this request was answered"
        return RunnerClosed(self.spec.name, reason="interrupted", detail=detail)

    def _unavailable(self) -> RunnerUnavailable:
        wait = max(0.0, self.pool.retry_at - self._loop.time())
        if self.pool.resting:
            detail = "it could not be loaded; the first request after this time tries again"
        else:
            wait += self.load_seconds
            detail = "its workers keep failing; it is trying again"
        return RunnerUnavailable(self.spec.name, retry_after=wait, detail=detail)

    # Workers

    async def bring_up(self) -> Worker:
        """A new worker, loaded and warm, not in service yet.

        Raises:
            StartFailed: it could not be brought up.
        """
        if self.state == "stopped":
            raise self._closed()
        worker = Worker(
            self.spec,
            on_answer=self._answered,
            on_exit=self._exited,
            python=self._python,
            ahead=self.dispatcher.limit,  # what is given ahead waits
        )
        began = self._loop.time()
        self.pool.coming.add(worker)
        try:
            await worker.start(timeout=self._start_timeout, budget=self.limits.soft, hard=self.limits.hard)
        except Exception:
            self._not_brought_up(worker)
            raise
        finally:
            self.pool.came(worker)
        try:
            worker.generation = self.model.admit(worker.files)
            self._note_ready(worker, began)
        except BaseException:
            await worker.end("start_failed")
            raise
        return worker

    def _note_ready(self, worker: Worker, began: float) -> None:
        now = self._loop.time()
        self.load_seconds = now - began
        term = self.limits.term(random.Random(worker.pid))  # noqa: S311 - no secret
        worker.memory.begin(now, load=self.load_seconds, term=term, baseline=worker.baseline)
        self.pool.expected = worker.baseline
        name_process(worker.pid, self.spec.name, budget=self.limits.soft)
        if events.sinks:
            events.emit(WorkerReady(self.spec.name, worker.pid, worker.baseline, self.load_seconds))

    def put_in_service(self, worker: Worker) -> None:
        """Give requests to a worker from now on. Call it in the same turn as `bring_up` returned.

        Raises:
            StartFailed: it has died already.
        """
        if worker.state == "exited":
            raise StartFailed(f"{self.spec.name}: a new worker died as soon as it was ready")
        for other in self.workers:
            if other.generation != worker.generation and other.state == "ready":
                other.superseded = True  # in this turn, so that no two models answer what comes from now on
                other.drain()
        self.workers.append(worker)
        self.pool.serves()
        if self.state == "failed":
            self.set_state("ready")
        self.dispatcher.pump()

    def _not_brought_up(self, worker: Worker) -> None:
        exit, error = worker.exit, worker.load_error  # noqa: A001
        if exit is None or not events.sinks:
            return  # there was no process
        # One that says why goes by an exit status, or is killed, for that; this is no news.
        reason, traceback = (exit.label, "") if error is None else ("start_failed", error.traceback)
        events.emit(WorkerExited(self.spec.name, worker.pid, reason, exit.describe(), exit.stderr, traceback))

    async def bring_into_service(self) -> None:
        """Both: a new worker that serves.

        Raises:
            StartFailed: it could not be brought up.
        """
        self.put_in_service(await self.bring_up())

    def _exited(self, worker: Worker, exit: Exit) -> None:  # noqa: A002
        in_service = worker in self.workers
        if in_service:
            self.workers.remove(worker)
        forget_process(worker.pid)
        expected = exit.reason == "killed" or (exit.reason in ("drained", "stopped") and not worker.in_flight)
        if events.sinks:
            events.emit(WorkerExited(self.spec.name, worker.pid, exit.label, exit.describe(), exit.stderr))
        if not expected:
            self._exits[exit.label] += 1
            _log.warning("%s: worker %d %s", self.spec.name, worker.pid, exit.describe(), extra=_EXITED)
        self.dispatcher.take_back(worker, exit, closed=self._closed if self.state == "stopped" else None)
        if in_service and not worker.retired:
            self.pool.crashed(worker)
        if self.dispatcher.queued:
            self.pool.wake()  # one that was being unloaded did not end well
        self.dispatcher.pump()
        self.dispatcher.note_idle()

    async def recycle(self) -> None:
        """Replace every worker, one after the other, with no request lost. See `Replacer.recycle`."""
        if self.state in ("idle", "failed") and not self.pool.serving and asyncio.get_running_loop() is self._loop:
            self.model.forget()  # the next load takes what is there
            return
        self._usable()
        await self.replacer.recycle()

    async def free_memory(self) -> int:
        """Bytes that one more worker may take: what the machine has left, and the fleet that it belongs to."""
        return await self.pool.free_memory()

    def fail(self) -> None:
        """There is no worker, and there have been too many crashes: refuse what waits, and what comes."""
        if not self.closing:
            self.set_state("failed")
        self.dispatcher.flush(self._closed if self.closing else self._unavailable)

    # What it is now

    def stats(self) -> RunnerStats:
        """A snapshot. Asked for regularly, it has exact readings of memory that are not old."""
        if self.workers:
            self.asked_at = self._loop.time()
        return self.snapshot()

    def snapshot(self) -> RunnerStats:
        """A snapshot, from what is known anyhow."""
        now = self._loop.time() if self.workers else 0.0
        return runner_stats(
            self.spec.name,
            self.state,
            self.dispatcher.counts,
            queued=self.dispatcher.queued,
            restarts=dict(self._exits),
            workers=tuple(worker_stats(worker, now, self.limits.soft) for worker in self.workers),
            growth=self.growth.costs(),
            model_changed=self.model.changed,
        )

    def count_replacement(self, reason: str) -> None:
        """Note a worker that was replaced on purpose, for `stats`."""
        self._exits[reason] += 1


__all__ = ["Supervisor"]
