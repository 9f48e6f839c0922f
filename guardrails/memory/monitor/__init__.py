"""The memory monitor: what every process holds, second by second, what is wrong with it, and what to do.

::

                        ┌──────────────── one look, once a second, on the monitor's thread ────────────────┐
    /proc, cgroups ──▶  processes, scopes ─▶ Sample ─▶ history (seconds, minutes, hours)                    │
                        │                      └─▶ thresholds ─▶ memory_high ──┐                             │
                        │                      └─▶ leak verdict ─▶ memory_growth ──▶ alerts ─▶ AlertRaised,  │
    event stream ──▶    queue ─▶ traffic of each source ─▶ the other signs ──┘            AlertCleared, log │
                        └──────────────────────────────────────────────────────────────────────────────────┘

The rooms::

    monitor     MemoryMonitor: its thread, forks, the face
      │
    observer    one look, without a thread
      │
    relief      what is done when this process grows
      │
    signs       the deciders, and what hears the events        log_handler, log_line
      │
    alerts, history, thresholds, finding                       pure
      │
    processes, scopes ─ reader ─ names                         what the system says
      │
    sample                                                     plain data
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrails._lazy import lazy

if TYPE_CHECKING:
    from guardrails.memory.monitor.monitor import MemoryMonitor as MemoryMonitor
    from guardrails.memory.monitor.sample import ProcessSample as ProcessSample
    from guardrails.memory.monitor.sample import Sample as Sample

__all__ = ["MemoryMonitor", "ProcessSample", "Sample"]

#: Loaded when asked for: runners import `names` from here as they start, and nothing else.
_HOMES = {
    "MemoryMonitor": "memory.monitor.monitor",
    "ProcessSample": "memory.monitor.sample",
    "Sample": "memory.monitor.sample",
}

if not TYPE_CHECKING:  # else every name would be one, for type checkers
    __getattr__ = lazy(__name__, _HOMES)
