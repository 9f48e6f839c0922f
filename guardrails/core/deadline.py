"""The ambient deadline: how much time is left for the work at hand, known to everything called from here.

::

    with deadline_in(2.0):            an outermost `timeout(2)` does the same
        ...                           remaining() == 2.0
        await slow_part()             remaining() == 0.7: a queue refuses what cannot make it, a runner is told

A context variable carries it, so that tasks started inside, and threads started by `anyio.to_thread`, inherit it. It
tells and does not interrupt: `timeout` interrupts. It ends with the block or call that set it, also for a task that
lives on.

Threads: a limit is written by its owner alone and read by anybody.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.errors import TimedOut


class Limit(Protocol):
    """One deadline in force. `until` is a time of `clock`, None when it is over; `parent` the one around it."""

    until: float | None
    parent: Limit | None
    seconds: float

    @property
    def owner(self) -> Any:
        """The guard that set it, None if it was none."""
        ...

    @property
    def clock(self) -> Clock: ...

    @property
    def enforced(self) -> bool:
        """Whether its owner interrupts the work when the time has come."""
        ...


#: The innermost limit. A limit that is over may still stand here: look for one that is in force with `innermost`.
current: contextvars.ContextVar[Limit | None] = contextvars.ContextVar("guardrails.deadline", default=None)


def innermost(own: Limit | None = None) -> Limit | None:
    """The innermost limit in force, or None. Whoever is about to stand inside it (again) passes itself as `own`."""
    limit = current.get()
    while limit is not None and limit.until is None:
        limit = limit.parent
    above = limit
    while above is not None:
        if above is own:
            return None  # two streams that read each other: a limit must never come to stand inside itself
        above = above.parent
    return limit


def overrun(owners: Sequence[Any], began: float) -> TimedOut | None:
    """What the innermost deadline here that one of `owners` set raises, if its time has come, and if at least half of
    that went to the call that began at `began`, a time of its clock; else None.
    """
    limit = current.get()
    while limit is not None:
        if limit.until is not None and limit.owner is not None and limit.owner in owners:
            seconds, now = limit.seconds, limit.clock.now()
            if now < limit.until or now - began < seconds / 2:
                return None
            return TimedOut(limit.owner.name, limit="total", seconds=seconds)
        limit = limit.parent
    return None


def tidy() -> None:
    """Leave no limit that is over as the innermost one of this context."""
    limit = head = current.get()
    while limit is not None and limit.until is None:
        limit = limit.parent
    if head is not None and head is not limit:
        head.parent = limit  # for other contexts in which it stands
        current.set(limit)


def remaining() -> float | None:
    """Seconds until the nearest deadline in force: 0.0 when it has passed, None when there is none."""
    return _nearest(enforced=True)


def wait_limit(max_wait: float) -> float:
    """Seconds that a waiting call must be interrupted after by whoever makes it wait.

    `max_wait`, or less where a nearer deadline has nobody who interrupts. Where somebody does (a `timeout` further
    out), his error is the one to raise.
    """
    if current.get() is None:
        return max_wait
    left = _nearest(enforced=False)
    return max_wait if left is None else min(max_wait, left)


def _nearest(*, enforced: bool) -> float | None:
    nearest: float | None = None
    limit = current.get()
    while limit is not None:
        until = limit.until
        if until is not None and (enforced or not limit.enforced):
            left = max(0.0, until - limit.clock.now())
            nearest = left if nearest is None else min(nearest, left)
        limit = limit.parent
    return nearest


class deadline_in:  # noqa: N801 - a block is opened with it, and it reads as a function
    """``with deadline_in(seconds):`` sets the ambient deadline for the block, and whatever is called from it.

    A nearer deadline that is in force already stays the nearer one. 0 is a deadline that has come.

    Args:
        seconds: from now.
        clock: for tests.

    Raises:
        TypeError: `seconds` is not a number. ValueError: it is below 0, infinite, or not a number at all (NaN).
    """

    enforced = False
    owner = None

    def __init__(self, seconds: float, *, clock: Clock = SYSTEM_CLOCK) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            msg = f"seconds takes a number, not {type(seconds).__name__}"
            raise TypeError(msg)
        if not 0 <= seconds < float("inf"):
            msg = f"seconds takes a number of at least 0, not {seconds!r}"
            raise ValueError(msg)
        self.seconds = seconds
        self.clock = clock
        self.until: float | None = None
        self.parent: Limit | None = None
        self._token: contextvars.Token[Limit | None] | None = None

    def __enter__(self) -> None:
        if self._token is not None:
            msg = "a deadline_in block is open already: build one for each block"
            raise RuntimeError(msg)
        self.parent = innermost()
        self.until = self.clock.now() + self.seconds
        self._token = current.set(self)

    def __exit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.until = None
        token, self._token = self._token, None
        if token is not None:
            with contextlib.suppress(ValueError):  # a generator that is finalised in another context than it began in
                current.reset(token)


__all__ = ["deadline_in", "remaining"]
