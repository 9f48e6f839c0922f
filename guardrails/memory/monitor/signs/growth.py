"""The sign ``memory_growth``: a process grows and does not stop. The verdict is `guardrails.memory.leak`'s."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

from guardrails.core.sizes import format_size
from guardrails.memory.leak import LeakWatch, Verdict
from guardrails.memory.monitor.finding import Finding
from guardrails.memory.monitor.sample import ProcessSample, Role, Sample

NAME = "memory_growth"
#: The sum of all processes.
TOTAL = "total"
#: Seconds before a limit is reached from which on growth is critical.
SOON = 900.0
#: Seconds that the sum's alarm must last: it is often the first to see what one process does, which is the better news.
SUM_FOR = 300.0
_ACTIONS: Mapping[str, str] = {
    "self": "Find what this process keeps: MemoryMonitor(trace=True) names the lines that allocate most; look for "
    "caches and lists without a bound, and for tasks that never end. What cannot be mended soon belongs into a runner "
    "with a budget",
    "worker": "Give the runner memory=, so that a worker is replaced before this matters, or max_requests=; then look "
    "for what its requests leave behind (growth_per_request in its stats)",
    "child": "Look at what this program keeps, and end and start it again at times; or run its work in a runner with a "
    "budget",
    TOTAL: "No process grows by itself, but all of them together do: look whether more and more processes are started",
}


def memory_growth(
    source: str, verdict: Verdict | None, *, role: Role | str = "self", held: int = 0, limit: int | None = None
) -> Finding | None:
    """The finding for a verdict on `source`. Pure.

    Args:
        source: the process's name, or ``total``.
        verdict: on its history; None for no alarm.
        role: what it is; ``total`` for the sum.
        held: private bytes now.
        limit: private bytes that it can hold at most, by its budget or by what is left of the machine's limits.
    """
    if verdict is None or not verdict.leaking:
        return None
    values: dict[str, float | int | str] = {"slope": round(verdict.slope, 3), "held": held}
    message = f"grows by {_rate(verdict.slope)} ({_rate(verdict.slope_low)} to {_rate(verdict.slope_high)})"
    # From what it holds now: the verdict is a minute old, or hours.
    reached = None if limit is None else replace(verdict, level=held).reaches(max(1, limit))
    if limit is not None and reached is not None:
        message += (
            f"; holds {format_size(held)} and reaches {format_size(limit)} in {_time(reached.seconds)}"
            f" ({_time(reached.low)} to {_time(reached.high)})"
        )
        values |= {"limit": limit, "reached_in": round(reached.seconds, 1), "reached_in_low": round(reached.low, 1)}
        if math.isfinite(reached.high):
            values["reached_in_high"] = round(reached.high, 1)
    critical = reached is not None and reached.seconds <= SOON
    return Finding(NAME, source, "critical" if critical else "warning", message, _ACTIONS[role], values)


class GrowthWatch(Protocol):
    """What `guardrails.memory.leak.LeakWatch` is: a history of one process that is judged as it grows."""

    alarm: Verdict | None

    def add(self, seconds: float, size: float) -> bool:
        """A reading; whether the alarm has begun or ended with it."""
        ...


def _leak_watch(budget: int | None) -> GrowthWatch:
    # A look is milliseconds of Python, and an event loop in another thread would wait for all of them.
    return LeakWatch(budget=budget, between=partial(time.sleep, 0))


class Growth:
    """A watch for each process, and one for their sum.

    In the sum a process counts for its budget, where it has one: what it takes of that is its own affair, but that
    there are more and more of them is not. The sum's alarm counts only where no process has one of its own, or gets
    one soon: it would say the same again.

    Args:
        make: makes the watch of a process that is new, from its budget in bytes, or None.
    """

    def __init__(self, make: Callable[[int | None], GrowthWatch] = _leak_watch) -> None:
        self._make = make
        self._watches: dict[tuple[str, int], GrowthWatch] = {}
        self._sum_since: float | None = None

    def judge(self, now: float, sample: Sample) -> list[Finding]:
        """What grows at `now`, in seconds on a steady clock."""
        room = min((max(0, scope.limit - scope.used) for scope in sample.scopes), default=None)
        granted = sum(each.budget or each.private for each in sample.processes)
        total = ProcessSample(TOTAL, 0, "self", sample.private, 0)
        everybody = {(each.name, each.pid): each for each in (*sample.processes, total)}
        # A worker that comes in place of another is another one, also where it has the name.
        self._watches = {key: self._watches.get(key) or self._make(each.budget) for key, each in everybody.items()}
        found: dict[str, Finding] = {}
        for key, process in everybody.items():
            watch = self._watches[key]
            watch.add(now, granted if process is total else process.private)
            limit = process.budget
            if limit is None and room is not None:
                limit = process.private + room
            role = TOTAL if process is total else process.role
            finding = memory_growth(process.name, watch.alarm, role=role, held=process.private, limit=limit)
            if finding is not None:
                found[process.name] = finding
        if TOTAL not in found:
            self._sum_since = None
        elif self._sum_since is None:
            self._sum_since = now
        if len(found) > 1 or self._sum_since is None or now - self._sum_since < SUM_FOR:
            found.pop(TOTAL, None)
        return list(found.values())

    def after_fork(self) -> None:
        """In a forked child: it is another process."""
        self._watches.clear()
        self._sum_since = None


def _rate(slope: float) -> str:
    return f"{format_size(slope * 60)}/min"


def _time(seconds: float) -> str:
    if math.isinf(seconds):
        return "never"
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
