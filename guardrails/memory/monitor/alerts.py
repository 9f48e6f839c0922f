"""From findings to alerts: raised once, repeated seldom, cleared when over, and never a flood. Pure: it reads no clock.

::

    finding        ▁▁▁▁████████████▁▁▁▁▁▁▁▁████▁▁▁██▁▁▁▁▁▁▁     █ warning, found at each look
    active             ├──────────┤        ├──┤   ├┤
    announced          R          C         (within `quiet`: kept to itself)

An alert is *active* from its first finding to its last. It is *announced* (an `AlertRaised` for everybody) when it
becomes active, once more when it gets worse, and then every `remind` seconds; but for one alert of one source not
twice within `quiet` seconds, unless it got worse, and for all together at most `burst` times within a minute. What
could not be announced is, as soon as it may, if it is still active. Only what was announced is cleared for all to hear.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from guardrails.memory.monitor.finding import Finding
from guardrails.memory.signals import AlertCleared, AlertRaised, Severity

#: Active alerts, and ended ones whose times are remembered, at most. Findings beyond wait for a place.
MOST_ACTIVE = 256
_REMEMBERED = 1024
_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Alert:
    """An active alert.

    Attributes:
        since: when it became active, in seconds since the epoch.
        announced: whether an `AlertRaised` told of it; if not, it came too soon after the last one.

    The others are those of `AlertRaised`.
    """

    alert: str
    source: str
    severity: Severity
    message: str
    action: str
    values: Mapping[str, float | int | str]
    since: float
    announced: bool


class _Active:
    __slots__ = ("announced", "began", "finding", "since", "told")

    def __init__(self, finding: Finding, now: float, since: float) -> None:
        self.finding = finding
        self.began = now
        self.since = since
        self.announced: Severity | None = None
        self.told = float("-inf")


class Alerts:
    """All alerts of one monitor. Used by one thread at a time; `active` may be read by any.

    Args:
        quiet: seconds between two announcements of one alert of one source, at least.
        remind: seconds after which one that is still active is announced again.
        burst: announcements within a minute, of all together, at most.
        wall: seconds since the epoch.

    Attributes:
        active: those that are, the oldest first.
        withheld: announcements that came too soon, so far.
    """

    def __init__(
        self,
        *,
        quiet: float = 300.0,
        remind: float = 3600.0,
        burst: int = 20,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._quiet = quiet
        self._remind = remind
        self._burst = burst
        self._wall = wall
        self._active: dict[tuple[str, str], _Active] = {}
        self._last: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._recent: deque[float] = deque()
        self.active: tuple[Alert, ...] = ()
        self.withheld = 0

    def settle(self, now: float, findings: Iterable[Finding]) -> list[AlertRaised | AlertCleared]:
        """What is found at `now` (seconds, on a steady clock): all of it. Returns what is to be announced."""
        found = {finding.key: finding for finding in findings}
        news: list[AlertRaised | AlertCleared] = []
        for key in [key for key in self._active if key not in found]:
            ended = self._active.pop(key)
            if ended.announced is not None:
                news.append(AlertCleared(key[1], key[0], now - ended.began))
        for key, finding in found.items():
            active = self._active.get(key)
            if active is None:
                if len(self._active) >= MOST_ACTIVE:
                    continue
                active = self._active[key] = _Active(finding, now, self._wall())
                if not self._may(now, key, active):
                    self.withheld += 1
            active.finding = finding
            if self._due(now, active) and self._may(now, key, active):
                self._note(now, key, active)
                news.append(
                    AlertRaised(
                        finding.source,
                        finding.alert,
                        finding.severity,
                        finding.message,
                        finding.action,
                        dict(finding.values),
                    )
                )
        self.active = tuple(_public(active) for active in self._active.values())
        return news

    def _due(self, now: float, active: _Active) -> bool:
        return active.announced is None or _worse(active) or now - active.told >= self._remind

    def _may(self, now: float, key: tuple[str, str], active: _Active) -> bool:
        while self._recent and now - self._recent[0] >= _MINUTE:
            self._recent.popleft()
        if len(self._recent) >= self._burst:
            return False
        return _worse(active) or now - self._last.get(key, float("-inf")) >= self._quiet

    def _note(self, now: float, key: tuple[str, str], active: _Active) -> None:
        active.announced, active.told = active.finding.severity, now
        self._recent.append(now)
        self._last[key] = now
        self._last.move_to_end(key)
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)

    def after_fork(self) -> None:
        """In a forked child: the parent's alerts are the parent's."""
        self._active.clear()
        self.active = ()


def _worse(active: _Active) -> bool:
    """Whether it has got worse since it was announced."""
    return active.announced == "warning" and active.finding.severity == "critical"


def _public(active: _Active) -> Alert:
    finding = active.finding
    return Alert(
        finding.alert,
        finding.source,
        finding.severity,
        finding.message,
        finding.action,
        finding.values,
        active.since,
        active.announced is not None,
    )
