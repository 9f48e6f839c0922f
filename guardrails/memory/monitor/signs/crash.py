"""The sign ``memory_crash``: something broke because memory ran out, and said so. Pure."""

from __future__ import annotations

from collections import Counter, deque

from guardrails.memory.monitor.finding import Finding
from guardrails.memory.monitor.signs.exhaustion import exhausted

NAME = "memory_crash"
#: Seconds that a crash stays news, and crashes of one source that are remembered.
WINDOW = 600.0
MOST = 64
#: From so many on it is critical, whatever the cause: what was caught once is not caught for ever.
MANY = 3

#: Causes that nothing caught: what died, died without a word.
_KILLED = frozenset({"oom_kill", "kernel"})
_ACTIONS = {
    "hard_budget": "A worker grew to its hard budget and was killed; its requests were run again. If a request may "
    "need as much, raise memory_hard=; else limit the size of requests, and how many run at once",
    "oom_kill": "Budgets and limits do not fit together: set memory= so that all workers and this process stay below "
    "the cgroup's limit, or raise that",
    "v8": "Node's heap reached its limit: set --max-old-space-size to about three quarters of the memory limit",
    "cuda": "The accelerator's memory is full: fewer at once, a shorter context, or a smaller or quantised model",
}
_ACTIONS["kernel"] = _ACTIONS["oom_kill"]
_OTHERWISE = (
    "An allocation failed: fewer at once, smaller inputs or a shorter context; and set memory= on the runner, so that "
    "a worker is replaced before it comes to this"
)
#: Reasons of a worker's end that are causes by themselves, and those for which it need not have said anything.
_REASONS = frozenset({"hard_budget", "oom_kill"})
_ON_PURPOSE = frozenset({"stopped", "drained"})


def cause_of_exit(reason: str, stderr: str) -> str | None:
    """What memory had to do with a worker's end: ``hard_budget``, ``oom_kill``, who said so in its last words (see
    `exhausted`), or None.

    Args:
        reason: one word or two, as the runner has it.
        stderr: its last lines.
    """
    return reason if reason in _REASONS else exhausted(stderr) if reason not in _ON_PURPOSE else None


class Crashes:
    """The last crashes by memory of one source."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: deque[tuple[float, str]] = deque(maxlen=MOST)

    def add(self, now: float, cause: str) -> None:
        """One, at `now` in seconds on a steady clock."""
        self._seen.append((now, cause))

    def recent(self, now: float) -> Counter[str]:
        """Those of the last ten minutes, by cause."""
        while self._seen and now - self._seen[0][0] >= WINDOW:
            self._seen.popleft()
        return Counter(cause for _, cause in self._seen)


def memory_crash(source: str, recent: Counter[str]) -> Finding | None:
    """Whether `source` has crashed by memory in the last ten minutes.

    Args:
        source: the runner or the logger.
        recent: crashes by cause.
    """
    crashes = recent.total()
    if not crashes:
        return None
    causes = ", ".join(f"{cause} {count}" for cause, count in recent.most_common())
    worst = next((cause for cause in recent if cause in _KILLED), recent.most_common(1)[0][0])
    return Finding(
        NAME,
        source,
        "critical" if worst in _KILLED or crashes >= MANY else "warning",
        f"memory ran out {f'{crashes} times' if crashes > 1 else 'once'} within 10 min ({causes})",
        _ACTIONS.get(worst, _OTHERWISE),
        {"crashes": crashes, "cause": worst},
    )
