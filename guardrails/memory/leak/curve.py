"""What kind of curve some points lie on: whether it jumps, and whether it slows down. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from guardrails.memory.leak.trend import Point, deviation_of

#: A jump stands out from what happens between neighbours by so many standard deviations ...
_STANDS_OUT = 6.0
#: ... and makes up so much of all the way from the lowest to the highest.
_SHARE = 0.2
#: What lies two steps before or after it is at most so steep, as a share of it.
_SHARP = 0.4
#: Standard errors: one side, 95 %.
_SURE = 1.645


class Jump(NamedTuple):
    """Somewhere between the point at `place` and the second after it the curve jumps by `height`; below 0 it drops."""

    place: int
    height: float


def smoothed(values: Sequence[float]) -> list[float]:
    """Without single outliers: each value is the median of itself and its neighbours. Edges stay sharp."""
    if len(values) < 3:
        return list(values)
    inner = [sorted(three)[1] for three in zip(values, values[1:], values[2:], strict=False)]
    # The ends go by J. W. Tukey's rule (1977): by themselves, their neighbour, and where the next two point to.
    first = sorted((values[0], inner[0], 3 * inner[0] - 2 * inner[min(1, len(inner) - 1)]))[1]
    last = sorted((values[-1], inner[-1], 3 * inner[-1] - 2 * inner[max(-2, -len(inner))]))[1]
    return [first, *inner, last]


def jumps(values: Sequence[float]) -> list[Jump]:
    """Where the values jump, in order."""
    # Over two steps: a jump may fall into the middle of a bucket, which then lies somewhere on the way.
    steps = [after - before for before, after in zip(values, values[2:], strict=False)]
    if len(steps) < 2:
        return []
    least = max(_STANDS_OUT * deviation_of(steps), _SHARE * (max(values) - min(values)))
    if not least:
        return []
    found: list[Jump] = []
    for place in sorted((i for i, one in enumerate(steps) if abs(one) >= least), key=lambda i: -abs(steps[i])):
        height = steps[place]
        if any(abs(place - other.place) <= 2 for other in found):
            continue
        # What is nearly as steep before or after is a slope.
        beside = [steps[other] for other in (place - 2, place + 2) if 0 <= other < len(steps)]
        if all(one * height <= _SHARP * height * height for one in beside):
            found.append(Jump(place, height))
    return sorted(found)


def without(points: Sequence[Point], found: Sequence[Jump]) -> list[Point]:
    """The points as if these jumps had not been; the one in the middle of each is left out."""
    heights = {one.place: one.height for one in found}
    kept: list[Point] = []
    taken = 0.0
    for place, (x, y) in enumerate(points):
        taken += heights.get(place - 2, 0.0)
        if place - 1 not in heights:
            kept.append((x, y - taken))
    return kept


def slows_down(points: Sequence[Point], share: float, *, doubt: bool) -> bool:
    """Whether the points are less steep at their end than `share` of how steep they are at their beginning.

    By a parabola, least squares: its slope falls by half while a cache that takes what it has not seen fills by half.

    Args:
        points: in order of x, four or more.
        share: above 0, below 1.
        doubt: what is said when noise leaves it open; else it is said only when it is 95 % sure.
    """
    begin, width, count = points[0][0], points[-1][0] - points[0][0], len(points)
    xs = [2 * (x - begin) / width - 1 for x, _ in points]
    middle = math.fsum(y for _, y in points) / count
    ys = [y - middle for _, y in points]
    squares = [x * x for x in xs]
    s1, s2 = math.fsum(xs), math.fsum(squares)
    s3, s4 = math.fsum(map(float.__mul__, xs, squares)), math.fsum(map(float.__mul__, squares, squares))
    t1, t2 = math.fsum(map(float.__mul__, xs, ys)), math.fsum(map(float.__mul__, squares, ys))
    a, b, c = _solved(((count, s1, s2, 0.0), (s1, s2, s3, t1), (s2, s3, s4, t2)))
    first, last = b - 2 * c, b + 2 * c
    missing = share * first - last
    if doubt:
        return missing > 0
    left = math.fsum((y - a - b * x - c * xx) ** 2 for x, xx, y in zip(xs, squares, ys, strict=True))
    # On even points the variances of both slopes are 48 times that of an error over their count, and what they have in
    # common is -42 times that.
    variance = left / (count - 3) / count * (48 + 48 * share * share + 84 * share)
    return missing > _SURE * math.sqrt(variance)


def _solved(rows: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Three equations with three unknowns, by Cramer's rule; zeros where they say nothing."""
    (a, b, c, p), (d, e, f, q), (g, h, i, r) = rows
    whole = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    if not whole:
        return 0.0, 0.0, 0.0
    x = p * (e * i - f * h) - b * (q * i - f * r) + c * (q * h - e * r)
    y = a * (q * i - f * r) - p * (d * i - f * g) + c * (d * r - q * g)
    z = a * (e * r - q * h) - b * (d * r - q * g) + p * (d * h - e * g)
    return x / whole, y / whole, z / whole
