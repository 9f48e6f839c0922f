"""Users' keys, made safe to keep in a table.

A key is whatever a user's function returned. It must have a hash, and one whose hash changes later (an object that
hashes by what it holds, and is changed while its call runs) must still be found by the guard that took it in.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

#: Keys of these types cannot change. A tuple can, through what it holds; such a one is rarer than the cost of a look.
_FIXED = frozenset({str, int, bytes, bool, type(None), tuple})
#: Of these, the types that always have a hash: `checked` gives such a key back as it is.
UNCHANGING = _FIXED - {tuple}


class Key:
    """A key with the hash that it had when it came.

    Attributes:
        value: the key.
    """

    __slots__ = ("_hash", "value")

    def __init__(self, value: Hashable) -> None:
        self.value = value
        self._hash = hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and (self.value is other.value or bool(self.value == other.value))


def checked(guard: str, value: Hashable, argument: str = "key") -> Hashable:
    """What to keep `value` under in a table: itself, or a `Key` where its hash could change.

    Args:
        guard: the name of the guard, and `argument`, what the key was given as: for the error.
        value: the key.
        argument: see `guard`.

    Raises:
        TypeError: it has no hash.
    """
    kind = type(value)
    try:
        if kind is tuple:
            hash(value)
        return value if kind in _FIXED else Key(value)
    except TypeError as error:
        msg = f"{guard}: {argument} must be hashable, and this {kind.__name__} is not: {error}"
        raise TypeError(msg) from None


def plain(key: Any) -> Hashable:
    """The user's key of what `checked` gave."""
    return key.value if isinstance(key, Key) else key
