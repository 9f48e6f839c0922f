"""Memory as it is: what processes really hold, what the machine and its cgroups really allow.

    from guardrails.memory import MemoryMonitor

    monitor = MemoryMonitor().start()

The monitor is loaded when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails._lazy import lazy

if TYPE_CHECKING:
    from guardrails.memory.monitor.monitor import MemoryMonitor as MemoryMonitor

__all__ = ["MemoryMonitor"]

#: Guards and runners import modules of this package, and need no monitor.
_HOMES = {"MemoryMonitor": "memory.monitor.monitor"}

if not TYPE_CHECKING:  # else every name would be one, for type checkers
    __getattr__ = lazy(__name__, _HOMES)
