"""The alert ``memory_high``: a limit, or a worker's budget, is nearly used up."""

from __future__ import annotations

from guardrails.core.sizes import format_size
from guardrails.memory.monitor.finding import Finding
from guardrails.memory.monitor.sample import Sample
from guardrails.memory.monitor.thresholds import Level, LevelWatch, Marks

NAME = "memory_high"
_HOST = (
    "Find the largest processes in the monitor's log line or in its history. Lower budgets or the number of workers, "
    "limit how many calls run at once (admit), or take a larger machine"
)
_CGROUP = (
    "The kernel kills when this limit is reached. Raise the container's limit, or lower the workers' budgets so that "
    "together with this process they stay below it"
)
_WORKER = (
    "The worker will be replaced, with no request lost. If that happens often its budget is too small for its work, or "
    "it leaks: see memory_growth"
)


def memory_high(
    source: str, level: Level, used: int, limit: int, marks: Marks, *, worker: bool = False
) -> Finding | None:
    """The finding for this level of `source`. Pure.

    Args:
        source: ``host``, a cgroup's path, or a worker's name.
        level: as a `LevelWatch` has it.
        used: bytes, of
        limit: so many.
        marks: what the level was judged by.
        worker: whether it is one, and the limit its soft budget. It is replaced there, so it is never critical.
    """
    if level == "normal":
        return None
    mark = marks.critical if level == "critical" and not worker else marks.warning
    share = used / limit if limit else float("inf")
    return Finding(
        NAME,
        source,
        "critical" if level == "critical" and not worker else "warning",
        f"{format_size(used)} of {format_size(limit)} used, {share:.0%}: above {mark:.0%}",
        _WORKER if worker else _HOST if source == "host" else _CGROUP,
        {"used": used, "limit": limit, "share": round(share, 4)},
    )


class HighMemory:
    """The levels of all scopes, and of all processes with a budget.

    Args:
        marks: for all of them.
    """

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._levels: dict[str, LevelWatch] = {}

    def judge(self, now: float, sample: Sample) -> list[Finding]:
        """What is high at `now`, in seconds on a steady clock."""
        limits = {scope.name: (scope.used, scope.limit, False) for scope in sample.scopes}
        for each in sample.processes:
            if each.budget is not None:
                limits[each.name] = (each.private, each.budget, True)
        self._levels = {name: self._levels.get(name) or LevelWatch(self._marks) for name in limits}
        found = []
        for name, (used, limit, worker) in limits.items():
            level = self._levels[name].update(now, used / limit if limit else float("inf"))
            finding = memory_high(name, level, used, limit, self._marks, worker=worker)
            if finding is not None:
                found.append(finding)
        return found
