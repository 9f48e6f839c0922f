"""The daily wave: what the load of a day does to memory, and what is left without it. Pure; least squares.

A rising flank of some hours and a leak look alike, but not quite: a flank bends up first and then down. And a day later
the wave is where it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from guardrails.memory.leak.trend import Point

DAY = 86_400.0
#: A quarter of a day: shorter flanks look like lines.
_SHORTEST = DAY / 4
#: From so long on, a wave and a line beside it are told apart.
_BOTH = 1.5 * DAY
#: What one curve leaves unexplained is at most this share of what the other leaves.
_BETTER = 0.6

Basis = Callable[[float], Sequence[float]]


def is_flank(points: Sequence[Point]) -> bool:
    """Whether growth over less than a day and a half follows a day's wave rather than a line."""
    width = points[-1][0] - points[0][0]
    if not _SHORTEST <= width < _BOTH:
        return False
    return _left(points, _wave) < _BETTER * _left(points, _line)


def without_wave(points: Sequence[Point]) -> Sequence[Point] | None:
    """The points without their daily wave; None where there is none, or not enough to tell it from a trend."""
    if points[-1][0] - points[0][0] < _BOTH:
        return None
    if _left(points, _line_and_wave) >= _BETTER * _left(points, _line):
        return None
    begin = points[0][0]
    _, _, sine, cosine = _fitted(points, _line_and_wave)
    found = []
    for x, y in points:
        angle = 2 * math.pi * (x - begin) / DAY
        found.append((x, y - sine * math.sin(angle) - cosine * math.cos(angle)))
    return found


def _line(days: float) -> Sequence[float]:
    return (1.0, days)


def _wave(days: float) -> Sequence[float]:
    return (1.0, math.sin(2 * math.pi * days), math.cos(2 * math.pi * days))


def _line_and_wave(days: float) -> Sequence[float]:
    return (1.0, days, math.sin(2 * math.pi * days), math.cos(2 * math.pi * days))


def _left(points: Sequence[Point], basis: Basis) -> float:
    """What the best curve of this kind leaves unexplained: the sum of its squared errors."""
    begin = points[0][0]
    factors = _fitted(points, basis)
    return math.fsum((y - sum(map(float.__mul__, factors, basis((x - begin) / DAY)))) ** 2 for x, y in points)


def _fitted(points: Sequence[Point], basis: Basis) -> list[float]:
    begin = points[0][0]
    parts = [basis((x - begin) / DAY) for x, _ in points]
    size = len(parts[0])
    rows = [
        [math.fsum(part[i] * part[j] for part in parts) for j in range(size)]
        + [math.fsum(part[i] * y for part, (_, y) in zip(parts, points, strict=True))]
        for i in range(size)
    ]
    return _solved(rows)


def _solved(rows: list[list[float]]) -> list[float]:
    """The solution of a positive definite system, by elimination; each row ends with its right side."""
    for place, pivot in enumerate(rows):
        scale = pivot[place]
        if not scale:
            return [0.0] * len(rows)
        pivot[:] = [value / scale for value in pivot]
        for row in rows:
            if row is not pivot and row[place]:
                factor = row[place]
                row[:] = [value - factor * lead for value, lead in zip(row, pivot, strict=True)]
    return [row[-1] for row in rows]
