"""How many workers there are: started again after a crash, loaded for the first request, unloaded when idle.

::

                 first request                all workers up
      idle ───────────────────▶ starting ───────────────────▶ ready ──▶ ... nothing to do for long: unloaded ──▶ idle
        ▲                          │ the load fails: what waits gets its error
        └──────────────────────────┘ (more often than the restart policy allows: failed, until `retry_at`)

A load that fails is not tried again until somebody asks, and not before the restart policy's delay is over: a model
that nobody wants costs nothing, broken or not. Workers that crash in service are restarted at once, asked or not.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from guardrails.core import events
from guardrails.core.errors import Rejected
from guardrails.memory.reading import headroom
from runners.errors import MissingExtra, StartFailed
from runners.supervision.autoscale import Autoscale, as_autoscale, fits
from runners.supervision.events import RunnerUnloaded
from runners.supervision.memory import in_thread
from runners.supervision.restart import RestartPolicy
from runners.supervision.tasks import report
from runners.supervision.worker import Worker

if TYPE_CHECKING:
    from runners.supervision.supervisor import Supervisor

_log = logging.getLogger("runners")

#: Seconds without a request after which the workers of a runner whose minimum is 0 are unloaded.
_IDLE_UNLOAD = 60.0
#: A worker that served for so many seconds, and for as long as it took to load, was of use even if it answered nothing.
_OF_USE = 0.5


class Room(Protocol):
    """Memory that several runners share; see `runners.fleet`."""

    def turn(self, pool: Pool, workers: int) -> AbstractAsyncContextManager[None]:
        """Wait until there is room for so many more workers, which are loaded within the context.

        Raises:
            Rejected: there is none in time.
        """

    def free(self) -> int:
        """Bytes left."""


class Pool:
    """The size of a supervisor's crew: what it should be, and how it gets there.

    Args:
        supervisor: whose.
        workers: how many, ``(minimum, maximum)``, or an `Autoscale`.
        lazy: whether there are none before the first request.
        idle_unload: seconds without a request after which there are none.
        policy: when crashed ones are started again.

    Attributes:
        size: the bounds.
        target: workers that there should be now.
        coming: those that are loading.
        expected: private bytes that one more will hold: what the last one held when loaded; before, its budget.
        retry_at: when the next attempt to start one is made, or allowed, on the loop's clock.
        room: memory that is shared with other runners, or None.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        *,
        workers: int | tuple[int, int] | Autoscale,
        lazy: bool,
        idle_unload: float | None,
        policy: RestartPolicy | None,
    ) -> None:
        self.supervisor = supervisor
        self.size = as_autoscale(workers)
        self.lazy = lazy or self.size.minimum == 0
        self.idle_unload = _IDLE_UNLOAD if idle_unload is None and self.size.minimum == 0 else idle_unload
        if self.idle_unload is not None and not self.idle_unload > 0:
            msg = f"idle_unload takes a number of seconds above 0, not {idle_unload!r}"
            raise ValueError(msg)
        self.policy = policy or RestartPolicy()
        self.target = 0
        self.coming: set[Worker] = set()
        self.expected = supervisor.limits.soft or 0
        self.retry_at = 0.0
        self._failed = False
        self.room: Room | None = None
        self._restoring = 0  # restarts that have no process yet: they wait for their time, for memory, for their turn
        self._probing = asyncio.Lock()
        self._arrived = asyncio.Event()
        self._unloading: asyncio.Task[None] | None = None

    # What it is now

    @property
    def name(self) -> str:
        """The runner's."""
        return self.supervisor.spec.name

    @property
    def workers(self) -> list[Worker]:
        """Those in service, draining ones included."""
        return self.supervisor.workers

    @property
    def serving(self) -> int:
        """Workers that take requests."""
        return sum(worker.state == "ready" for worker in self.workers)

    @property
    def missing(self) -> int:
        """Workers that should be there, and are neither in service nor on their way."""
        return self.target - self.serving - len(self.coming) - self._restoring

    @property
    def quiet(self) -> bool:
        """Whether no request waits or runs."""
        return not self.supervisor.dispatcher.queued and not any(worker.in_flight for worker in self.workers)

    @property
    def settled(self) -> bool:
        """Whether no worker comes, is about to go, or is being replaced. One that has long calls to end may take its
        time, and holds nothing up.
        """
        changing = self.supervisor.replacing or self._restoring or self.coming
        return not changing and all(worker.state == "ready" or worker.in_flight for worker in self.workers)

    @property
    def fresh_comes(self) -> bool:
        """Whether a new worker is on its way."""
        return bool(self.coming or self._restoring or self.resting)

    @property
    def resting(self) -> bool:
        """Whether there are no workers until somebody asks for them."""
        return self.target == 0 and self.supervisor.state in ("idle", "failed")

    # Memory

    async def free_memory(self) -> int:
        """Bytes that one more worker may take: what the machine has left, and the fleet that it belongs to."""
        free = await in_thread(headroom)
        return free if self.room is None else min(free, self.room.free())

    def _turn(self, workers: int) -> AbstractAsyncContextManager[None]:
        return nullcontext() if self.room is None else self.room.turn(self, workers)

    # Started again

    def restore(self) -> None:
        """See to it that there are as many workers as there should be, or that one is to answer what is left when
        closing.
        """
        supervisor = self.supervisor
        needed = supervisor.state != "stopped" and (supervisor.state != "draining" or supervisor.dispatcher.queued > 0)
        while needed and self.missing > 0:
            self._restoring += 1
            _ = supervisor.spawn(self._restore())

    async def _restore(self) -> None:
        """Bring up one worker, trying until it serves. Several run side by side; a failed runner sends one probe."""
        loop = asyncio.get_running_loop()
        try:
            while self.missing >= 0:  # below, there are enough without this one
                probe = self._failed and not self.serving
                if probe:
                    self.supervisor.fail()
                async with self._probing if probe else nullcontext():
                    await asyncio.sleep(self.retry_at - loop.time())
                    if not probe or (self._failed and not self.serving):
                        await self._start_beside_others()
        finally:
            self._restoring -= 1
            self.supervisor.dispatcher.pump()  # what waits for a fresh worker may wait for none now

    async def _start_beside_others(self) -> None:
        """Start the worker of one restart, and count a failure, whatever it is, as a crash."""
        try:
            await self._fits_beside_others()
            async with self._turn(1):
                if self.missing < 0:
                    return
                self._restoring -= 1  # from here on it is one of `coming`
                try:
                    await self.supervisor.bring_into_service()
                finally:
                    self._restoring += 1
        except Rejected as refusal:
            self._note_crash()
            if not self.serving and not self.coming:
                self._give_up(refusal)
        except Exception as error:
            self._note_crash()
            self._report("restart", error)

    async def _fits_beside_others(self) -> None:
        """Wait, while other workers are loading, until memory is free for them and one more."""
        while self.coming:
            free = await self.free_memory()
            if fits(self.expected * (len(self.coming) + 1), free):
                return
            self._arrived.clear()
            await self._arrived.wait()

    def came(self, worker: Worker) -> None:
        """A worker is loading no more: it is ready, or has failed."""
        self.coming.discard(worker)
        self._arrived.set()
        # In the next turn, when it is in service or known to have failed: what waits for it may wait for none now.
        asyncio.get_running_loop().call_soon(self.supervisor.dispatcher.pump)

    def _report(self, task: str, error: BaseException) -> None:
        self.supervisor.count_replacement("start_failed")
        if isinstance(error, (StartFailed, MissingExtra)):
            _log.warning("%s: %s failed: %s", self.name, task, error)
        else:
            report(self.name, task, error, max(0.0, self.retry_at - asyncio.get_running_loop().time()))

    def crashed(self, worker: Worker) -> None:
        """A worker in service has died: another one takes its place.

        A kill from outside is no crash, unless it came before the worker was of any use: something that kills every
        new worker at once leads to `failed` as a crash loop does.
        """
        served = asyncio.get_running_loop().time() - worker.memory.since
        useful = worker.answered > 0 or served >= max(_OF_USE, worker.memory.load)
        if worker.exit is None or not worker.exit.from_outside or not useful:
            self._note_crash(productive=worker.answered > 0)
        self.restore()

    def serves(self) -> None:
        """A new worker is in service."""
        self._failed = False

    def start_failed(self) -> None:
        """A replacement could not be brought up: if the old one has gone already, go on trying."""
        if self.missing > 0:
            self._note_crash()
            self.restore()

    def _note_crash(self, *, productive: bool = False) -> None:
        """The next attempt is at `retry_at`; the runner has failed if `_failed`."""
        now = asyncio.get_running_loop().time()
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        decision = self.policy.crashed(now, jitter, productive=productive, workers=max(1, self.target))
        self.retry_at = now + decision.delay
        self._failed = decision.failed

    # Loaded

    def wake(self) -> None:
        """A request waits: if there are no workers until somebody asks for them, load."""
        if self.supervisor.state == "draining" and self.target == 0:
            self.target = 1  # it was given back by one that was being unloaded, and did not end well
            self.restore()
        elif self.resting:
            self.target = self.size.floor
            self.supervisor.set_state("starting")
            _ = self.supervisor.spawn(self._load())

    async def _load(self) -> None:
        supervisor = self.supervisor
        if self._unloading is not None:
            await asyncio.wait((self._unloading,))  # their memory counts until they have gone
        try:
            async with self._turn(self.target):
                coming = [supervisor.bring_into_service() for _ in range(self.target)]
                results = await asyncio.gather(*coming, return_exceptions=True)
        except Rejected as refusal:
            self._give_up(refusal)
            return
        except Exception as error:
            results = [error]
        failures = [failure for failure in results if failure is not None]
        for failure in failures:
            self._report("load", failure)
        if failures:
            self._note_crash()
        if len(failures) == len(results):
            self._give_up(failures[0], failed=self._failed)
            return
        if not supervisor.closing:
            supervisor.set_state("ready")
        self.restore()

    def _give_up(self, error: BaseException, *, failed: bool = False) -> None:
        """Refuse what waits, each with a copy of `error`, and have no workers until somebody asks again."""
        if not self.supervisor.closing:
            self.target = 0
            self.supervisor.set_state("failed" if failed else "idle")
        self.supervisor.dispatcher.flush(lambda: _copy(error))

    # Unloaded

    def unload(self, reason: str, *, busy: bool = False) -> bool:
        """Drain all workers of a runner with nothing to do; the next request loads again. Whether it was done.

        With `busy` also one that has something to do: its workers answer what they have, and what waits here waits for
        the next load.
        """
        if self.supervisor.state != "ready" or not self.settled or not (busy or self.quiet):
            return False
        freed = sum(worker.private for worker in self.workers)
        self.target = 0
        self.supervisor.set_state("idle")
        for worker in self.workers:
            worker.drain()  # in this turn, before anything can be given to it
        self._unloading = self.supervisor.spawn(self._retire_all())
        if events.sinks:
            events.emit(RunnerUnloaded(self.name, reason, freed))
        if self.supervisor.dispatcher.queued:
            self.wake()
        return True

    async def _retire_all(self) -> None:
        await asyncio.gather(*(self.retire(worker) for worker in tuple(self.workers)))

    async def retire(self, worker: Worker) -> None:
        """Have a worker answer what it has, within the requests' own deadlines and `drain_timeout`, and end it."""
        await worker.leave(self.supervisor.drain_timeout)


def _copy(error: BaseException) -> Exception:
    """An error of its own for each caller: a shared one would gather all tracebacks."""
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    assert isinstance(copied, Exception)  # noqa: S101 - what fails a load is one
    return copied
