"""When memory is high: marks on the share of a limit, with hysteresis and a minimum time. Pure.

::

    share of the limit    0 ───────────── 0.75 ── 0.80 ─────────── 0.85 ── 0.90 ──── 1
                               normal       │ warning │               │ critical │
                                            └─────────┘               └──────────┘
                           once there, it stays so until it has been below for as long as it took to get there

A share must be at or above a mark for `seconds` before the level changes, and below it, less `slack`, for as long
before it changes back: neither a peak of a second nor a reading that trembles at the mark is news.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["normal", "warning", "critical"]

#: What is critical is waited for this much shorter: a limit that is nearly reached leaves no time.
_HURRY = 5.0


@dataclass(frozen=True, slots=True)
class Marks:
    """Shares of a limit, and times.

    Attributes:
        warning: from here on memory is high.
        critical: from here on it is about to run out.
        slack: how far below its mark a share must fall for the level to fall.
        seconds: for how long, in either direction; for `critical` a fifth of it is enough.

    Raises:
        ValueError: they make no sense together. The message names them.
    """

    warning: float = 0.80
    critical: float = 0.90
    slack: float = 0.05
    seconds: float = 10.0

    def __post_init__(self) -> None:
        """Check."""
        if not 0 < self.slack < self.warning < self.critical <= 1:
            msg = (
                f"marks must rise, 0 < slack < warning < critical <= 1, "
                f"not slack={self.slack!r}, warning={self.warning!r}, critical={self.critical!r}"
            )
            raise ValueError(msg)
        if not self.seconds >= 0:
            msg = f"seconds takes a number of at least 0, not {self.seconds!r}"
            raise ValueError(msg)


class _Mark:
    """One mark: reached or not."""

    __slots__ = ("at", "reached", "seconds", "slack", "turning")

    def __init__(self, at: float, slack: float, seconds: float) -> None:
        self.at = at
        self.slack = slack
        self.seconds = seconds
        self.reached = False
        self.turning: float | None = None  # since when the share is on the other side

    def update(self, now: float, share: float) -> bool:
        beyond = share >= self.at - (self.slack if self.reached else 0.0)
        if beyond == self.reached:
            self.turning = None
            return self.reached
        if self.turning is None:
            self.turning = now
        if now - self.turning >= self.seconds:
            self.reached, self.turning = beyond, None
        return self.reached


class LevelWatch:
    """The level of one scope over time.

    Args:
        marks: when it changes.
    """

    __slots__ = ("_critical", "_warning", "level")

    def __init__(self, marks: Marks) -> None:
        self._warning = _Mark(marks.warning, marks.slack, marks.seconds)
        self._critical = _Mark(marks.critical, marks.slack, marks.seconds / _HURRY)
        self.level: Level = "normal"

    def update(self, now: float, share: float) -> Level:
        """The level, with `share` of the limit used at `now` (seconds on a steady clock)."""
        warning, critical = self._warning.update(now, share), self._critical.update(now, share)
        self.level = "critical" if critical else "warning" if warning else "normal"
        return self.level
