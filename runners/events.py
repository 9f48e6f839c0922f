"""Every event that runners emit, into the one stream of `guardrails.events`.

    from guardrails import subscribe
    from runners.events import WorkerExited

    unsubscribe = subscribe(lambda event: ...)

An event is a frozen dataclass with the runner's name as `source`. It never holds a prompt, an argument or a result.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

__all__ = [
    "FleetOverBudget",
    "ModelFileChanged",
    "RequestFinished",
    "RequestsRedelivered",
    "RunnerSampled",
    "RunnerScaled",
    "RunnerStateChanged",
    "RunnerUnloaded",
    "ScaleUpHeld",
    "SupervisionFailed",
    "WorkerExited",
    "WorkerReady",
    "WorkerReplaced",
]

if not TYPE_CHECKING:  # else every name would be one, for type checkers

    def __getattr__(name: str) -> object:
        if name not in __all__:
            msg = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(msg)
        found = globals()[name] = getattr(import_module("runners.supervision.events"), name)
        return found
