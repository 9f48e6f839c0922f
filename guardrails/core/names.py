"""Names of guards that were made for a key: what may be shown of them.

``keyed(lambda user: breaker(name=user), key=...)`` gives each guard its key for a name. Whoever logs, counts or reports
events must not show it, and must not have a time series for each; what may be shown is the name of the `keyed`.
"""

from __future__ import annotations

from typing import Self


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
