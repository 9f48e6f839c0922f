"""The events of runners in words, for every sink. Importing this module registers them.

It is loaded when the first of them is described: `runners.supervision.events` names it.
"""

from __future__ import annotations

from guardrails.telemetry.records import Record, Severity, record, register
from runners.supervision.events import (
    FleetOverBudget,
    ModelFileChanged,
    RequestFinished,
    RequestsRedelivered,
    RunnerSampled,
    RunnerScaled,
    RunnerStateChanged,
    RunnerUnloaded,
    ScaleUpHeld,
    SupervisionFailed,
    WorkerExited,
    WorkerReady,
    WorkerReplaced,
)

#: Ends of a worker that were meant: a replacement says so itself, in `WorkerReplaced`.
_MEANT = frozenset({"drained", "stopped"})
_HINTS = {
    "start_failed": "it could not be loaded; the error that `start` raised says why",
    "hard_budget": "raise memory_hard= if the load is legitimate; else find what grows",
    "oom_kill": "set memory= below what the machine or its cgroup has",
    "sigsegv": "a crash in native code: update the engine, or report it with the last lines of its standard error",
    "exit_0": "its own code ended it (sys.exit, os._exit): find what does, or have it raise an exception",
    "start_timeout": "raise start_timeout=, or look for what keeps the model from loading",
}


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _state(event: RunnerStateChanged) -> Record:
    severity: Severity = "error" if event.new == "failed" else "info"
    return record(event, "runner.state_changed", severity, f"{event.old} -> {event.new}")


def _ready(event: WorkerReady) -> Record:
    message = f"worker {event.pid} is ready after {event.seconds:.3g} s, with {_mib(event.baseline)}"
    return record(event, "runner.worker_ready", "info", message)


def _exited(event: WorkerExited) -> Record:
    severity: Severity = "info" if event.reason in _MEANT else "error"
    if event.reason == "drain_timeout":
        severity = "warning"  # it was to go anyhow, and took its time
    return record(
        event,
        "runner.worker_exited",
        severity,
        f"worker {event.pid} ended: {event.reason}",
        fields={"pid": event.pid, "reason": event.reason},
        hint=_HINTS.get(event.reason, ""),
        attachments={"detail": event.detail, "stderr": event.stderr, "traceback": event.traceback},
    )


def _replaced(event: WorkerReplaced) -> Record:
    how = "with no gap" if event.overlapped else "after it had gone"
    message = f"worker {event.old_pid} was replaced by {event.new_pid}, {how}: {event.reason}"
    return record(event, "runner.worker_replaced", "info", message)


def _redelivered(event: RequestsRedelivered) -> Record:
    message = f"{event.count} requests of the dead worker {event.pid} go to another one"
    return record(event, "runner.requests_redelivered", "warning", message)


def _scaled(event: RunnerScaled) -> Record:
    return record(event, "runner.scaled", "info", f"{event.old} -> {event.new} workers")


def _held(event: ScaleUpHeld) -> Record:
    message = f"worker {event.workers + 1} does not fit: it needs {_mib(event.expected)}, {_mib(event.free)} are free"
    hint = "give the machine or its cgroup more memory, or lower the maximum of workers="
    return record(event, "runner.scale_up_held", "warning", message, hint=hint)


def _unloaded(event: RunnerUnloaded) -> Record:
    return record(event, "runner.unloaded", "info", f"unloaded, {event.reason}: {_mib(event.freed)} are free again")


def _over_budget(event: FleetOverBudget) -> Record:
    done = {"replaced": "a worker is replaced", "unloaded": "it is unloaded", "none": "nothing can be done now"}
    message = (
        f"busy runners of the fleet have held {_mib(event.used)} of {_mib(event.budget)} for {event.seconds:.3g} s: "
        f"{done.get(event.action, event.action)}"
    )
    hint = "raise the fleet's budget, or give its runners less to do at a time"
    return record(event, "runner.fleet_over_budget", "warning", message, hint=hint)


def _model_changed(event: ModelFileChanged) -> Record:
    message = f"a new worker was refused: {event.path} is not the file that the others have loaded"
    hint = "call recycle() to take the new file for all workers, or put the old one back"
    return record(event, "runner.model_changed", "error", message, hint=hint)


def _supervision(event: SupervisionFailed) -> Record:
    again = "" if event.retry_in is None else f"; trying again in {event.retry_in:.3g} s"
    fields = {"task": event.task, "retry_in": event.retry_in}
    hint = "it heals when the cause goes, such as a lack of descriptors, memory or processes"
    message = f"{event.task} failed: {event.error}{again}"
    return record(event, "runner.supervision_failed", "error", message, fields=fields, hint=hint)


def _finished(event: RequestFinished) -> Record:
    message = f"{event.operation} over in {event.seconds:.3g} s: {event.error or event.outcome}"
    return record(event, "runner.request_finished", "debug", message)


def _sampled(event: RunnerSampled) -> Record:
    stats = event.stats
    private = sum(worker.private for worker in stats.workers)
    running = sum(worker.in_flight for worker in stats.workers)
    fields = {
        "state": stats.state,
        "workers": len(stats.workers),
        "private": private,
        "in_flight": running,
        "queued": stats.queued,
    }
    message = f"{stats.state}: {len(stats.workers)} workers hold {_mib(private)}, {running} requests run, "
    return record(event, "runner.sampled", "debug", f"{message}{stats.queued} wait", fields=fields)


register(RunnerStateChanged, _state, replace=True)
register(WorkerReady, _ready, most="info", replace=True)
register(WorkerExited, _exited, replace=True)
register(WorkerReplaced, _replaced, most="info", replace=True)
register(RequestsRedelivered, _redelivered, most="warning", replace=True)
register(RunnerScaled, _scaled, most="info", replace=True)
register(ScaleUpHeld, _held, most="warning", replace=True)
register(FleetOverBudget, _over_budget, most="warning", replace=True)
register(ModelFileChanged, _model_changed, most="error", replace=True)
register(RunnerUnloaded, _unloaded, most="info", replace=True)
register(SupervisionFailed, _supervision, replace=True)
register(RequestFinished, _finished, most="debug", replace=True)
register(RunnerSampled, _sampled, most="debug", replace=True)
