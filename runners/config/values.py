"""Values of the file, and checks that several tables need."""

from __future__ import annotations

import math
from typing import Any

from guardrails.core.sizes import parse_size


class Size(int):
    """Bytes."""

    @classmethod
    def read(cls, value: Any) -> Size:
        """From a size such as ``"512MiB"``, or a number of bytes.

        Raises:
            TypeError, ValueError: it is none.
        """
        return cls(parse_size(value, "a size"))


class SizeOrNone(Size):
    """Bytes; 0 for none."""

    @classmethod
    def read(cls, value: Any) -> SizeOrNone:
        """As `Size.read`, and 0."""
        return cls(value if value == 0 and not isinstance(value, bool) else parse_size(value, "a size"))


def whole(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        msg = f"{name} takes a whole number of at least {least}, not {value!r}"
        raise ValueError(msg)


def seconds(name: str, value: float | None, *, zero: bool = False) -> None:
    if value is not None and not (0 <= value < math.inf and (zero or value)):
        msg = f"{name} takes a number of seconds {'of at least 0' if zero else 'above 0'}, not {value!r}"
        raise ValueError(msg)


def share(name: str, value: float) -> None:
    if not 0 < value < 1:
        msg = f"{name} takes a share above 0 and below 1, not {value!r}"
        raise ValueError(msg)


def url(name: str, value: str, schemes: tuple[str, ...]) -> None:
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in schemes or not rest:
        msg = f"{name} takes a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}"
        raise ValueError(msg)  # without the value: it may hold a password
