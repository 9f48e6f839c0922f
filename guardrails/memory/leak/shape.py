"""What a history of memory looks like: which shape it has, and the trend of the part that counts. Pure.

::

    growth     /    plateau  ╭──   saturating ╭─    step  ┌──    sawtooth ///    restart /│ /    wave ╭╮╭╮
              /             /                /          ──┘              /              / │/         ╯╰╯╰

Questions, in this order; the first that is answered with yes decides:

    did it drop, more than once?    then only what did not come back counts: the troughs
    did it drop once?               what is after the drop counts
    is there a daily wave?          it is taken away
    no trend beyond chance?         steady, or what else it was
    no trend without the jumps?     step
    hardly steeper than flat, late? plateau
    less steep at the end?          saturating
    a flank of a daily wave?        wave
    not in every quarter?           steady
    else                            growth
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median, pstdev
from typing import Literal, NamedTuple

from guardrails.memory.leak.buckets import Bucket
from guardrails.memory.leak.curve import jumps, slows_down, smoothed, without
from guardrails.memory.leak.trend import UNKNOWN, Point, Trend, deviation_of, trend
from guardrails.memory.leak.wave import DAY, is_flank, without_wave

Shape = Literal[
    "unknown", "steady", "growth", "plateau", "saturating", "step", "sawtooth", "restart", "wave", "shrinking"
]

#: Buckets from which anything is said.
FEWEST = 12
#: Growth is none below this share of the level.
_LEAST = 0.01
#: ... and below so many standard deviations of the noise.
_NOISE = 2.5
#: So many of all the points, outliers too, and it needs no further proof: neighbours that are alike are no doubt where
#: all lie on a line.
_PLAIN = 12.0
#: How likely a trend may be by chance. It is asked often: once a minute for weeks, for each process. Where the part was
#: chosen because it begins low, it is a tenth of that.
_CHANCE = 0.001
#: What is less steep at its end than this, as a share of how steep it was at its beginning, slows down: the first where
#: doubt says no. At 0.8 a cache that takes in what it has not seen has filled by a fifth.
_BEND_IN_DOUBT, _BEND = 0.8, 0.75
#: What is less steep than this in its last third, as a share of the whole, has come to an end.
_LATE = 0.5
#: Each quarter of the time has at least this share of its share of the growth.
_SPREAD = 0.35
#: Growth begins where the level leaves this share of the way from the lowest to the highest for good.
_ONSET = 0.1
#: A drop is one from this share of all that was seen on; smaller ones are part of the noise.
_DROP = 0.3
#: More jumps than this are no longer single events.
_EVENTS = 3
#: Troughs from which a trend is told.
_TROUGHS = 6


class Finding(NamedTuple):
    """What was found.

    Attributes:
        shape: the shape.
        trend: of the part that counts, in bytes a second.
        part: the buckets of that part.
        lead: those before it that belong to the same life: in which it did not grow yet.
    """

    shape: Shape
    trend: Trend
    part: Sequence[Bucket]
    lead: Sequence[Bucket] = ()


def examine(buckets: Sequence[Bucket], *, sure: bool) -> Finding:
    """Look at buckets in order of time; 0.8 ms for 60 of them.

    Args:
        buckets: in order, each with a time of its own.
        sure: where noise leaves open whether growth goes on, say no; else, yes.
    """
    if len(buckets) < FEWEST:
        return Finding("unknown", UNKNOWN, buckets)
    floors = smoothed([one.floor for one in buckets])
    least = max(_DROP * (max(floors) - min(floors)), _LEAST * abs(floors[0]))
    drops = [one.place for one in jumps(floors) if one.height <= -least]
    if len(drops) > 1:
        return _examine_troughs(buckets, drops, sure=sure)
    if drops:
        found = examine(buckets[drops[0] + 2 :], sure=sure)
        return found if found.shape == "growth" else found._replace(shape="restart")
    return _examine_part(buckets, sure=sure)


def _examine_troughs(buckets: Sequence[Bucket], drops: Sequence[int], *, sure: bool) -> Finding:
    """Memory that comes back is not leaked, however fast it grows until then. What counts is what does not."""
    longest = max(after - before for before, after in pairwise((0, *drops, len(buckets) - 1))) + 1
    troughs = [
        min(buckets[start : start + longest], key=lambda one: one.floor)
        for start in range(0, len(buckets) - longest + 1, longest)
    ]
    if len(troughs) < _TROUGHS:
        return Finding("sawtooth", UNKNOWN, buckets)
    found = _examine_part(troughs, sure=sure)
    return found if found.shape == "growth" else found._replace(shape="sawtooth")


def _examine_part(buckets: Sequence[Bucket], *, sure: bool) -> Finding:
    # The trend is robust, and takes the floors as they are: smoothed, each would be like its neighbours, and so tell
    # less. What goes by least squares, or by single values, takes them smoothed.
    points: Sequence[Point] = [(one.seconds, one.floor) for one in buckets]
    still = without_wave(points)
    points = still or points
    onset = _onset(smoothed([y for _, y in points]))
    lead, part, points = buckets[:onset], buckets[onset:], points[onset:]
    found = trend(points)
    if not _grows(found, points, _CHANCE / 10 if onset else _CHANCE):
        shape = "wave" if still else _shape_without_growth(buckets)
        return Finding(shape, trend([(one.seconds, one.floor) for one in buckets]) if onset else found, buckets)
    rises = [one for one in jumps(smoothed([y for _, y in points])) if one.height > 0]
    if 0 < len(rises) <= _EVENTS:
        points = without(points, rises)
        found = trend(points)
        if not _grows(found, points, _CHANCE):
            return Finding("step", found, part)
    late = trend(points[-(len(points) // 3) :])
    if (late.slope if sure else late.high) < _LATE * found.slope:
        return Finding("plateau", found, part)
    values = smoothed([y for _, y in points])
    even = [(x, value) for (x, _), value in zip(points, values, strict=True)]
    if slows_down(even, _BEND_IN_DOUBT if sure else _BEND, doubt=sure):
        return Finding("saturating", found, part)
    if is_flank(even):
        return Finding("wave", found, part)
    if not _is_spread(values, _SPREAD if sure else 0.0) or not _is_usual(part):
        return Finding("steady", found, part)
    return Finding("growth", found, part, lead)


def _onset(floors: Sequence[float]) -> int:
    """Where growth begins, if it leaves enough to look at: the last place in the lowest tenth of all that was seen."""
    lowest, highest = min(floors), max(floors)
    low = lowest + _ONSET * (highest - lowest)
    last = max(place for place, floor in enumerate(floors) if floor <= low)
    return last if len(floors) - last >= FEWEST else 0


def _grows(found: Trend, points: Sequence[Point], chance: float) -> bool:
    grown = found.slope * (points[-1][0] - points[0][0])
    if grown < max(_LEAST * abs(points[0][1]), _NOISE * found.noise) or not grown:
        return False
    if found.p <= chance and found.low > 0:
        return True
    whole = pstdev([y - found.slope * x for x, y in points])
    return grown >= max(_PLAIN * whole, 5 * _LEAST * abs(points[0][1]))


def _is_spread(values: Sequence[float], least: float) -> bool:
    """Whether it grew all the time: in every quarter."""
    count = len(values)
    levels = [median(values[count * part // 4 : count * (part + 1) // 4]) for part in range(4)]
    grown = [after - before for before, after in pairwise(levels)]
    return min(grown) >= least * sum(grown) / 3


def _is_usual(buckets: Sequence[Bucket]) -> bool:
    """Whether what is usually held grows as well: else only the quiet moments became rare."""
    quarter = len(buckets) // 4 or 1
    first, last = buckets[:quarter], buckets[-quarter:]
    floor = median([one.floor for one in last]) - median([one.floor for one in first])
    middle = median([one.middle for one in last]) - median([one.middle for one in first])
    return middle >= 0.5 * floor


def _shape_without_growth(buckets: Sequence[Bucket]) -> Shape:
    floors = smoothed([one.floor for one in buckets])
    ordered = sorted(floors)
    edge = len(ordered) // 12
    span = ordered[-1 - edge] - ordered[edge]
    noise = deviation_of([after.floor - before.floor for before, after in pairwise(buckets)])
    if span <= max(_LEAST * abs(floors[0]), 4 * noise):
        return "steady"
    if any(abs(one.height) > 0.5 * span for one in jumps(floors)):
        return "step"
    if buckets[-1].seconds - buckets[0].seconds >= DAY:
        return "wave"
    third = len(floors) // 3
    rise = median(floors[-third:]) - median(floors[:third])
    if rise > 0.3 * span:
        return "plateau"
    return "shrinking" if rise < -0.3 * span else "steady"
