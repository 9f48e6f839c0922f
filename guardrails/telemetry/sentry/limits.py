"""So many alike, so many in all: what may be sent, and how much was held back. Pure but for a lock."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

#: Kinds that are told apart, at most. The one that was not seen for longest is forgotten.
MAX_KINDS = 1024


class _Bucket:
    """A token bucket as one number: the time at which it would be full again."""

    __slots__ = ("full", "held_back")

    def __init__(self) -> None:
        self.full = 0.0
        self.held_back = 0

    def fits(self, now: float, capacity: int, each: float) -> bool:
        return max(self.full, now) + each <= now + (capacity + 1e-9) * each

    def take(self, now: float, each: float) -> None:
        self.full = max(self.full, now) + each


class Allowance:
    """Two token buckets, one for each kind of thing and one for all of them.

    Of one kind `alike` pass at once, and after that one every ``per / alike`` seconds; of all kinds together `in_all`,
    and one every ``per / in_all`` seconds. So in no window of `per` seconds does more pass than twice those numbers.

    Args:
        alike: of one kind.
        in_all: of all together.
        per: seconds in which an emptied bucket fills.
        now: the time in seconds, monotonic.

    Attributes:
        held_back: how much has not passed so far.
    """

    def __init__(self, alike: int, in_all: int, per: float, now: Callable[[], float]) -> None:
        self.held_back = 0
        self._alike = alike
        self._in_all = in_all
        self._per = per
        self._now = now
        self._kinds: OrderedDict[Hashable, _Bucket] = OrderedDict()
        self._all = _Bucket()
        self._lock = threading.Lock()

    def admit(self, kind: Hashable) -> int | None:
        """Whether one more of `kind` passes: None if not, else how many of it were held back since the last one."""
        now = self._now()
        with self._lock:
            bucket = self._kinds.get(kind)
            if bucket is None:
                bucket = self._kinds[kind] = _Bucket()
                if len(self._kinds) > MAX_KINDS:
                    self._kinds.popitem(last=False)
            else:
                self._kinds.move_to_end(kind)
            each, of_all = self._per / self._alike, self._per / self._in_all
            if not (bucket.fits(now, self._alike, each) and self._all.fits(now, self._in_all, of_all)):
                bucket.held_back += 1
                self.held_back += 1
                return None
            bucket.take(now, each)
            self._all.take(now, of_all)
            held_back, bucket.held_back = bucket.held_back, 0
            return held_back

    def unlock(self) -> None:
        """For a forked child: a thread that it does not have may hold the lock."""
        self._lock = threading.Lock()
