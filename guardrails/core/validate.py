"""Checks of values that come from outside: arguments of guards, and what users' functions return for one call.

A message names the value, the rule and what was given: "queue must be at least 0, not -1". A check changes nothing and
keeps nothing, so that a bad value fails the call that brought it and no other.
"""

from __future__ import annotations

import math
import numbers
from typing import Any


def finite(argument: str, value: object, *, above: float | None = None, least: float | None = None) -> float:
    """`value` as a float, if it is a real number that is neither infinite nor NaN.

    Args:
        argument: its name, for the error.
        value: a number of any type that counts as real (numpy's do); a bool does not.
        above, least: the value must be above, or at least, this.

    Raises:
        TypeError: it is no number. ValueError: it is out of range.
    """
    number = real(argument, value)
    if not math.isfinite(number):
        msg = f"{argument} must be a finite number, not {_shown(value)}"
        raise ValueError(msg)
    _in_range(argument, value, number, above, least)
    return number


def seconds(argument: str, value: object, *, hint: str = "") -> float:
    """`value` as a number of seconds above 0; infinity is one.

    Raises:
        TypeError: it is no number. ValueError: it is not above 0.
    """
    number = real(argument, value)
    if not number > 0:
        msg = f"{argument} must be a number of seconds above 0, not {_shown(value)}{hint}"
        raise ValueError(msg)
    return number


def whole(argument: str, value: object, *, least: int = 0) -> int:
    """`value`, if it is a whole number of at least `least`.

    Raises:
        TypeError: it is no whole number. ValueError: it is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{argument} must be a whole number, not {_shown(value)}"
        raise TypeError(msg)
    if value < least:
        msg = f"{argument} must be at least {least}, not {_shown(value)}"
        raise ValueError(msg)
    return value


def real(argument: str, value: Any) -> float:
    """`value` as a float, which may be infinite or NaN.

    Raises:
        TypeError: it is no number. ValueError: it is a whole number beyond the range of a float.
    """
    if type(value) is float:  # the usual case, and `numbers` is slow
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        msg = f"{argument} must be a number, not {_shown(value)}"
        raise TypeError(msg)
    try:
        return float(value)
    except OverflowError:
        msg = f"{argument} must be a number that a float can hold, not {_shown(value)}"
        raise ValueError(msg) from None


def _in_range(argument: str, value: object, number: float, above: float | None, least: float | None) -> None:
    if above is not None and not number > above:
        msg = f"{argument} must be above {above:g}, not {_shown(value)}"
        raise ValueError(msg)
    if least is not None and not number >= least:
        msg = f"{argument} must be at least {least:g}, not {_shown(value)}"
        raise ValueError(msg)


def _shown(value: object) -> str:
    # Numbers and None as they are; of anything else, which may be long or secret, the type alone.
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**20 else "a very large whole number"
    return f"a {type(value).__name__}" if not isinstance(value, str) else f"{value[:40]!r}"
