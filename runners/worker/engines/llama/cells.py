"""Which cells of the KV cache are alive, who shares them, and when the cache is worth tidying. Pure.

The library reads a sequence's tokens in the order of their cells, and adds up with rounding: in another order the same
tokens have logits that differ by one half and more. So that a text does not depend on who else is there, the cells of a
sequence are kept in the order of its tokens: new tokens come after all others, what has ended stays where it is, dead,
and when too much is dead all that lives is written anew from the first cell on::

    head ──────────────────────────────────▼
    ██▒▒▒▒████▒▒██▒▒▒▒▒▒▒▒███▒▒██████▒▒▒▒██░░░░░░░     █ alive   ▒ dead   ░ free
    ███████████████████░░░░░░░░░░░░░░░░░░░░░░░░░░░     compacted

That is quicker, too: for every token that it computes the library passes over all cells below the head, which is 3.6 %
of a step for each 1,000 cells with 16 sequences of a small model; to write a token anew costs there some 37 us. So the
cache is compacted when as many cells are dead as a third of those alive, and `_SLACK` more: what is won and what it
costs are then both near 1 %.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

#: Dead cells that are never worth a compaction. The library passes over cells by 256.
_SLACK = 256
#: From so many cells on the library halves what a lone token looks at, for two threads, and rounds in another way.
_HALVED = 256


class Run(NamedTuple):
    """The tokens from position `start` to before `end`, which `owners` share."""

    owners: tuple[int, ...]
    start: int
    end: int


class _Segment:
    """Cells that have the same owners."""

    __slots__ = ("length", "owners")

    def __init__(self, owners: set[int], length: int) -> None:
        self.owners = owners
        self.length = length


class Cells:
    """The cells of one cache.

    Args:
        size: how many there are.

    Attributes:
        head: cells that are alive or dead; all others are free.
        used: cells that are alive.
    """

    __slots__ = ("_segments", "head", "size", "used")

    def __init__(self, size: int) -> None:
        self.size = size
        self.head = self.used = 0
        self._segments: dict[int, list[_Segment]] = {}  # of each sequence, in the order of its tokens

    def fits(self, count: int) -> bool:
        """Whether so many tokens go in behind the head."""
        return self.head + count <= self.size

    def wasteful(self, count: int) -> bool:
        """Whether a compaction is worth its cost, before so many tokens are computed."""
        dead = self.head - self.used
        return dead > self.used // 3 + _SLACK or (count == 1 and self.used < _HALVED <= self.head)

    @property
    def untidy(self) -> bool:
        """Whether a compaction is worth its cost while there is nothing else to do."""
        return self.head - self.used > self.used // 4

    def length(self, seq: int) -> int:
        """How many cells a sequence has."""
        return sum(segment.length for segment in self._segments.get(seq, ()))

    def placed(self, seq: int, count: int, *, dead: int = 0) -> None:
        """The next `count` tokens of `seq` lie from the head on; and so many `dead` cells."""
        segments = self._segments.setdefault(seq, [])
        if segments and len(segments[-1].owners) == 1:
            segments[-1].length += count
        else:
            segments.append(_Segment({seq}, count))
        self.head += count + dead
        self.used += count

    def copied(self, source: int, seq: int, length: int) -> None:
        """`seq`, which had none, shares the first `length` cells of `source`."""
        shared: list[_Segment] = []
        for segment in self._cut(source, length):
            segment.owners.add(seq)
            shared.append(segment)
        if shared:
            self._segments[seq] = shared

    def truncated(self, seq: int, length: int) -> None:
        """`seq` has no more than its first `length` cells."""
        segments = self._segments.get(seq)
        if segments is None:
            return
        kept = self._cut(seq, length)
        for segment in segments[len(kept) :]:
            segment.owners.discard(seq)
            if not segment.owners:
                self.used -= segment.length
        if kept:
            self._segments[seq] = kept
        else:
            del self._segments[seq]

    def _cut(self, seq: int, length: int) -> list[_Segment]:
        """The segments with the first `length` cells of `seq`, and no others."""
        found: list[_Segment] = []
        for segment in self._segments.get(seq, ()):
            if length <= 0:
                break
            if segment.length > length:
                self._split(segment, length)
            found.append(segment)
            length -= segment.length
        return found

    def _split(self, segment: _Segment, length: int) -> None:
        rest = _Segment(set(segment.owners), segment.length - length)
        segment.length = length
        for seq in segment.owners:
            segments = self._segments[seq]
            segments.insert(segments.index(segment) + 1, rest)

    def _join(self) -> None:
        for segments in self._segments.values():
            for first, second in reversed(list(itertools.pairwise(segments))):
                if first.owners == second.owners:
                    first.length += second.length
                    for seq in first.owners:
                        self._segments[seq].remove(second)

    def runs(self) -> list[Run]:
        """All that lives, in an order in which no sequence's tokens change theirs."""
        self._join()
        found: list[Run] = []
        seen: set[int] = set()
        for segments in self._segments.values():
            start = 0
            for segment in segments:
                end = start + segment.length
                if id(segment) not in seen:
                    seen.add(id(segment))
                    found.append(Run(tuple(sorted(segment.owners)), start, end))
                start = end
        return found

    def compacted(self) -> None:
        """All that lives has been written anew, from the first cell on."""
        self.head = self.used
