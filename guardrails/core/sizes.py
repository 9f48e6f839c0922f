"""Sizes of memory as people write them: ``"300MiB"``, ``"2GB"``, or a plain number of bytes."""

from __future__ import annotations

import re

_UNITS = {
    "": 1, "b": 1,
    "k": 1024, "kb": 1000, "kib": 1024,
    "m": 1024**2, "mb": 1000**2, "mib": 1024**2,
    "g": 1024**3, "gb": 1000**3, "gib": 1024**3,
    "t": 1024**4, "tb": 1000**4, "tib": 1024**4,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_size(value: str | float, argument: str) -> int:
    """Turn a size into bytes. ``MiB`` and ``M`` are 1024², ``MB`` is 1000², as the standards and Kubernetes have it.

    Raises:
        TypeError: `value` is neither text nor a number.
        ValueError: it is not a size, or not above zero. Both name `argument`.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        msg = f"{argument} takes a size such as '300MiB' or a number of bytes, not {type(value).__name__}"
        raise TypeError(msg)
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            msg = (
                f"{argument}={value!r} is not a size: write a number with B, KiB, MiB, GiB or TiB, for example '300MiB'"
            )
            raise ValueError(msg)
        size = float(match[1]) * unit
    else:
        size = float(value) if -(2**64) < value < 2**64 else float("inf")  # a whole number may be too large for a float
    if not 1 <= size < 2**63:
        msg = f"{argument}={value!r} must be at least one byte and below 8 EiB"
        raise ValueError(msg)
    return int(size)


def format_size(size: float) -> str:
    """Bytes as text with a binary unit and three digits: ``format_size(314_572_800) == "300 MiB"``."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(amount) < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:.3g} TiB"
