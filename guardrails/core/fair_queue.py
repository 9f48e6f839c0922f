"""The order in which waiting calls are served: a pure decider over priorities, ages and keys.

* A lower number is served first, as in `queue.PriorityQueue`. Every `aging` seconds of waiting count as one step of
  priority, so that nothing starves: a call can be passed only by calls that come less than `aging` seconds for each
  step of difference after it.
* Among calls of the same step, keys are served in turn (round robin), so that a caller with a thousand waiting calls
  delays another by one call and not by a thousand. A key that comes (back) takes its place at the end of the round.
* Within a key, and without keys and priorities, it is arrival order.

Aging needs no clock of its own: "priority - waited / aging" orders calls as "arrived + priority x aging" does, and that
never changes. Operations cost O(log n), and `head` O(number of keys that wait).

A push either happens whole or not at all. Keys are users' objects: one whose hash changes while it waits is served
still, as its lane is found without it.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

from guardrails.core.keys import Key

T = TypeVar("T", bound=Hashable)


class _Lane(Generic[T]):
    """What waits for one key. `turn` grows with every place in the round that the key has used."""

    __slots__ = ("entries", "key", "live", "turn")

    def __init__(self, key: Key, turn: int) -> None:
        self.key = key
        self.turn = turn
        self.live = 0
        self.entries: list[tuple[float, int, list[T]]] = []


class FairQueue(Generic[T]):
    """Items in the order that they are to be served. An item may stand in it once.

    Args:
        aging: seconds of waiting that count as one step of priority: above 0, and finite.
    """

    def __init__(self, aging: float) -> None:
        self.aging = aging
        self._numbers = itertools.count()
        self._turns = itertools.count()
        self._lanes: dict[Key, _Lane[T]] = {}
        self._places: dict[T, tuple[_Lane[T], list[T]]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, item: object) -> bool:
        return item in self._places

    def push(self, item: T, *, now: float, priority: float = 0, key: Hashable = None) -> None:
        """Add an item that arrives at `now` (seconds).

        Raises:
            ValueError: `priority` is not finite, or so large that its age could not count. TypeError: `key` has no
                hash. Nothing has changed then.
        """
        tag = self._tag(now, priority)
        wanted = Key(key)
        lane = self._lanes.get(wanted)
        if lane is None:
            lane = _Lane(wanted, next(self._turns))
        cell = [item]  # emptied when the item leaves: taking it out of the heap would cost O(n)
        # Nothing of what follows can fail: numbers are compared, and the lane's own key is found by identity.
        heapq.heappush(lane.entries, (tag, next(self._numbers), cell))
        lane.live += 1
        self._lanes[lane.key] = lane
        self._places[item] = lane, cell

    def head(self, now: float) -> T | None:
        """The item to be served next, or None. It stays."""
        if len(self._lanes) <= 1:
            lanes = list(self._lanes.values())
            return self._first(lanes[0]) if lanes else None
        best: _Lane[T] | None = None
        rank: tuple[float, int] | None = None
        for lane in self._lanes.values():
            self._first(lane)  # what has left goes off the top
            here = ((lane.entries[0][0] - now) // self.aging, lane.turn)
            if rank is None or here < rank:
                best, rank = lane, here
        assert best is not None  # noqa: S101 - there are lanes, and a lane is never empty
        return self._first(best)

    def ahead(self, *, now: float, priority: float = 0, key: Hashable = None) -> int:
        """How many would be served before an item pushed now. Exact for one key; else within one a key. O(length)."""
        tag = self._tag(now, priority)
        step = (tag - now) // self.aging
        own = self._lanes.get(Key(key))
        mine = [] if own is None else [entry[0] for entry in own.entries if entry[2] and entry[0] <= tag]
        total = len(mine)
        turns = 1 + sum(1 for other in mine if (other - now) // self.aging == step)  # of this key in the same step
        for lane in self._lanes.values():
            if lane is own:
                continue
            steps = [(entry[0] - now) // self.aging for entry in lane.entries if entry[2]]
            before = sum(1 for other in steps if other < step)
            same = sum(1 for other in steps if other == step)
            total += before + min(same, turns)
        return total

    def serve(self, item: T) -> None:
        """Take out an item that is served: its key goes to the end of the round."""
        lane = self._places[item][0]
        lane.turn = next(self._turns)
        self.discard(item)

    def discard(self, item: T) -> None:
        """Take out an item that leaves unserved. Nothing happens if it is not here."""
        place = self._places.pop(item, None)
        if place is None:
            return
        lane, cell = place
        cell.clear()
        lane.live -= 1
        if not lane.live:
            del self._lanes[lane.key]
        elif len(lane.entries) > 2 * lane.live + 16:
            lane.entries = [entry for entry in lane.entries if entry[2]]
            heapq.heapify(lane.entries)

    def _tag(self, now: float, priority: float) -> float:
        tag = now + priority * self.aging
        if not math.isfinite(tag):
            msg = f"priority must be finite, and so must be its {self.aging:g} s of aging a step, not {priority!r}"
            raise ValueError(msg)
        return tag

    @staticmethod
    def _first(lane: _Lane[T]) -> T:
        while not lane.entries[0][2]:
            heapq.heappop(lane.entries)
        return lane.entries[0][2][0]

    def drain(self) -> list[T]:
        """Take out everything, in the order of arrival."""
        items = list(self._places)
        self._places.clear()
        self._lanes.clear()
        return items
