"""Snapshots of a runner, for people and dashboards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from runners.supervision.worker import Worker


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker. Sizes are bytes.

    Attributes:
        pid: the process.
        state: ``starting``, ``ready``, ``draining`` or ``exited``.
        private: private memory at the last reading, at most a fraction of a second old.
        baseline: private memory when freshly loaded and warm.
        in_flight: requests that it has.
        answered: requests that it has answered.
        pss: private memory and its share of what it has in common with other processes, mapped models included, at the
            last exact reading: a few seconds old where `stats` is asked for regularly. None where the system does not
            know it (macOS).
        growth: bytes a second by which `private` grows, robustly; 0.0 while it does not, or is not known to.
        soft_budget_in: seconds until the soft budget is reached at this growth; None without growth, or a budget.
        hard_limit: what holds the hard budget: ``"cgroup"`` (and the watchdog), ``"watchdog"``, or None for no budget.
        age: seconds in service.
    """

    pid: int
    state: str
    private: int
    baseline: int
    in_flight: int
    answered: int
    pss: int | None = None
    growth: float = 0.0
    soft_budget_in: float | None = None
    hard_limit: Literal["cgroup", "watchdog"] | None = None
    age: float = 0.0


def worker_stats(worker: Worker, now: float, soft: int | None) -> WorkerStats:
    """A snapshot of one worker, at `now` on the loop's clock."""
    memory = worker.memory
    return WorkerStats(
        pid=worker.pid,
        state=worker.state,
        private=worker.private,
        baseline=worker.baseline,
        in_flight=len(worker.in_flight),
        answered=worker.answered,
        pss=memory.pss,
        growth=memory.trend.slope(),
        soft_budget_in=None if soft is None else memory.trend.seconds_until(soft, now),
        hard_limit=memory.hold.kind,
        age=now - memory.since,
    )


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
        restarts: workers that ended while in service, by reason; replacements by theirs (``soft_budget``,
            ``forecast``, ``max_age``, ``max_requests``, ``recycle``).
        workers: the workers now.
        growth_per_request: bytes that a request leaves behind in its worker, learned, by the upper bound in bytes of
            its size class (a power of four).
        model_changed: the file that is not the one that the workers have loaded, so that no new worker is taken; see
            `recycle`. None, nearly always.
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
    growth_per_request: dict[int, int] = field(default_factory=dict)
    model_changed: str | None = None


def runner_stats(
    name: str,
    state: str,
    counts: Mapping[str, int],
    *,
    queued: int,
    restarts: dict[str, int],
    workers: tuple[WorkerStats, ...],
    growth: dict[int, int],
    model_changed: str | None,
) -> RunnerStats:
    """A snapshot of a runner; `counts` is the dispatcher's."""
    return RunnerStats(
        name=name,
        state=state,
        submitted=counts["submitted"],
        answered=counts["answered"],
        failed=counts["failed"],
        expired=counts["expired"],
        cancelled=counts["cancelled"],
        redelivered=counts["redelivered"],
        queued=queued,
        restarts=restarts,
        workers=workers,
        growth_per_request=growth,
        model_changed=model_changed,
    )
