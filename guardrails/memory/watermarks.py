"""When memory is short: a pure decider over readings, with hysteresis.

::

    used / limit     0 ────────────── low ──── high ─────── critical ────── 1
                        calls run      │        │ calls wait │ calls are refused
                                       └────────┘
                         once at high, it stays so until below low
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from guardrails.memory.reading import Scope

Level = Literal["normal", "high", "critical"]


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Shares of a limit, 0 < low <= high <= critical <= 1."""

    low: float = 0.80
    high: float = 0.85
    critical: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= self.critical <= 1:
            msg = (
                f"watermarks must rise, 0 < low <= high <= critical <= 1, not {self.low}, {self.high}, {self.critical}"
            )
            raise ValueError(msg)

    def level(self, before: Level, scopes: Sequence[Scope]) -> Level:
        """The level now, given the one before: the worst over all scopes."""
        share = max((scope.share for scope in scopes), default=0.0)
        if share >= self.critical:
            return "critical"
        if share >= self.high or (before != "normal" and share >= self.low):
            return "high"
        return "normal"

    def fits(self, scopes: Sequence[Scope], nbytes: int) -> bool:
        """Whether `nbytes` more stay at or below the high mark in every scope."""
        return all(scope.used + nbytes <= self.high * scope.limit for scope in scopes)

    def can_ever_fit(self, scopes: Sequence[Scope], nbytes: int) -> bool:
        """Whether `nbytes` would fit if nothing else were there."""
        return all(nbytes <= self.high * scope.limit for scope in scopes)

    def room(self, scopes: Sequence[Scope], cost: int, most: int) -> int:
        """How many calls of `cost` bytes each (above 0) `fits` would allow together, at most `most`."""
        count = most
        for scope in scopes:
            # All but the mark are whole numbers, so rounding it down first changes nothing.
            count = min(count, max(0, int(self.high * scope.limit) - scope.used) // cost)
        return count
