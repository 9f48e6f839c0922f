"""What a cache keeps in memory: entries up to so many bytes, and an estimate of the bytes that a value holds. Pure."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

#: Bytes that an entry costs beside its value and its key: the entry, its numbers, its places in the dictionary.
ENTRY_OVERHEAD = 400


class Entry:
    """A cached value. Times are the clock's.

    Attributes:
        value: what the call returned.
        size: bytes of the value and the key, without `ENTRY_OVERHEAD`.
        stored: when it was returned.
        fresh_until: until when it is served.
        keep_until: until when it may still serve in need.
    """

    __slots__ = ("fresh_until", "keep_until", "size", "stored", "value")

    def __init__(self, value: Any, size: int, stored: float, fresh_until: float, keep_until: float) -> None:
        self.value = value
        self.size = size
        self.stored = stored
        self.fresh_until = fresh_until
        self.keep_until = keep_until


class BytesLru:
    """Entries up to so many bytes; the one that was used longest ago goes first.

    Attributes:
        entries: by key, the one used longest ago first. `entries.get` and `entries.move_to_end` are each one step that
            no other thread interrupts; all else is done under the owner's lock.
        used: bytes of all entries with their overhead; never above `max_bytes`.
        evicted: entries that had to go to make room, since the start.
    """

    __slots__ = ("entries", "evicted", "max_bytes", "used")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self.used = 0
        self.evicted = 0

    def fits(self, entry: Entry) -> bool:
        """Whether there can be room for `entry` at all."""
        return entry.size + ENTRY_OVERHEAD <= self.max_bytes

    def put(self, key: Hashable, entry: Entry) -> list[Entry]:
        """Keep `entry`, which must fit, in place of what was there.

        Returns what had to go for it, the entry that it replaces included: let go of them outside the lock, since a
        value may have a finaliser.
        """
        replaced = self.pop(key)
        gone = [] if replaced is None else [replaced]
        size = entry.size + ENTRY_OVERHEAD
        while self.used + size > self.max_bytes:
            _, old = self.entries.popitem(last=False)
            self.used -= old.size + ENTRY_OVERHEAD
            self.evicted += 1
            gone.append(old)
        self.entries[key] = entry
        self.used += size
        return gone

    def find(self, key: Hashable, now: float) -> Entry | None:
        """The entry, if it is of any use, fresh or not. This counts as use of it."""
        entry = self.entries.get(key)
        if entry is None or now >= entry.keep_until:
            return None
        self.entries.move_to_end(key)
        return entry

    def pop(self, key: Hashable) -> Entry | None:
        """Forget `key`, if it is there. Returns what was."""
        entry = self.entries.pop(key, None)
        if entry is not None:
            self.used -= entry.size + ENTRY_OVERHEAD
        return entry

    def clear(self) -> list[Entry]:
        """Forget everything. Returns what there was."""
        gone = []
        while self.entries:  # not by iterating: another thread may have a hit meanwhile, which moves the entry
            gone.append(self.entries.popitem()[1])
        self.used = 0
        return gone


_NUMBERS = frozenset({int, float, bool, type(None)})
_LEAVES = frozenset({str, bytes, bytearray, complex, *_NUMBERS})
#: Things that many hold and nobody owns.
_SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)


def size_of(value: Any, limit: int) -> int:
    """An estimate of the bytes that `value` holds: all that it reaches, each object once; arrays by `nbytes`.

    Numbers in a long list are not told apart: each counts. What C code holds elsewhere is not seen. The search ends
    as soon as there are more than `limit`.
    """
    if type(value) in _LEAVES:
        return sys.getsizeof(value)
    seen: set[int] = set()
    todo: list[Any] = [value]
    kept: list[Any] = []  # fields that were computed when they were read: else the next one could have the same id
    total = 0
    while todo and total <= limit:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        total += _own_size(item)
        kind = type(item)
        if kind in _LEAVES or isinstance(item, _SHARED):
            continue
        if isinstance(item, dict):
            total += _many(item.keys(), todo) + _many(item.values(), todo)
        elif isinstance(item, list | tuple | set | frozenset):
            total += _many(item, todo)
        if kind not in _CONTAINERS:
            fields = _fields(item)
            kept.append(fields)
            todo.extend(fields)
    return total


_CONTAINERS = frozenset({dict, list, tuple, set, frozenset})


def _many(items: Iterable[Any], todo: list[Any]) -> int:
    # Embeddings come as lists of numbers: those are counted without looking at each one in Python.
    found = list(items)
    kinds = set(map(type, found))
    if kinds <= _NUMBERS:
        return sum(map(sys.getsizeof, found))
    todo.extend(found)
    return 0


def _own_size(item: Any) -> int:
    try:
        if isinstance(item, _SHARED):
            return 0
        own = sys.getsizeof(item, 64)
        inside = getattr(item, "nbytes", 0)
    except Exception:  # a property, or a __sizeof__, of somebody's class
        return 64
    # An array's own size has its data in it already, a view's has not.
    return max(own, inside + 64) if isinstance(inside, int) and inside else own


def _fields(item: Any) -> list[Any]:
    try:
        found = list(getattr(item, "__dict__", {}).values())
        found.extend(getattr(item, name, None) for name in getattr(item, "__struct_fields__", ()))
        for cls in type(item).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            names = (slots,) if isinstance(slots, str) else slots
            found.extend(getattr(item, name, None) for name in names if name not in ("__dict__", "__weakref__"))
    except Exception:  # somebody's __getattr__
        return []
    return found


__all__ = ["ENTRY_OVERHEAD", "BytesLru", "Entry", "size_of"]
