"""Faults on purpose, around any engine: for game days, tests and the demo (see `runners.spec.Faults`)."""

from __future__ import annotations

from typing import Any

from runners.spec import Faults
from runners.worker.engines.base import Job, Replies, Running, StepEngine


class FaultyEngine(StepEngine):
    """The engine inside, with a leak."""

    def __init__(self, engine: StepEngine, faults: Faults) -> None:
        self._engine = engine
        self._faults = faults
        self._leaked: list[bytes] = []

    def load(self) -> dict[str, Any]:
        """Load the engine inside."""
        info = self._engine.load()
        self.capacity = self._engine.capacity
        return info

    def submit(self, job: Job) -> None:
        """Leak, then pass the job on."""
        self._leaked.append(b"\x01" * self._faults.leak)  # written to: untouched pages would cost nothing
        self._engine.submit(job)

    def cancel(self, job_id: int, replies: Replies) -> None:
        """Pass the cancellation on."""
        self._engine.cancel(job_id, replies)

    def step(self, replies: Replies, running: Running) -> bool:
        """Pass the step on."""
        return self._engine.step(replies, running)
