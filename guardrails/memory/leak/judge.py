"""The verdict on a history of memory: does it leak, how fast, and when is a budget reached. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from guardrails.core.sizes import format_size, parse_size
from guardrails.memory.leak.buckets import Bucket, Sample, bucketed, clean
from guardrails.memory.leak.shape import FEWEST, Finding, Shape, examine
from guardrails.memory.leak.trend import theil_sen

#: Buckets that a history is looked at in.
_MOST = 60
#: A leak that began late is looked for in these last parts of a history.
_PARTS = (2, 4)
#: So much of the growth goes beyond all that was held before.
_NEW = 0.4
#: Growth that is less steep than this, as a share of how steep it was before, slows down.
_BEND = 0.7
#: How long before is looked at for that, in lengths of the part itself; and the most points of it.
_BEFORE, _POINTS = 3, 24

_SENTENCES: dict[Shape, str] = {
    "unknown": "Too few samples to say anything.",
    "steady": "Steady: no growth beyond chance and one per cent.",
    "plateau": "Flat by now, after it grew.",
    "saturating": "It grows, more and more slowly.",
    "step": "It jumped; apart from that it does not grow.",
    "sawtooth": "It grows, and comes back each time.",
    "restart": "It began again from below; since then it does not leak.",
    "wave": "Up and down: what it holds more of it has held before, or will give back in the course of a day.",
    "shrinking": "It shrinks.",
}


class Reaches(NamedTuple):
    """Seconds until a budget is reached, from the last sample on.

    Attributes:
        seconds: at the present slope; 0.0 when it is reached.
        low: at the earliest, with the upper end of the slope's interval.
        high: at the latest, with the lower end; infinite where that is not above 0.
    """

    seconds: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the samples show.

    Attributes:
        leaking: whether memory is lost now. True only for the shape ``growth``.
        shape: ``growth``; ``steady``; ``plateau`` (grew, and is flat now: warm-up, or a leak that stopped);
            ``saturating`` (growth that slows down: a cache that fills up); ``step`` (one to three jumps); ``sawtooth``
            (what grows comes back); ``restart`` (began again from below, and does not leak since); ``wave`` (daily, or
            at a level that was there before); ``shrinking``; ``unknown`` (fewer than 12 samples).
        slope: bytes a second, of the part that counts; 0.0 where it is unknown.
        slope_low: the lower end of its 95 % interval.
        slope_high: the upper end.
        p: how likely such a rise is by chance where there is none; 1.0 where it is unknown.
        level: bytes at the end, without peaks.
        seconds: how long the part is that counts.
    """

    leaking: bool
    shape: Shape
    slope: float
    slope_low: float
    slope_high: float
    p: float
    level: float
    seconds: float

    def reaches(self, budget: str | float) -> Reaches | None:
        """When `budget`, a size or a number of bytes, is reached; None when it does not leak.

        Raises:
            TypeError, ValueError: `budget` is not a size.
        """
        left = max(0.0, parse_size(budget, "budget") - self.level)
        if not self.leaking:
            return None
        high = left / self.slope_low if self.slope_low > 0 else math.inf if left else 0.0
        return Reaches(left / self.slope, left / self.slope_high, high)

    def describe(self, budget: str | float | None = None) -> str:
        """One sentence. With `budget`, also when it is reached.

        Raises:
            TypeError, ValueError: `budget` is not a size.
        """
        found = None if budget is None else self.reaches(budget)
        if not self.leaking:
            return _SENTENCES[self.shape]
        rate, low, high = (format_size(60 * one) for one in (self.slope, self.slope_low, self.slope_high))
        sentence = (
            f"It has grown by {rate} a minute ({low} to {high}) for {_span(self.seconds)}, to {format_size(self.level)}"
        )
        if found is None:
            return f"{sentence}."
        if not found.seconds:
            return f"{sentence}, and is past its budget."
        return (
            f"{sentence}, and reaches its budget in {_span(found.seconds)} ({_span(found.low)} to {_span(found.high)})."
        )


def verdict(samples: Iterable[Sample]) -> Verdict:
    """Judge a history of one process: pairs ``(seconds, bytes)``, on any clock, at any pace, in any order.

    All samples are looked at together, in 60 buckets; then the last half and the last quarter alone, for a leak that
    began late. Before a day is over, the rising flank of a daily wave can be taken for growth; `LeakWatch`, which is
    asked again and again, knows more and is more careful.

    Args:
        samples: ten minutes of them or some weeks. 12 are the fewest from which anything is said.

    Raises:
        TypeError: something in `samples` is not a pair of numbers.
        ValueError: a time or a size is not finite, or a size is negative; the message has its index.
    """
    cleaned = clean(samples)
    whole = judge(bucketed(cleaned, _MOST), sure=False)
    if whole.leaking or len(cleaned) < 2 * FEWEST:
        return whole
    begin, end = cleaned[0][0], cleaned[-1][0]
    for part in _PARTS:
        since = end - (end - begin) / part
        late = [one for one in cleaned if one[0] >= since]
        before = [one for one in cleaned if one[0] < since]
        found = judge(bucketed(late, _MOST), bucketed(before, _MOST), sure=True)
        if found.leaking:
            return found
    return whole


def judge(buckets: Sequence[Bucket], before: Sequence[Bucket] | None = None, *, sure: bool) -> Verdict:
    """Judge buckets, in the light of what was `before` them. A millisecond for 60.

    Args:
        buckets: in order of time.
        before: in order of time, and before all of `buckets`. None: nothing is known of before, and what was before the
            last drop was another life; else the process is known to be the same.
        sure: where noise leaves open whether growth goes on, say no.
    """
    found = examine(buckets, sure=sure)
    shape, trend, part, lead = found
    if not part:
        return Verdict(False, shape, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    if shape == "growth":
        known = lead if before is None else [*before, *(one for one in buckets if one.seconds < part[0].seconds)]
        shape = _in_the_light_of(found, known)
    end = part[-1].seconds
    last = part[-(len(part) // 3) :]
    level = median([one.middle + trend.slope * (end - one.seconds) for one in last])
    if shape == "unknown":
        return Verdict(False, shape, 0.0, 0.0, 0.0, 1.0, level, end - part[0].seconds)
    return Verdict(shape == "growth", shape, *trend[:4], level, end - part[0].seconds)


def _in_the_light_of(found: Finding, before: Sequence[Bucket]) -> Shape:
    """What growth is, given what was before: memory that has come back from there already, or slows down, is none."""
    part, slope = found.part, found.trend.slope
    if not before:
        return "growth"
    width = part[-1].seconds - part[0].seconds
    top = max(one.top for one in part[-(len(part) // 4) :])
    if top - max(one.top for one in before) < _NEW * slope * width:
        return "wave"
    since = part[0].seconds - _BEFORE * width
    earlier = [(one.seconds, one.floor) for one in before if one.seconds >= since]
    earlier = earlier[:: len(earlier) // _POINTS + 1]
    if len(earlier) >= 4 and 2 * (earlier[-1][0] - earlier[0][0]) > width and slope < _BEND * theil_sen(earlier):
        return "saturating"
    return "growth"


def _span(seconds: float) -> str:
    """A time as people say it."""
    if math.isinf(seconds):
        return "never"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
