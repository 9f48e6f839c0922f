"""Who served this kind of request last: routing that keeps a worker's caches warm. Pure.

A request may come with a key, for example of the beginning of its prompt. It goes to the worker that last had one of
that key, as long as that worker is not much busier than the least loaded one; else to the least loaded one, which the
key follows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

W = TypeVar("W")

#: Keys that are remembered; the one not seen for longest goes first.
KEYS = 4096
#: How much more of its room a worker may have in use than the least loaded one and still get what it knows.
LEAD = 0.5


class Affinity(Generic[W]):
    """Remembers workers by key."""

    def __init__(self) -> None:
        self._last: OrderedDict[int, W] = OrderedDict()

    def choose(self, key: int | None, workers: Sequence[tuple[W, int, int]]) -> W | None:
        """The worker for a request of this key, from those given as (worker, free places, all places); None if none has
        a free one.
        """
        best = max(workers, key=lambda it: it[1], default=None)  # the first of several
        if best is None or best[1] <= 0:
            return None
        if key is None:
            return best[0]
        known = self._last.get(key)
        chosen = best[0]
        for worker, free, places in workers:
            if worker is known and free > 0 and best[1] - free <= LEAD * places:
                chosen = worker
        self._last[key] = chosen
        self._last.move_to_end(key)
        if len(self._last) > KEYS:
            self._last.popitem(last=False)
        return chosen

    def forget(self, worker: W) -> None:
        """It has gone, and its caches with it."""
        for key in [key for key, known in self._last.items() if known is worker]:
            del self._last[key]


__all__ = ["Affinity"]
