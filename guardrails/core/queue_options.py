"""The arguments that every guard with a waiting room takes, and what they may be."""

from __future__ import annotations

from collections.abc import Callable, Hashable

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
    for argument, value in (("max_wait", max_wait), ("aging", aging)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            msg = f"{argument} takes a number of seconds, not {type(value).__name__}"
            raise TypeError(msg)
        if not value > 0:
            hint = "; for no waiting at all, pass queue=0" if argument == "max_wait" else ""
            msg = f"{argument} takes a number of seconds above 0, not {value!r}{hint}"
            raise ValueError(msg)
    if isinstance(priority, bool) or not (callable(priority) or isinstance(priority, int | float)):
        msg = f"priority takes a number (lower first) or a function of the arguments, not {type(priority).__name__}"
        raise TypeError(msg)
    if key is not None and not callable(key):
        msg = f"key takes a function of the call's arguments, not {type(key).__name__}"
        raise TypeError(msg)
    return queue if queue is not None else min(1000, 10 * (at_once or 64))
