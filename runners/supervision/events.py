"""What the supervisor reports to the one event stream of `guardrails.core.events`. `source` is the runner's name."""

from __future__ import annotations

from dataclasses import dataclass

from guardrails.core.events import Event


@dataclass(frozen=True, slots=True)
class RunnerStateChanged(Event):
    """The runner as a whole moved from `old` to `new`: ``starting``, ``ready``, ``idle``, ``draining``,
    ``failed`` or ``stopped``.
    """

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class WorkerReady(Event):
    """A worker is loaded and warm, and holds `baseline` private bytes. It took `seconds`."""

    pid: int
    baseline: int
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerExited(Event):
    """A worker ended: `reason` is one word or two, `detail` a sentence, `stderr` its last lines."""

    pid: int
    reason: str
    detail: str
    stderr: str


@dataclass(frozen=True, slots=True)
class WorkerReplaced(Event):
    """A worker was replaced while it was in service, for `reason`; `overlapped` when the new one was up before it
    went.
    """

    old_pid: int
    new_pid: int
    reason: str
    overlapped: bool


@dataclass(frozen=True, slots=True)
class RequestsRedelivered(Event):
    """`count` requests of a worker that died go to another one."""

    pid: int
    count: int


@dataclass(frozen=True, slots=True)
class RunnerScaled(Event):
    """The runner went from `old` to `new` workers because of its load."""

    old: int
    new: int


@dataclass(frozen=True, slots=True)
class ScaleUpHeld(Event):
    """One more than `workers` would be needed, but the `expected` bytes do not fit into the `free` ones."""

    workers: int
    expected: int
    free: int


@dataclass(frozen=True, slots=True)
class RunnerUnloaded(Event):
    """All workers of a runner without work were drained: ``idle`` for long, or ``evicted`` for another of its fleet.

    They held `freed` private bytes.
    """

    reason: str
    freed: int
