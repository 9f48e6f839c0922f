"""Which sequence pays for which KV cell. Pure.

Copying a prefix makes no new cells: the cells get a second sequence, and are free when none has them any more. Each
cell is counted once, with the sequence that *owns* it::

    position   0         4         8         12
    seq 0      ■ ■ ■ ■ ■ ■ ■ ■ ■ ■                    owns 0 to 9
    seq 1      · · · · · · · · ■ ■ ■ ■                copied 8 from 0, owns 8 to 11
    seq 2      · · · · ■ ■ ■                          copied 4 from 1: hangs on 0, which owns what it shares

    drop(0):   the sharer that copied furthest is the heir, the others hang on it; what nobody shares is free

    seq 1      ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ ■ ■                owns 0 to 11; cells 8 and 9 of seq 0 are free
    seq 2      · · · · ■ ■ ■                          hangs on 1
"""

from __future__ import annotations

from collections.abc import Iterable


class _Holding:
    """What a sequence has: `length` cells, of which it owns those from `start` on. The one before `start` is owned by
    `source`, so `source.start < start <= source.length`.
    """

    __slots__ = ("length", "sharers", "source", "start")

    def __init__(self, length: int, start: int, source: int | None) -> None:
        self.length = length
        self.start = start
        self.source = source
        self.sharers: set[int] = set()  # whose source this is


class Ledger:
    """Sequences and their cells. A sequence exists from its first `grow` or `copy` until its `drop`."""

    def __init__(self) -> None:
        self._held: dict[int, _Holding] = {}
        self._used = 0

    @property
    def used(self) -> int:
        """Distinct cells in use."""
        return self._used

    def __contains__(self, seq: int) -> bool:
        return seq in self._held

    def length(self, seq: int) -> int:
        """Its cells, owned and shared; 0 for a sequence that is not here."""
        held = self._held.get(seq)
        return 0 if held is None else held.length

    def start(self, seq: int) -> int:
        """The first position that it owns: its length, if it owns nothing."""
        held = self._held.get(seq)
        return 0 if held is None else held.start

    def owned(self, seq: int) -> int:
        """The cells that it pays for."""
        held = self._held.get(seq)
        return 0 if held is None else held.length - held.start

    def source(self, seq: int) -> int | None:
        """Who owns the cell before its first own one; None if it owns all that it has."""
        held = self._held.get(seq)
        return None if held is None else held.source

    def sharers(self, seq: int) -> frozenset[int]:
        """The sequences whose source it is."""
        held = self._held.get(seq)
        return frozenset() if held is None else frozenset(held.sharers)

    def grow(self, seq: int, count: int) -> None:
        """The sequence gets `count` new cells of its own, after those it has."""
        if count < 0:
            raise ValueError(f"count must be 0 or more, not {count}")
        held = self._held.get(seq)
        if held is None:
            held = self._held[seq] = _Holding(0, 0, None)
        held.length += count
        self._used += count

    def copy(self, source: int, dest: int, length: int) -> None:
        """`dest`, which must have nothing, gets the first `length` cells of `source` too."""
        if self.length(dest):
            raise ValueError(f"dest must have no cells, and sequence {dest} has {self.length(dest)}")
        if not 1 <= length <= self.length(source):
            raise ValueError(f"length must be 1 to {self.length(source)}, what source has, not {length}")
        self._held[dest] = _Holding(length, length, None)
        self._hang(dest, source, length)

    def truncate(self, seq: int, length: int) -> int:
        """The sequence keeps its first `length` cells. Returns how many became free; the others stay with sharers."""
        held = self._held[seq]
        if not 0 <= length <= held.length:
            raise ValueError(f"length must be 0 to {held.length}, what the sequence has, not {length}")
        freed = self._leave(held, seq, max(length, held.start))
        held.length = length
        if length < held.start:
            source = held.source
            self._unhang(seq)
            held.start = length
            self._hang(seq, source, length)
        return freed

    def drop(self, seq: int) -> int:
        """The sequence is gone. Returns how many cells became free."""
        held = self._held.get(seq)
        if held is None:
            return 0
        freed = self._leave(held, seq, held.start)
        self._unhang(seq)
        del self._held[seq]
        return freed

    def distinct(self, prefixes: Iterable[tuple[int, int]]) -> int:
        """How many cells the given prefixes, as (sequence, length), have together: would remain if only they did."""
        reached: dict[int, int] = {}  # by owner, up to which position
        for seq, length in prefixes:
            owner: int | None = seq
            while owner is not None and length > reached.get(owner, 0):
                reached[owner] = length
                held = self._held[owner]
                length = min(length, held.start)  # noqa: PLW2901 - the rest is further up
                owner = held.source
        return sum(max(0, end - self._held[owner].start) for owner, end in reached.items())

    def _leave(self, held: _Holding, seq: int, length: int) -> int:
        """Give up the owned cells from `length` (at or after its start) on: to the heir, or free."""
        end = length
        sharers = [sharer for sharer in held.sharers if self._held[sharer].start > length]
        if sharers:
            first = max(sharers, key=lambda sharer: self._held[sharer].start)
            heir = self._held[first]
            end = heir.start
            for sharer in sharers:
                held.sharers.discard(sharer)
                if sharer != first:
                    self._held[sharer].source = first
                    heir.sharers.add(sharer)
            heir.source, heir.start = None, length
            self._hang(first, seq, length)
        freed = held.length - end
        self._used -= freed
        return freed

    def _hang(self, seq: int, source: int | None, length: int) -> None:
        """Make the owner of cell `length - 1` of `source` the source of a sequence that has none."""
        while source is not None and self._held[source].start >= length:
            source = self._held[source].source
        self._held[seq].source = source
        if source is not None:
            self._held[source].sharers.add(seq)

    def _unhang(self, seq: int) -> None:
        held = self._held[seq]
        if held.source is not None:
            self._held[held.source].sharers.discard(seq)
            held.source = None
