"""The arguments that every guard with a queue takes, and what they may be: when it is built, and for each call."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

from guardrails.core import validate
from guardrails.core.keys import checked

Priority = Callable[..., float]
Key = Callable[..., Hashable]


def check_options(
    *, queue: int | None, max_wait: float, priority: object, aging: float, key: object, at_once: int | None
) -> int:
    """Check the arguments that every turnstile takes; returns the queue's size, ten for each that may run by default.

    Raises:
        ValueError, TypeError: they name the argument.
    """
    if queue is not None and (not isinstance(queue, int) or isinstance(queue, bool) or queue < 0):
        msg = f"queue takes a whole number of at least 0, not {queue!r}"
        raise ValueError(msg)
    check_max_wait(max_wait)
    validate.finite("aging", aging, above=0)
    if not callable(priority):
        try:
            number = validate.finite("priority", priority)
        except TypeError as error:
            msg = f"{error}: a lower one goes first; or give a function of the call's arguments"
            raise TypeError(msg) from None
        if not math.isfinite(number * aging):
            msg = f"priority times aging must be finite, not {priority!r} times {aging!r}"
            raise ValueError(msg)
    if key is not None and not callable(key):
        msg = f"key takes a function of the call's arguments, not {type(key).__name__}"
        raise TypeError(msg)
    return queue if queue is not None else min(1000, 10 * (at_once or 64))


def check_max_wait(max_wait: object) -> float:
    """`max_wait`, if it is a number of seconds above 0.

    Raises:
        TypeError, ValueError: it is not.
    """
    return validate.seconds("max_wait", max_wait, hint="; for no waiting at all, pass queue=0")


def rank_of(
    name: str,
    args: tuple[Any, ...] | None,
    kwargs: Any,
    *,
    priority: float | Priority,
    key: Key | None,
    aging: float,
) -> tuple[float, Hashable]:
    """The priority and the key of one call of the guard `name`, checked: what users' functions return may be anything.

    A block has no arguments (None): functions of them say nothing about it.

    Raises:
        TypeError, ValueError: a function returned what is no priority, or no key; or what that function raised itself.
    """
    if args is None or kwargs is None:
        return (0 if callable(priority) else priority), None
    number: float = 0
    if callable(priority):
        number = validate.finite(f"{name}: priority(...)", priority(*args, **kwargs))
        if not math.isfinite(number * aging):
            msg = f"{name}: priority(...) times aging ({aging:g} s) must be finite, not {number!r} times that"
            raise ValueError(msg)
    else:
        number = priority
    return number, None if key is None else checked(name, key(*args, **kwargs), "key(...)")
