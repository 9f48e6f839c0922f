"""The number of the attempt that runs, for the function that is retried or hedged.

It is a context variable that is set around an attempt beyond a call's first, and reset after it. A first attempt sets
nothing, unless it is made inside a further attempt of another call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_current: ContextVar[int] = ContextVar("guardrails.attempt", default=1)

#: The number of the attempt that runs.
number = _current.get


class Further:
    """Whether a further attempt was made in this process; until then, every number is 1.

    Attributes:
        made: stays True from the first one on.
    """

    __slots__ = ("made",)

    def __init__(self) -> None:
        self.made = False


FURTHER = Further()


def attempt() -> int:
    """The number of the attempt that runs: 1 for the first, and outside of any retry or hedge.

    Where retries or hedges are nested, it is that of the innermost.
    """
    return _current.get()


def mark(value: int) -> None:
    """Number the attempt that this task runs and that ends with it. For a task with a context of its own."""
    if _current.get() != value:
        FURTHER.made = True
        _current.set(value)


async def at(value: int, step: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    """Await `step(*args, **kwargs)` as a part of attempt `value`."""
    if _current.get() == value:
        return await step(*args, **kwargs)
    FURTHER.made = True
    token = _current.set(value)
    try:
        return await step(*args, **kwargs)
    finally:
        with contextlib.suppress(ValueError):  # a coroutine that is finalised in another context than it began in
            _current.reset(token)


def at_blocking(value: int, step: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """`at` for sync code."""
    if _current.get() == value:
        return step(*args, **kwargs)
    FURTHER.made = True
    token = _current.set(value)
    try:
        return step(*args, **kwargs)
    finally:
        _current.reset(token)


__all__ = ["attempt"]
