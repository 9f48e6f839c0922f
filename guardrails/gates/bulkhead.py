"""Bulkhead: so many calls of one dependency at once, that a slow one cannot take every task and connection there is.

The others wait, in a queue bounded by count, by time and by the wait to be expected. It knows nothing of memory:
`admit` does.

Threads: as `guardrails.core.turnstile` says: the guard may be shared by threads, and by loops of any kind.
"""

from __future__ import annotations

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.fixed import fixed
from guardrails.core.permits import Permits
from guardrails.core.pipeline import Layer
from guardrails.core.queue_options import Key, Priority, check_options
from guardrails.core.turnstile import Turnstile
from guardrails.gates.concurrency import Aimd, Gradient


@fixed("priority", "aging", "key", "clock")
class Bulkhead(Layer, Turnstile):
    """A bulkhead. Build it with `bulkhead(...)`, which documents the arguments."""

    def __init__(
        self,
        max_concurrent: int | Aimd | Gradient,
        *,
        name: str,
        queue: int,
        max_wait: float,
        priority: float | Priority,
        aging: float,
        key: Key | None,
        clock: Clock,
    ) -> None:
        self._max_concurrent = max_concurrent
        adaptive = max_concurrent if isinstance(max_concurrent, Aimd | Gradient) else None
        super().__init__(
            name=name,
            books=Permits(max_concurrent if isinstance(max_concurrent, int) else max_concurrent.initial, 0),
            limiter=None if adaptive is None else adaptive.start(),
            queue=queue,
            max_wait=max_wait,
            priority=priority,
            aging=aging,
            key=key,
            clock=clock,
        )

    @property
    def max_concurrent(self) -> int | Aimd | Gradient:
        """Calls that may run at once, or how that is found. Can be assigned to.

        More lets in at once those that find room; less lets those finish that run. `limit` is the number now.
        """
        return self._max_concurrent

    @max_concurrent.setter
    def max_concurrent(self, value: int | Aimd | Gradient) -> None:
        _check(value)
        adaptive = value.start() if isinstance(value, Aimd | Gradient) else None

        def change() -> None:
            self._max_concurrent = value
            self._adapt(adaptive)

        self._resize(change)

    def _fit(self) -> None:
        if isinstance(self._max_concurrent, int):
            self._books.resize(self._max_concurrent)
        else:
            super()._fit()

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        most = self._max_concurrent
        limit = (
            f"{most} at once"
            if isinstance(most, int)
            else f"{most.minimum} to {most.maximum} at once by {type(most).__name__}"
        )
        return f"bulkhead {self.name!r}: {limit}, {self.queue} may wait for {self.max_wait:g} s"

    def __repr__(self) -> str:
        return f"<bulkhead {self.name!r} {self.in_flight} of {self.limit} in flight, {self.waiting} waiting>"


def bulkhead(
    max_concurrent: int | Aimd | Gradient,
    *,
    queue: int | None = None,
    max_wait: float = 30,
    priority: float | Priority = 0,
    aging: float = 10,
    key: Key | None = None,
    name: str = "bulkhead",
    clock: Clock = SYSTEM_CLOCK,
) -> Bulkhead:
    """A bulkhead: `@bulkhead(10)`.

    Args:
        max_concurrent: calls that may run at once, or `Aimd(...)` or `Gradient(...)` to have it found (see
            `guardrails.gates.concurrency`).
        queue: calls that may wait; by default ten for each that may run, at most 1000. 0: nobody waits.
        max_wait: seconds that a call may wait. One that would have to wait longer, by the pace at which calls are let
            in, or longer than its ambient deadline allows, is refused at once.
        priority: who is let in first, a lower number before a higher one: a number for all calls, or a function of the
            call's arguments. For blocks a function means 0.
        aging: seconds of waiting that count as one step of priority, so that nothing starves.
        key: a function of the call's arguments that says whose call it is: the waiting calls of the same priority are
            let in in turn between keys. None: in arrival order.
        name: how it calls itself in errors and events.
        clock: for tests.

    Raises:
        ValueError: an argument is out of range. TypeError: it has the wrong type.
    """
    at_once = _check(max_concurrent)
    queue = check_options(queue=queue, max_wait=max_wait, priority=priority, aging=aging, key=key, at_once=at_once)
    return Bulkhead(
        max_concurrent,
        name=name,
        queue=queue,
        max_wait=max_wait,
        priority=priority,
        aging=aging,
        key=key,
        clock=clock,
    )


def _check(max_concurrent: int | Aimd | Gradient) -> int:
    """The most calls that may ever run at once."""
    at_once = max_concurrent.maximum if isinstance(max_concurrent, Aimd | Gradient) else max_concurrent
    if isinstance(at_once, bool) or not isinstance(at_once, int):
        msg = (
            "max_concurrent takes a number of calls, Aimd(...) or Gradient(...), "
            f"not {type(max_concurrent).__name__}; write @bulkhead(10)"
        )
        raise TypeError(msg)
    if at_once < 1:
        msg = f"max_concurrent takes a number of at least 1, not {max_concurrent!r}"
        raise ValueError(msg)
    return at_once


__all__ = ["Aimd", "Bulkhead", "Gradient", "bulkhead"]
