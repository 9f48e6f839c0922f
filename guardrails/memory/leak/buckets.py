"""Many samples become a few buckets: what was always there, and what was there half of the time. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Sample = tuple[float, float]

#: The share of a bucket's samples that may lie below its floor: a reading that failed must not be the floor.
_BELOW = 6
#: Bounds of a size, in bytes, and of a time, in seconds. Two samples closer than the last, in seconds, are one.
LARGEST, LONGEST = 2.0**63, 1e12
_CLOSEST = 1e-6
POSSIBLE = "a finite time in seconds and a finite size in bytes of at least 0"


class Bucket(NamedTuple):
    """Some samples that follow each other.

    Attributes:
        seconds: their mean time.
        floor: what was held nearly always: a low one of the sizes. Requests come on top of it.
        middle: their median.
        top: the highest floor of the parts that it was merged from.
        first: when the first was taken.
    """

    seconds: float
    floor: float
    middle: float
    top: float
    first: float


def clean(samples: Iterable[Sample]) -> list[Sample]:
    """The samples in order of time, a microsecond apart at least.

    Raises:
        TypeError: something is not a pair of numbers.
        ValueError: a time or a size is not finite, or a size is negative.
    """
    found: list[Sample] = []
    for number, sample in enumerate(samples):
        try:
            seconds, size = sample
            possible = -LONGEST < seconds < LONGEST and 0 <= size < LARGEST  # false for nan
        except (TypeError, ValueError):
            raise TypeError(f"samples takes pairs of numbers, (seconds, bytes), not {type(sample).__name__}") from None
        if not possible:
            raise ValueError(f"samples[{number}] must be {POSSIBLE}, not ({seconds!r}, {size!r})")
        found.append((seconds, size))
    found.sort()
    return [one for one, last in zip(found, [(-math.inf, 0.0), *found], strict=False) if one[0] - last[0] >= _CLOSEST]


def bucket(samples: Sequence[Sample]) -> Bucket:
    """One bucket of one sample or more."""
    sizes = sorted(size for _, size in samples)
    count = len(sizes)
    middle = (sizes[(count - 1) // 2] + sizes[count // 2]) / 2
    seconds = sum(seconds for seconds, _ in samples) / count
    floor = float(sizes[count // _BELOW])
    return Bucket(seconds, floor, middle, floor, samples[0][0])


def merged(buckets: Sequence[Bucket]) -> Bucket:
    """Buckets of about the same length as one."""
    floors = sorted(one.floor for one in buckets)
    middles = sorted(one.middle for one in buckets)
    count = len(buckets)
    return Bucket(
        sum(one.seconds for one in buckets) / count,
        floors[count // _BELOW],
        (middles[(count - 1) // 2] + middles[count // 2]) / 2,
        max(one.top for one in buckets),
        buckets[0].first,
    )


def bucketed(samples: Sequence[Sample], most: int) -> list[Bucket]:
    """At most `most` buckets of equal length in time, of samples in order; those without a sample are left out."""
    if not samples:
        return []
    begin, end = samples[0][0], samples[-1][0]
    width = (end - begin) / most
    if width <= 0:
        return [bucket(samples)]
    if len(samples) <= most:
        return [bucket([one]) for one in samples]
    found: list[Bucket] = []
    start, place = 0, 0
    for number, (seconds, _) in enumerate(samples):
        now = min(most - 1, int((seconds - begin) / width))
        if now != place:
            found.append(bucket(samples[start:number]))
            start, place = number, now
    found.append(bucket(samples[start:]))
    return found
