"""When a worker will reach its soft budget, and what a request of each size leaves behind. Pure.

The forecast is a robust slope (Theil-Sen: the median of the slopes between all pairs) of the troughs: of what the
worker holds between its steps. What a step takes and frees again is its height, and no growth; what it leaves behind
raises the next trough.

Up to a quarter of the troughs may be anything without moving it much. A single step is not growth, although it tilts
the whole window: the slope must show in at least two of the window and its two halves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from statistics import median

from guardrails.memory.leak.trend import theil_sen

#: Troughs that a trend keeps, and the fewest that it says anything from.
_KEPT = 24
_FEWEST = 12
#: Growth over the window is clear from so many times the troughs' median deviation from their line.
_CLEAR = 8.0
#: What older looks count for with each further one, so that what a request costs now outweighs what it once did.
_FADE = 0.995
#: Requests of one size class are told apart from noise only from about this many on.
_DOUBT = 4.0


class Trend:
    """The last troughs of one worker's private memory, at most 24, at least `spacing` seconds apart.

    Args:
        spacing: seconds. The window spans 24 of them; it should span some times what the forecast is to look ahead.
    """

    def __init__(self, spacing: float = 0.0) -> None:
        self.spacing = spacing
        self._troughs: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._heights: deque[float] = deque(maxlen=_KEPT)
        self._readings: list[tuple[float, float]] = []  # since the last trough: the lowest, the last
        self._highest = 0.0
        self._closed = float("-inf")  # when the last trough was
        self._settled = False
        self._slope: float | None = None

    def add(self, now: float, size: int, *, settled: bool = True) -> None:
        """A reading in bytes, at `now` in seconds on any steady clock.

        The lowest reading of at least `spacing` seconds is a trough, if within them a step ended or none was under way.

        Args:
            now: when it was taken.
            size: the worker's private memory.
            settled: whether a step has ended since the reading before, or none is under way.
        """
        reading = (now, float(size))
        if not self._readings:
            self._readings = [reading, reading]
            self._highest = reading[1]
        else:
            self._readings[1] = reading
            if reading[1] < self._readings[0][1]:
                self._readings[0] = reading
            self._highest = max(self._highest, reading[1])
        self._settled |= settled
        if self._settled and now - self._closed >= self.spacing:
            lowest = self._readings[0]
            self._troughs.append(lowest)
            self._heights.append(self._highest - lowest[1])
            self._readings = []
            self._closed = now
            self._settled = False
            self._slope = None

    def slope(self) -> float:
        """Bytes a second by which the troughs rise, below 0 while they fall; 0.0 while flat or unknown. Some tens of
        microseconds, once for each trough.
        """
        if self._slope is None:
            troughs = tuple(self._troughs)
            half = len(troughs) // 2
            parts = (troughs, troughs[:half], troughs[half:])
            self._slope = median(map(theil_sen, parts)) if self.known else 0.0
        return self._slope

    @property
    def known(self) -> bool:
        """Whether there are troughs enough to say anything."""
        return len(self._troughs) >= _FEWEST

    def level(self) -> float:
        """The last trough, in bytes; 0.0 before the first."""
        return self._troughs[-1][1] if self._troughs else 0.0

    def top(self) -> float:
        """What it takes at the top of a step, in bytes: the last trough and the height of half of the steps."""
        return self.level() + (median(self._heights) if self._heights else 0.0)

    def climb(self) -> float:
        """Bytes a second by which the step that is under way grows, or the worker between its steps."""
        step = 0.0
        if self._readings:
            lowest, last = self._readings
            step = (last[1] - lowest[1]) / (last[0] - lowest[0]) if last[0] > lowest[0] else 0.0
        return max(step, self.slope())

    def seconds_until(self, budget: int, now: float) -> float | None:
        """Seconds from `now` until `budget` bytes are reached; 0.0 if they are, None when it does not grow."""
        if not self._troughs:
            return None
        # Not from the last trough alone: it may be the peak of a request. In steady growth the middle one of the last
        # three is the one before the last.
        level = median(size for _, size in islice(reversed(self._troughs), 3))
        if level >= budget:
            return 0.0
        slope = self.slope()
        if slope <= 0.0:
            return None
        when = self._troughs[-min(2, len(self._troughs))][0]
        return max(0.0, (budget - self._height(slope) - level) / slope - (now - when))

    def _height(self, slope: float) -> float:
        """What a step takes on top of a trough; 0.0 where the growth is no more than noise of the troughs. Else peaks
        just below the budget would make any noise a forecast.
        """
        grown = slope * (self._troughs[-1][0] - self._troughs[0][0])
        height = median(self._heights) - grown / (len(self._troughs) - 1)  # less the growth from one trough to the next
        if height <= 0.0:
            return 0.0
        rests = [size - slope * when for when, size in self._troughs]
        centre = median(rests)
        noise = median(abs(rest - centre) for rest in rests)
        return height if grown > _CLEAR * noise else 0.0


def size_class(bits: int) -> int:
    """The class of a request whose size in bytes has this `bit_length`: it is below this power of four."""
    return 1 << 2 * ((bits + 1) // 2)


class GrowthPerRequest:
    """Bytes that a request leaves behind in its worker, learned for each size class.

    Least squares over looks at the workers: so much was answered of each class, by so much the memory grew. What
    requests take and give back cancels out. Older looks fade.
    """

    def __init__(self) -> None:
        self._products: dict[tuple[int, int], float] = {}
        self._grown: dict[int, float] = {}

    def learn(self, grown: int, answered: Mapping[int, int]) -> None:
        """One look: `answered` requests by class, and the bytes by which that worker grew (or shrank) meanwhile."""
        for pair in self._products:
            self._products[pair] *= _FADE
        for one in self._grown:
            self._grown[one] *= _FADE
        for one, count in answered.items():
            self._grown[one] = self._grown.get(one, 0.0) + count * grown
            for other, others in answered.items():
                self._products[one, other] = self._products.get((one, other), 0.0) + count * others

    def costs(self) -> dict[int, int]:
        """Bytes kept by one request, by the upper bound of its class in bytes; never below 0."""
        classes = sorted(self._grown)
        rows = [
            [self._products.get((one, other), 0.0) + (_DOUBT if one == other else 0.0) for other in classes]
            + [self._grown[one]]
            for one in classes
        ]
        return {one: max(0, round(cost)) for one, cost in zip(classes, _solve(rows), strict=True)}


def _solve(rows: list[list[float]]) -> list[float]:
    """The solution of a positive definite system, by elimination; each row ends with its right side."""
    for place, pivot in enumerate(rows):
        scale = pivot[place]
        pivot[:] = [value / scale for value in pivot]
        for row in rows:
            if row is not pivot and row[place]:
                factor = row[place]
                row[:] = [value - factor * lead for value, lead in zip(row, pivot, strict=True)]
    return [row[-1] for row in rows]
