"""What the supervisor reports to the one event stream of `guardrails.core.events`. `source` is the runner's name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrails.core.events import Event

if TYPE_CHECKING:
    from runners.supervision.stats import RunnerStats

#: Where sinks find what to count of these events, once the first one comes.
__telemetry__ = "runners.telemetry.instruments"
#: And what to say of them.
__records__ = "runners.telemetry.records"


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
    """A worker ended: `reason` is one word or two, `detail` a sentence, `stderr` its last lines.

    So did one that could not be brought up (``start_failed``, unless it has another reason). `traceback` is then that
    of the exception in the worker, if that was the cause.
    """

    pid: int
    reason: str
    detail: str
    stderr: str
    traceback: str = ""


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
class SupervisionFailed(Event):
    """A supervision task failed with an exception that it did not expect: out of descriptors or memory, for example.

    `task` is ``restart``, ``load``, ``replace``, ``scale``, ``watch``, ``publish`` ...; `error` is the exception's type
    and message. It is tried again in `retry_in` seconds; None: with the next occasion for it.
    """

    task: str
    error: str
    retry_in: float | None


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
class ModelFileChanged(Event):
    """A new worker was refused: the file at `path` is not the one that the others have loaded. `recycle()` takes it."""

    path: str


@dataclass(frozen=True, slots=True)
class RunnerUnloaded(Event):
    """All workers of a runner without work were drained: ``idle`` for long, or ``evicted`` for another of its fleet.

    They held `freed` private bytes.
    """

    reason: str
    freed: int


@dataclass(frozen=True, slots=True)
class FleetOverBudget(Event):
    """The busy runners of a fleet have held `used` bytes, more than its `budget`, for so many `seconds`.

    `action` is what is done about it, to the runner that is the source: ``replaced`` (one of its workers, which kept
    the most), ``unloaded`` (it answers what it has; what waits for it waits for room), or ``none`` (nothing is possible
    now).
    """

    budget: int
    used: int
    seconds: float
    action: str


@dataclass(frozen=True, slots=True)
class RequestFinished(Event):
    """A request of a runner is over, however it ended.

    Attributes:
        operation: ``chat``, ``text_completion``, ``embeddings``, ``tokenize``, ``call`` or ``stream``.
        model: the model's file or the function's name, without folders.
        outcome: ``answered``, ``failed``, ``expired`` or ``cancelled``.
        error: the type of the error that the caller got; None when answered, or when he closed a stream.
        seconds: from the call to its end, and `queued` of them before a worker had it.
        first: seconds to the first token or item of a stream; None without one.
        input_tokens: of the prompt or the texts, where the engine counts them, and `output_tokens` of the answer.
    """

    operation: str
    model: str
    outcome: str
    error: str | None
    seconds: float
    queued: float
    first: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class RunnerSampled(Event):
    """How a runner does, once a second."""

    stats: RunnerStats
