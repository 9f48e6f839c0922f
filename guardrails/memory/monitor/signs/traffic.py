"""The calls of one source over time: how many, how many timed out, how long they took. Bounded: about 3 KB a source.

::

    a call ends ─▶ slice (30 s) ─▶ recent: the last 10 slices, 5 minutes
                                     └─ what leaves it ─▶ usual: fades, half of it in 35 minutes

Durations are counted in steps of a fourth of an octave, so a percentile is exact to 19 %: enough to tell three times as
slow from as ever. A slice in which the source was called slow does not become part of what is usual, or an alarm would
end by itself after an hour.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SLICE = 30.0
SLICES = 10
#: Seconds that a source must look slow. Before, the first seconds of a rush would look as if few were there.
SLOW_FOR = 60.0
#: What the usual keeps of itself with each slice that joins it.
_FADE = 0.99
#: Durations are counted from a tenth of a millisecond to a day.
_LEAST, _MOST = -54, 66
_STEPS = 4


@dataclass(frozen=True, slots=True)
class Load:
    """The calls of some time.

    Attributes:
        calls: that ended.
        timeouts: those of them that ran out of time.
        rate: calls a second.
        peak: calls a second in the busiest slice; a slice that is not over yet is counted in full.
        mean: seconds that one took, on average.
        p95: seconds that 95 % of them stayed below; 0.0 without calls.
    """

    calls: float
    timeouts: float
    rate: float
    peak: float
    mean: float
    p95: float


class _Slice:
    __slots__ = ("busy", "calls", "durations", "number", "slow", "timeouts")

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0.0
        self.timeouts = 0.0
        self.busy = 0.0
        self.slow = False
        self.durations: dict[int, float] = {}


class Traffic:
    """One source. Times are seconds on one steady clock."""

    __slots__ = (
        "_slices",
        "_usual",
        "_usual_busy",
        "_usual_calls",
        "_usual_slices",
        "busiest",
        "slow",
        "slow_since",
        "timing_out",
    )

    def __init__(self) -> None:
        self._slices: deque[_Slice] = deque()
        self._usual: dict[int, float] = {}
        self._usual_busy = 0.0
        self._usual_calls = 0.0
        self._usual_slices = 0.0
        #: The most calls a second that a slice has had; fades as the usual does.
        self.busiest = 0.0
        #: Whether it was called slow at the last look, and whether too many calls timed out.
        self.slow = False
        self.timing_out = False
        #: Since when it has looked slow; None while it does not.
        self.slow_since: float | None = None

    def ended(self, now: float, seconds: float) -> None:
        """A call ended, `seconds` after it began."""
        self.heard(now, (seconds,))

    def timed_out(self, now: float) -> None:
        """A call, which also ends, ran out of time."""
        self.heard(now, (None,))

    def heard(self, now: float, calls: Sequence[float | None], weight: float = 1.0) -> None:
        """The seconds of calls that ended, and None for each that ran out of time. Each stands for `weight` calls."""
        here = self._slice(now)
        steps = [_step(seconds) for seconds in calls if seconds is not None]
        here.calls += weight * len(steps)
        here.timeouts += weight * (len(calls) - len(steps))
        here.busy += weight * sum(filter(None, calls))
        for step, count in Counter(steps).items():
            here.durations[step] = here.durations.get(step, 0.0) + weight * count

    def looks_slow(self, now: float, slow: bool) -> None:  # noqa: FBT001
        """It looks slow, or does not. After a minute of it it is; and what is recent then is not what is usual."""
        if not slow:
            self.slow, self.slow_since = False, None
            return
        if self.slow_since is None:
            self.slow_since = now
        self.slow = self.slow or now - self.slow_since >= SLOW_FOR
        if self.slow:
            for each in self._slices:
                each.slow = True

    def _slice(self, now: float) -> _Slice:
        self.advance(now)
        number = int(now // SLICE)
        if not self._slices or self._slices[-1].number < number:
            self._slices.append(_Slice(number))
        here = self._slices[-1]
        here.slow |= self.slow
        return here

    def advance(self, now: float) -> None:
        """Let what is older than five minutes become part of the usual."""
        oldest = int(now // SLICE) - SLICES
        while self._slices and self._slices[0].number <= oldest:
            self._retire(self._slices.popleft())

    def _retire(self, old: _Slice) -> None:
        if old.slow:
            return
        self.busiest = max(self.busiest * _FADE, old.calls / SLICE)
        self._usual = {step: kept for step, count in self._usual.items() if (kept := count * _FADE) > 0.01}
        for step, count in old.durations.items():
            self._usual[step] = self._usual.get(step, 0.0) + count
        self._usual_busy = self._usual_busy * _FADE + old.busy
        self._usual_calls = self._usual_calls * _FADE + old.calls
        self._usual_slices = self._usual_slices * _FADE + 1

    def recent(self, now: float) -> Load:
        """The last five minutes, or as long as there have been calls."""
        self.advance(now)
        durations: dict[int, float] = {}
        calls = timeouts = busy = peak = 0.0
        for each in self._slices:
            calls += each.calls
            timeouts += each.timeouts
            busy += each.busy
            peak = max(peak, each.calls / SLICE)
            for step, count in each.durations.items():
                durations[step] = durations.get(step, 0) + count
        seconds = max(1.0, now - self._slices[0].number * SLICE) if self._slices else 1.0
        return Load(calls, timeouts, calls / seconds, peak, busy / calls if calls else 0.0, quantile(durations, 0.95))

    def usual(self) -> Load:
        """What it was before that, slices without calls left out."""
        seconds = self._usual_slices * SLICE
        return Load(
            self._usual_calls,
            0.0,
            self._usual_calls / seconds if seconds else 0.0,
            self.busiest,
            self._usual_busy / self._usual_calls if self._usual_calls else 0.0,
            quantile(self._usual, 0.95),
        )


def quantile(counts: Mapping[int, float], share: float) -> float:
    """Seconds that this share of the counted durations stayed below: the middle of the step in which it lies."""
    left = share * sum(counts.values())
    for step in sorted(counts):
        left -= counts[step]
        if left <= 1e-9:
            return math.exp2((step + 0.5) / _STEPS)
    return 0.0


def _step(seconds: float) -> int:
    if seconds <= 0.0:
        return _LEAST
    return min(_MOST, max(_LEAST, math.floor(math.log2(seconds) * _STEPS)))
