"""Snapshots of a runner, for people and dashboards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker. Sizes are private bytes."""

    pid: int
    state: str
    private: int
    baseline: int
    in_flight: int
    answered: int


@dataclass(frozen=True, slots=True)
class RunnerStats:
    """One runner.

    Attributes:
        submitted: requests accepted since it started. Each ends as one of:
        answered: with its result,
        failed: with an error of its own (also poisoned, or crashed where it may not be run twice),
        expired: with `RequestTimeout`,
        cancelled: its caller left.
        redelivered: times that a request went to another worker because its own died.
        queued: requests that wait for a worker now.
        restarts: workers that ended while in service, by reason.
        workers: the workers now.
    """

    name: str
    state: str
    submitted: int
    answered: int
    failed: int
    expired: int
    cancelled: int
    redelivered: int
    queued: int
    restarts: dict[str, int]
    workers: tuple[WorkerStats, ...]
