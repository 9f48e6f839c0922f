"""The memory monitor's sign of life to Sentry's cron monitoring: decided here, once a minute at most. Pure.

Each look at memory may bring a check-in. A monitor that is dead, or whose process is, looks no more, and Sentry
misses it.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Literal

#: Seconds between two check-ins; Sentry knows no schedule below a minute.
EVERY = 60.0
#: What Sentry is told to expect. It makes the monitor of it where there is none of that name. Times are in minutes.
SCHEDULE: dict[str, Any] = {
    "schedule": {"type": "interval", "value": 1, "unit": "minute"},
    "checkin_margin": 2,
    "max_runtime": 2,
    "failure_issue_threshold": 2,
    "recovery_threshold": 1,
}
_MAX_STANDING = 1024


@dataclass(frozen=True, slots=True)
class CheckIn:
    """One check-in. `duration` is in seconds; `id` ties the two of one minute together."""

    id: str
    status: Literal["in_progress", "ok", "error"]
    duration: float | None


class CheckIns:
    """Says when to check in, and how.

    The first look begins a check-in (``in_progress``), so that a process that dies in its first minute is missed too;
    a minute later that one ends, and from then on each minute has its own: ``ok``, or ``error`` while a critical alert
    stands.
    """

    def __init__(self) -> None:
        self._last: float | None = None
        self._open: str | None = None
        self._standing: set[tuple[str, str]] = set()

    def raised(self, source: str, alert: str) -> None:
        """A critical alert stands from now on."""
        if len(self._standing) < _MAX_STANDING:
            self._standing.add((source, alert))

    def cleared(self, source: str, alert: str) -> None:
        """An alert is over."""
        self._standing.discard((source, alert))

    def due(self, now: float) -> CheckIn | None:
        """At a look at memory, at `now` in seconds: the check-in to send, if it is time for one."""
        if self._last is None:
            self._last = now
            self._open = uuid.uuid4().hex
            return CheckIn(self._open, "in_progress", None)
        passed = now - self._last
        if passed < EVERY:
            return None
        self._last = now
        opened, self._open = self._open, None
        return CheckIn(opened or uuid.uuid4().hex, "error" if self._standing else "ok", passed)
