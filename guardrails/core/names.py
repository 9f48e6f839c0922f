"""Names that may be shown: of guarded functions, and of guards that were made for a key.

``keyed(lambda user: breaker(name=user), key=...)`` gives each guard its key for a name. Whoever logs, counts or reports
events must not show it, and must not have a time series for each; what may be shown is the name of the `keyed`.
"""

from __future__ import annotations

import functools
from typing import Any, Self


class KeyedName(str):
    """The name of a guard that `keyed` made. A string as any other, with `family`: the name of the `keyed`."""

    __slots__ = ("family",)
    family: str

    def __new__(cls, name: str, family: str = "keyed") -> Self:
        made = super().__new__(cls, name)
        made.family = family
        return made


def public(name: str) -> str:
    """What may be shown in place of `name`: the family of a guard that was made for a key, else the name itself."""
    return name.family if isinstance(name, KeyedName) else name


__all__ = ["KeyedName", "public"]


def name_of(fn: Any) -> str:
    """The name of a function in errors and events; of a partial that of its function, of an object that of its class.
    Never a `repr`: it may show arguments, and an address would make a metric's label without end.
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None)
    return name if isinstance(name, str) and name else type(fn).__qualname__
