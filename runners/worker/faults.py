"""Faults on purpose, around any engine: for game days, tests and the demo (see `runners.spec.Faults`)."""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from runners.spec import Faults
from runners.worker.engines.base import CANCELLED, Job, Replies, Running, StepEngine

_PIECE = 8 * 2**20
_PIECES = 128
_KEPT_FOR = 1.0


class FaultyEngine(StepEngine):
    """The engine inside, with a leak, and requests that do worse."""

    def __init__(self, engine: StepEngine, faults: Faults) -> None:
        self._engine = engine
        self._faults = faults
        self._trigger = faults.trigger.encode()
        self._marked: deque[Job] = deque()
        self._leaked: list[bytes] = []

    def files(self) -> list[Path]:
        """Those of the engine inside."""
        return self._engine.files()

    def load(self) -> dict[str, Any]:
        """Load the engine inside."""
        info = self._engine.load()
        self.capacity, self.ahead = self._engine.capacity, self._engine.ahead
        self.recallable = self._engine.recallable
        return info

    def submit(self, job: Job) -> None:
        """Leak, then pass the job on, unless it is to do worse."""
        if self._faults.leak:
            self._leaked.append(b"\x01" * self._faults.leak)  # written to: untouched pages would cost nothing
        if not self.recallable and self.is_marked(job):
            self._marked.append(job)
        else:
            self._engine.submit(job)

    def is_marked(self, job: Job) -> bool:
        """Whether it is to do worse."""
        return bool(self._trigger) and self._trigger in bytes(job.body)

    def cancel(self, job_id: int, replies: Replies) -> None:
        """Drop a job that waits here for its fault; pass other cancellations on."""
        for job in self._marked:
            if job.id == job_id:
                self._marked.remove(job)
                replies.failed(job, CANCELLED)
                return
        self._engine.cancel(job_id, replies)

    def more(self, job_id: int, count: int) -> None:
        """Pass it on."""
        self._engine.more(job_id, count)

    def listen(self, fd: int) -> None:
        """Pass it on."""
        self._engine.listen(fd)

    def wait(self) -> bool:
        """Pass it on."""
        return self._engine.wait()

    def close(self) -> None:
        """Pass it on."""
        self._engine.close()

    def step(self, replies: Replies, running: Running) -> bool:
        """Commit what is to be committed; else pass the step on."""
        if self.recallable:  # jobs have to begin in order: one commits its fault when its turn has come
            return self._engine.step(replies, _Committing(running, self))
        if not self._marked:
            return self._engine.step(replies, running)
        job = self._marked.popleft()
        self.commit(job, running)
        self._engine.submit(job)  # it has survived
        return True

    def commit(self, job: Job, running: Running) -> None:
        """Do what the faults say."""
        running.begin([job.id])
        _EFFECTS[self._faults.effect]()
        running.end()


class _Committing:
    """The status page, where a job that is marked commits its fault as soon as it has begun."""

    def __init__(self, running: Running, engine: FaultyEngine) -> None:
        self._running = running
        self._engine = engine
        self.begin = running.begin
        self.end = running.end

    def claim(self, job: Job) -> bool:
        first = not job.begun
        mine = self._running.claim(job)
        if first and mine and self._engine.is_marked(job):
            self._engine.commit(job, self._running)
        return mine


def _jump() -> None:
    block = bytearray()
    for _ in range(_PIECES):  # bit by bit, as the allocator of a library would
        block += bytes(_PIECE)
    time.sleep(_KEPT_FOR)


def _hang() -> None:
    ctypes.PyDLL(None).pause()  # with the interpreter locked out


def _deadlock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def _crash() -> None:
    ctypes.string_at(0)


_EFFECTS = {"jump": _jump, "hang": _hang, "deadlock": _deadlock, "crash": _crash}
