"""What was, in three tiers: each second for ten minutes, each minute for a day, each hour for two weeks. Bounded.

::

    sample ─▶ seconds  600 values
                 └─ a minute's values ─▶ minutes  1440 x (minimum, median, maximum)
                                            └─ an hour's minutes ─▶ hours  336 x (minimum, median, maximum)

A bucket keeps its smallest and its largest value and the median: a peak of a second is not lost in an hour, and what
the process holds between the peaks is seen too. An hour's median is the median of its minutes' medians.

Memory: 16 bytes a second, and 32 bytes a minute or an hour: 66 KB for each name once two weeks are full. There are at
most 64 names (4.3 MB), and of more the one that has been silent for longest is dropped.

Threads: one lock, held for microseconds when a value is added and for as long as a tier takes to copy when it is read.
"""

from __future__ import annotations

import threading
from array import array
from statistics import median
from typing import Literal, NamedTuple

Resolution = Literal["seconds", "minutes", "hours"]

#: Buckets that each tier keeps.
TIERS: dict[Resolution, int] = {"seconds": 600, "minutes": 1440, "hours": 336}
#: Names that are kept.
NAMES = 64
_MINUTE, _HOUR = 60.0, 3600.0
#: Values of one minute that its median is taken from, at most: the last ones.
_MOST_OF_A_MINUTE = 600


class Point(NamedTuple):
    """One bucket: `at` is when it begins, in seconds since the epoch; the others are bytes."""

    at: float
    minimum: int
    median: int
    maximum: int


class Ring:
    """Rows of the last `size` buckets. It grows as it is filled, and no further."""

    __slots__ = ("_at", "_next", "_values", "_width", "size")

    def __init__(self, size: int, width: int) -> None:
        self.size = size
        self._width = width
        self._next = 0
        self._at = array("d")
        self._values = array("q")

    def __len__(self) -> int:
        return len(self._at)

    def add(self, at: float, *values: int) -> None:
        """A row: when, and `width` numbers."""
        if len(self._at) < self.size:
            self._at.append(at)
            self._values.extend(values)
            return
        here = self._next
        self._at[here] = at
        self._values[here * self._width : (here + 1) * self._width] = array("q", values)
        self._next = (here + 1) % self.size

    def points(self) -> list[Point]:
        """All rows, the oldest first. A single number is minimum, median and maximum in one."""
        order = (*range(self._next, len(self._at)), *range(self._next))
        at, values = self._at, self._values
        if self._width == 1:
            return [Point(at[row], values[row], values[row], values[row]) for row in order]
        return [Point(at[row], *values[3 * row : 3 * row + 3]) for row in order]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows."""
        return self._at.itemsize * len(self._at) + self._values.itemsize * len(self._values)


class _Bucket:
    """The one that is being filled."""

    __slots__ = ("at", "highest", "lowest", "middles", "number")

    def __init__(self, number: int, at: float) -> None:
        self.number = number
        self.at = at
        self.lowest = self.highest = 0
        self.middles = array("q")

    def add(self, lowest: int, middle: int, highest: int) -> None:
        if not self.middles:
            self.lowest, self.highest = lowest, highest
        self.lowest = min(self.lowest, lowest)
        self.highest = max(self.highest, highest)
        self.middles.append(middle)
        if len(self.middles) > _MOST_OF_A_MINUTE:
            del self.middles[0]

    def point(self) -> Point:
        return Point(self.at, self.lowest, round(median(self.middles)), self.highest)


class Series:
    """One quantity over time: three rings, and the buckets that fill up now.

    Args:
        tiers: buckets of each.
    """

    __slots__ = ("_hour", "_minute", "_rings", "added")

    def __init__(self, tiers: dict[Resolution, int] | None = None) -> None:
        sizes = tiers or TIERS
        self._rings = {name: Ring(size, 1 if name == "seconds" else 3) for name, size in sizes.items()}
        self._minute: _Bucket | None = None
        self._hour: _Bucket | None = None
        self.added = float("-inf")

    def add(self, now: float, at: float, value: int) -> None:
        """A value: `now` on a steady clock, by which it is put in its minute, and `at` since the epoch."""
        self.added = now
        self._rings["seconds"].add(at, value)
        self._minute = self._put(self._minute, int(now // _MINUTE), at)
        self._minute.add(value, value, value)

    def _put(self, bucket: _Bucket | None, number: int, at: float) -> _Bucket:
        if bucket is not None and bucket.number == number:
            return bucket
        if bucket is not None:
            point = bucket.point()
            self._rings["minutes"].add(*point)
            hour = bucket.number // 60
            if self._hour is None or self._hour.number != hour:
                if self._hour is not None:
                    self._rings["hours"].add(*self._hour.point())
                self._hour = _Bucket(hour, point.at)
            self._hour.add(*point[1:])
        return _Bucket(number, at)

    def points(self, resolution: Resolution) -> list[Point]:
        """The tier's buckets, the oldest first; the last one may still be filling up."""
        points = self._rings[resolution].points()
        open_now = {"minutes": self._minute, "hours": self._hour}.get(resolution)
        if open_now is not None:
            points.append(open_now.point())
        return points

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        still = sum(8 * len(bucket.middles) for bucket in (self._minute, self._hour) if bucket is not None)
        return still + sum(ring.nbytes for ring in self._rings.values())


class History:
    """Series by name.

    Args:
        names: how many are kept.
        tiers: buckets of each tier.
    """

    def __init__(self, *, names: int = NAMES, tiers: dict[Resolution, int] | None = None) -> None:
        self._most = names
        self._tiers = tiers
        self._series: dict[str, Series] = {}
        self._lock = threading.Lock()

    def add(self, now: float, at: float, values: dict[str, int]) -> None:
        """Values of one moment: `now` on a steady clock, `at` in seconds since the epoch."""
        with self._lock:
            for name, value in values.items():
                series = self._series.get(name)
                if series is None:
                    if len(self._series) >= self._most and not self._make_room(now):
                        continue
                    series = self._series[name] = Series(self._tiers)
                series.add(now, at, value)

    def _make_room(self, now: float) -> bool:
        """Drop the series that has been silent for longest. One that lives is not dropped for another."""
        name, oldest = min(self._series.items(), key=lambda item: item[1].added)
        if oldest.added >= now:
            return False
        del self._series[name]
        return True

    def points(self, name: str, resolution: Resolution) -> list[Point]:
        """One series in one tier, the oldest first.

        Raises:
            KeyError: there is no such series. ValueError: there is no such tier.
        """
        if resolution not in TIERS:
            msg = f"resolution takes one of {', '.join(map(repr, TIERS))}, not {resolution!r}"
            raise ValueError(msg)
        with self._lock:
            if name not in self._series:
                msg = f"no history of {name!r}; there is one of: {', '.join(self._series) or 'nothing yet'}"
                raise KeyError(msg)
            return self._series[name].points(resolution)

    @property
    def names(self) -> tuple[str, ...]:
        """What there is a history of."""
        with self._lock:
            return tuple(self._series)

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        with self._lock:
            return sum(series.nbytes for series in self._series.values())

    def after_fork(self) -> None:
        """In a forked child: a lock that nobody holds, and nothing of what the parent was."""
        self._lock = threading.Lock()
        self._series.clear()


__all__ = ["NAMES", "TIERS", "History", "Point", "Resolution", "Ring", "Series"]
