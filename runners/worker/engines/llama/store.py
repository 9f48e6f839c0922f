"""Which prefixes are kept outside the KV cache, in plain memory. Pure: it counts tokens; their bytes are the engine's.

What is parked in the cache makes every step slower, since attention passes over all cells up to the last one in use.
Outside it costs nothing but its bytes, and a copy each way. An entry holds only what its parent has not::

    entry 0   ████████████████             positions 0 to 15
    entry 1   ············███████          its parent is 0; positions 12 to 18 are its own
    entry 2   ··················████       its parent is 1

Entries without children go first, the least recently used one before the others.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from runners.worker.engines.llama.prefix import RadixTree


class Part(NamedTuple):
    """What one entry gives to a prefix: its own positions, from `start` to before `end`. It may hold more."""

    key: int
    start: int
    end: int


class Found(NamedTuple):
    """The first `length` tokens of a prompt: its parts, in order, and the cells that bringing them back may take."""

    length: int
    parts: tuple[Part, ...]
    room: int


class Added(NamedTuple):
    """A new entry with the positions from `start` on, and the entries that had to go for it."""

    key: int
    start: int
    dropped: tuple[int, ...]


class _Entry:
    __slots__ = ("children", "parent", "start", "tokens")

    def __init__(self, tokens: array[int], start: int, parent: int | None) -> None:
        self.tokens = tokens  # from the first position on, those of its parents too
        self.start = start
        self.parent = parent
        self.children: set[int] = set()


class PrefixStore:
    """The entries.

    Args:
        tokens: that may be held, in all.
        shortest: fewer tokens than that are not kept as an entry.
    """

    def __init__(self, tokens: int, *, shortest: int) -> None:
        self._most = tokens
        self._shortest = shortest
        self._entries: dict[int, _Entry] = {}  # least recently used first
        self._tree = RadixTree()
        self._used = 0
        self._next = 0

    @property
    def used(self) -> int:
        """Tokens that are held."""
        return self._used

    def __len__(self) -> int:
        return len(self._entries)

    def takes(self, count: int) -> bool:
        """Whether `count` tokens could be held if nothing else were here."""
        return count <= self._most

    def find(self, tokens: array[int], most: int) -> Found | None:
        """The longest beginning of `tokens` that is here, of at most `most`; None if there is none."""
        common, holders = self._tree.longest(tokens)
        length = min(common, most)
        if length < 1:
            return None
        parts: list[Part] = []
        room, upto = length, length
        for key in self._chain(min(holders)):
            entry = self._entries[key]
            if entry.start < upto:
                parts.append(Part(key, entry.start, upto))
                room = max(room, len(entry.tokens))
                upto = entry.start
        return Found(length, tuple(reversed(parts)), room)

    def touch(self, found: Found) -> None:
        """It is used now."""
        self._use([part.key for part in reversed(found.parts)])

    def add(self, tokens: array[int], spare: Sequence[int] = ()) -> Added | None:
        """Keep `tokens`. None if they are here already, but for less than `shortest`, or do not fit beside the entries
        to `spare`.
        """
        start, parent = 0, None
        common, holders = self._tree.longest(tokens)
        if common >= self._shortest:
            start = common
            parent = next(key for key in self._chain(min(holders)) if self._entries[key].start < common)
        needed = len(tokens) - start
        above = [] if parent is None else self._chain(parent)
        dropped = self._make_room(needed, {*spare, *above}) if needed >= self._shortest else None
        if dropped is None:
            self._use(above)
            return None
        for one in dropped:
            self.drop(one)
        key, self._next = self._next, self._next + 1
        self._entries[key] = _Entry(tokens, start, parent)
        self._use(above)
        if parent is not None:
            self._entries[parent].children.add(key)
        self._tree.insert(tokens, key)
        self._used += needed
        return Added(key, start, dropped)

    def _make_room(self, needed: int, spare: set[int]) -> tuple[int, ...] | None:
        """Whom to drop, in order, so that `needed` tokens fit; None if even that does not help."""
        over = self._used + needed - self._most
        gone: list[int] = []
        while over > 0:
            free = (
                key
                for key, entry in self._entries.items()
                if key not in spare and key not in gone and entry.children.issubset(gone)
            )
            key = next(free, None)
            if key is None:
                return None
            gone.append(key)
            over -= self._size(key)
        return tuple(gone)

    def drop(self, key: int) -> None:
        """Forget an entry, which has no children."""
        entry = self._entries[key]
        if entry.children:
            raise ValueError(f"key {key} has entries that go on from it")
        self._used -= self._size(key)
        self._tree.remove(key)
        if entry.parent is not None:
            self._entries[entry.parent].children.discard(key)
        del self._entries[key]

    def clear(self) -> tuple[int, ...]:
        """Forget all; returns their keys."""
        keys = tuple(self._entries)
        self._entries.clear()
        self._tree = RadixTree()
        self._used = 0
        return keys

    def _size(self, key: int) -> int:
        entry = self._entries[key]
        return len(entry.tokens) - entry.start

    def _use(self, keys: Sequence[int]) -> None:
        """From the child up, so that a parent counts as used after it."""
        for key in keys:
            self._entries[key] = self._entries.pop(key)

    def _chain(self, key: int) -> list[int]:
        """The entry, its parent, and so on."""
        chain: list[int] = []
        above: int | None = key
        while above is not None:
            chain.append(above)
            above = self._entries[above].parent
        return chain
