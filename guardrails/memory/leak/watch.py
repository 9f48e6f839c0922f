"""One process watched for a leak, for weeks: a bounded history, a look once a minute, an alarm that does not flicker.

::

    samples ──▶ 10 s ──▶ 60 s ──▶ 5 min ──▶ 30 min ──▶ 4 h     60 buckets of each, the newest
                  │        │        │         │         │
               10 min     1 h      5 h       30 h     10 days   five windows; each is judged as its buckets are complete
                  ╰────────┴────────┼─────────┴─────────╯
                                  alarm     when one of them has said "leak" three times in a row

What a window says is held against all that is older, in the coarser tiers: a level that was there before is no news, be
it the collector's sawtooth, a batch that comes every hour, or yesterday's load.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from statistics import median
from typing import Final

from guardrails.core.sizes import parse_size
from guardrails.memory.leak.buckets import LARGEST, LONGEST, POSSIBLE, Bucket, Sample, bucket, merged
from guardrails.memory.leak.judge import Verdict, judge
from guardrails.memory.leak.trend import theil_sen

#: Buckets that each tier keeps, and how long those of each are, in lengths of the finest.
_KEPT: Final = 60
_LENGTHS: Final = (1, 6, 30, 180, 1440)
#: The finest buckets between two looks.
_LOOK: Final = 6
#: Buckets from which a tier is judged.
_FEWEST: Final = 20
#: Windows shorter than this, in lengths of the finest bucket, see teeth of the collector and warm-up from within. Those
#: longer than the second, in seconds, see flanks of a daily wave, until the third is over. There it takes so many times
#: as much growth.
_SHORT: Final = 120
_LONG, _DAYS, _MORE = 4 * 3600.0, 2 * 86_400.0, 2.0
#: So many times the growth that it takes is plain: it counts as two looks.
_PLAIN = 3.0
#: An alarm is over where the last half of its window is less steep than this, as a share of what it was.
_OVER = 0.3
#: ... or than this, and it is clear that it slows down.
_SLOWER = 0.6


class _Tier:
    """Buckets of one length. `raised` is the verdict that its alarm was raised with; None without one."""

    __slots__ = ("calm", "fresh", "kept", "length", "open", "raised", "seen")

    def __init__(self, length: float) -> None:
        self.length = length
        self.kept: deque[Bucket] = deque(maxlen=_KEPT)
        self.open: list[Bucket] = []
        self.fresh = False
        self.seen = 0
        self.calm = 0
        self.raised: Verdict | None = None

    def keep(self, one: Bucket) -> None:
        self.kept.append(one)
        self.fresh = True

    def take(self, finer: Bucket) -> Bucket | None:
        """Take a finer bucket; gives the one that is complete by now."""
        complete = None
        # A little less: buckets begin at their first sample, which comes some milliseconds sooner or later.
        if self.open and finer.first - self.open[0].first >= 0.99 * self.length:
            complete = merged(self.open)
            self.open.clear()
            self.keep(complete)
        self.open.append(finer)
        return complete


class LeakWatch:
    """Watches one process. It is fed one size after the other, and raises or clears an alarm.

    Feeding costs a third of a microsecond for most samples; a look takes up to some milliseconds, once a minute, and
    usually microseconds. 300 buckets are kept, some 60 KiB. Not thread-safe: one thread feeds it.

    Args:
        budget: what the process may hold, a size or a number of bytes. With it, growth matters from a share of the room
            between the first level and the budget on; without it, from that share of the level on.
        share: that share, above 0, at most 1. In windows below 20 minutes, and in those of 4 hours to two days, it
            takes twice as much.
        least: growth below this never matters, in bytes or as a size.
        patience: how often in a row a window must say so, to raise the alarm or to clear it; once a minute, or as
            seldom as its buckets are complete.
        warm_up: seconds from the first sample on in which nothing is looked at.
        between: called before each window that is judged, which takes a millisecond: a thread lets others go on there.
        resolution: seconds of the finest bucket, 10 by default. All windows, and the minute between two looks, scale
            with it: a test may take 0.1. What a day is does not.

    Attributes:
        alarm: the last verdict of the alarm that is up; None without one.

    Raises:
        TypeError, ValueError: an argument is not what it takes; the message names it.
    """

    __slots__ = (
        "_begin",
        "_between",
        "_bucket_ends",
        "_budget",
        "_last",
        "_least",
        "_look_at",
        "_patience",
        "_pending",
        "_resolution",
        "_share",
        "_shift",
        "_tiers",
        "_warm_up",
        "alarm",
    )  # fmt: skip

    def __init__(
        self,
        *,
        budget: str | float | None = None,
        share: float = 0.2,
        least: str | float = "8MiB",
        patience: int = 3,
        warm_up: float = 60.0,
        resolution: float = 10.0,
        between: Callable[[], object] | None = None,
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int):
            raise TypeError(f"patience takes a whole number, not {type(patience).__name__}")
        if patience < 1:
            raise ValueError(f"patience takes a whole number of 1 and more, not {patience}")
        self._budget = None if budget is None else parse_size(budget, "budget")
        self._share = _number("share", share, lowest=0.0, highest=1.0)
        self._least = parse_size(least, "least")
        self._patience = patience
        self._warm_up = 0.0 if warm_up == 0 else _number("warm_up", warm_up)
        self._resolution = _number("resolution", resolution)
        if between is not None and not callable(between):
            raise TypeError(f"between takes a function without arguments, not {type(between).__name__}")
        self._between = between
        self.reset()

    def reset(self) -> None:
        """Forget everything: it is another process now."""
        self._tiers = tuple(_Tier(length * self._resolution) for length in _LENGTHS)
        self._pending: list[Sample] = []
        self._bucket_ends = -math.inf
        self._look_at = -math.inf
        self._begin: float | None = None
        self._last = -math.inf  # when the last sample was taken
        self._shift = 0.0  # by how much the clock has stepped back
        self.alarm: Verdict | None = None

    def add(self, seconds: float, size: float) -> bool:
        """Take the size in bytes at a time in seconds. Whether an alarm was raised or cleared.

        A clock that steps back goes on from the last sample: the step itself counts as no time.

        Raises:
            TypeError: `seconds` or `size` is not a number.
            ValueError: one of them is not finite, or `size` is negative. The sample is not taken.
        """
        shifted = seconds + self._shift
        if self._last <= shifted < self._bucket_ends and 0 <= size < LARGEST:  # nearly always; false for nan
            self._last = shifted
            self._pending.append((shifted, size))
            return False
        if not (-LONGEST < seconds < LONGEST and 0 <= size < LARGEST):
            raise ValueError(f"a sample must be {POSSIBLE}, not ({seconds!r}, {size!r})")
        return self._add(shifted, size)

    def _add(self, seconds: float, size: float) -> bool:
        if seconds < self._last:
            self._shift += self._last - seconds
            seconds = self._last
        self._last = seconds
        if seconds < self._bucket_ends:
            self._pending.append((seconds, size))
            return False
        if self._begin is None:
            self._begin = seconds + self._warm_up
        if seconds < self._begin:
            return False
        if self._pending:
            self._complete()
        self._pending = [(seconds, size)]
        self._bucket_ends = seconds + self._resolution
        if seconds < self._look_at:
            return False
        self._look_at = seconds + (_LOOK - 0.5) * self._resolution
        before = self.alarm is not None
        self._look()
        return (self.alarm is not None) is not before

    def _complete(self) -> None:
        """The samples at hand become a bucket, which may complete a longer one, and so on."""
        one: Bucket | None = bucket(self._pending)
        for place, tier in enumerate(self._tiers):
            if one is None:
                return
            if not place:
                tier.keep(one)
                continue
            one = tier.take(one)
            if one is not None and place == 1:
                # From here on up, the top is that of a minute: requests of some seconds are not a level.
                one = tier.kept[-1] = one._replace(top=one.floor)

    def _look(self) -> None:
        for place, tier in enumerate(self._tiers):
            if not tier.fresh or len(tier.kept) < _FEWEST:
                continue
            tier.fresh = False
            if self._between is not None:
                self._between()
            if tier.raised is None:
                self._look_for_a_leak(place, tier)
            else:
                self._look_for_the_end(tier, tier.raised)
        if not any(tier.raised for tier in self._tiers):
            self.alarm = None

    def _look_for_a_leak(self, place: int, tier: _Tier) -> None:
        kept = tier.kept
        begin = median([kept[0].floor, kept[1].floor, kept[2].floor])
        grown = median([kept[-1].floor, kept[-2].floor, kept[-3].floor]) - begin
        needed = self._needed(begin)
        # Most windows are told from this alone, in microseconds.
        found = judge(tuple(kept), self._older_than(place), sure=True) if grown >= 0.7 * needed else None
        if found is None or not found.leaking:
            tier.seen = 0
            return
        grown = found.slope * found.seconds / needed
        if found.seconds < _SHORT * self._resolution or _LONG < found.seconds < _DAYS:
            grown /= _MORE
        tier.seen = 0 if grown < 1 else tier.seen + (2 if grown >= _PLAIN else 1)
        if tier.seen >= self._patience:
            tier.seen = tier.calm = 0
            tier.raised = self.alarm = found

    def _look_for_the_end(self, tier: _Tier, raised: Verdict) -> None:
        kept = list(tier.kept)
        half = kept[len(kept) // 2 :]
        slope = theil_sen([(one.seconds, one.floor) for one in half])
        lost = raised.level - median([one.floor for one in half[-3:]])
        found = judge(kept, sure=False)
        slows_down = found.shape in {"plateau", "saturating"} and slope < _SLOWER * raised.slope
        over = slows_down or slope < _OVER * raised.slope or lost > 0.5 * raised.slope * raised.seconds
        tier.calm = tier.calm + 1 if over else 0
        if tier.calm >= self._patience:
            tier.raised = None
            tier.calm = 0
        elif found.leaking:
            tier.raised = self.alarm = found

    def _needed(self, level: float) -> float:
        """Growth that matters, in bytes."""
        room = level if self._budget is None else max(0.0, self._budget - level)
        return max(self._share * room, self._least)

    def _older_than(self, place: int) -> list[Bucket]:
        """What is known from before a tier's window: of each time, the finest buckets."""
        since = self._tiers[place].kept[0].seconds
        older: list[Bucket] = []
        for tier in self._tiers[place + 1 :]:
            found = [one for one in tier.kept if one.seconds < since]
            if found:
                older[:0] = found
                since = found[0].seconds
        return older


def _number(argument: str, value: float, *, lowest: float = 0.0, highest: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{argument} takes a number, not {type(value).__name__}")
    if not lowest < value <= highest or math.isinf(value):
        span = f"above {lowest:g}" if math.isinf(highest) else f"above {lowest:g} and at most {highest:g}"
        raise ValueError(f"{argument} takes a number {span}, not {value!r}")
    return float(value)
