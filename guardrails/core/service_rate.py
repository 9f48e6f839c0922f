"""How long a call will have to wait: a pure estimate from how fast waiting calls were let in.

The time between two grants is averaged with exponential weights over grants that followed one another while somebody
waited, for only these tell the rate at full load; the call at place n then waits n times that. Nothing is predicted
before five grants were seen, nor from grants of more than a minute ago.
"""

from __future__ import annotations

_WEIGHT = 0.2
_ENOUGH = 5
_STALE_AFTER = 60.0


class ServiceRate:
    """The pace of grants. Times are seconds of one clock. A grant of n calls at once is n grants."""

    __slots__ = ("_last", "_mean", "_seen", "_since")

    def __init__(self) -> None:
        self._mean = 0.0
        self._seen = 0
        self._last = 0.0
        self._since: float | None = None

    def began(self, now: float) -> None:
        """Somebody waits, and nobody did before: from here on grants are timed."""
        self._since = now

    def granted(self, now: float, count: int, waiting: int) -> None:
        """`count` calls (at least one) were let in at `now`; `waiting` wait still."""
        since, self._since = self._since, now if waiting else None
        if since is None:
            return
        interval = max(0.0, now - since) / count
        if self._seen and now - self._last > _STALE_AFTER:
            self._seen = 0
        self._mean = interval if not self._seen else self._mean + (interval - self._mean) * _WEIGHT
        self._seen += count
        self._last = now

    def interval(self, now: float) -> float | None:
        """Mean seconds between two grants, or None while there is no telling."""
        return self._mean if self._seen >= _ENOUGH and now - self._last <= _STALE_AFTER else None

    def wait(self, ahead: int, now: float) -> float | None:
        """Seconds that a call will wait behind `ahead` others, or None while there is no telling."""
        interval = self.interval(now)
        return None if interval is None else (ahead + 1) * interval
