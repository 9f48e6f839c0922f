"""When a worker will reach its soft budget, and what a request of each size leaves behind. Pure.

The forecast is a robust slope over the worker's last readings (Theil-Sen: the median of the slopes between all pairs).
Up to a quarter of the readings may be anything without moving it much. A single step is not growth, although it tilts
the whole window: the slope must show in at least two of the window and its two halves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import islice
from statistics import median

from guardrails.memory.leak.trend import theil_sen

#: Readings that a trend keeps, and the fewest that it says anything from.
_KEPT = 24
_FEWEST = 12
#: What older looks count for with each further one, so that what a request costs now outweighs what it once did.
_FADE = 0.995
#: Requests of one size class are told apart from noise only from about this many on.
_DOUBT = 4.0


class Trend:
    """The last readings of one worker's private memory, at most 24, taken at least `spacing` seconds apart.

    Args:
        spacing: seconds. The window spans 24 of them; it should span some times what the forecast is to look ahead.
    """

    def __init__(self, spacing: float = 0.0) -> None:
        self.spacing = spacing
        self._samples: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        self._slope: float | None = None

    def add(self, now: float, size: int) -> None:
        """A reading in bytes, at `now` in seconds on any steady clock. One that comes too early is dropped."""
        if not self._samples or now - self._samples[-1][0] >= self.spacing:
            self._samples.append((now, float(size)))
            self._slope = None

    def slope(self) -> float:
        """Bytes a second, below 0 while it shrinks; 0.0 while flat or unknown. Some tens of microseconds, once for
        each reading.
        """
        if self._slope is None:
            samples = tuple(self._samples)
            half = len(samples) // 2
            parts = (samples, samples[:half], samples[half:])
            self._slope = median(map(theil_sen, parts)) if len(samples) >= _FEWEST else 0.0
        return self._slope

    def seconds_until(self, budget: int, now: float) -> float | None:
        """Seconds from `now` until `budget` bytes are reached; 0.0 if they are, None when it does not grow."""
        if not self._samples:
            return None
        # Not from the last reading alone: it may be the peak of a request. In steady growth the middle one of the last
        # three is the one before the last.
        level = median(size for _, size in islice(reversed(self._samples), 3))
        if level >= budget:
            return 0.0
        slope = self.slope()
        if slope <= 0.0:
            return None
        when = self._samples[-min(2, len(self._samples))][0]
        return max(0.0, (budget - level) / slope - (now - when))


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
