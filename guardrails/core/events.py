"""One stream of events: every decision of a guard or a runner, as a frozen dataclass.

Nothing is paid when nobody listens: a guard looks at `sinks` (an empty tuple is false) before it builds an event.
Sinks (logs, Sentry, metrics) subscribe; guards never import them. Events carry no argument, result, prompt or key.

Threads: `subscribe` and the unsubscribing function swap the whole tuple under a lock, so `emit` needs none; an event
    may
be delivered on any thread that uses a guard. A sink must not block; one that raises is logged, and the call goes on.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

_log = logging.getLogger("guardrails.events")


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events. `source` is the name of the guard or runner that it comes from."""

    source: str


@dataclass(frozen=True, slots=True)
class CallAdmitted(Event):
    """A gate let a call in, after `waited` seconds in its queue (0.0: at once)."""

    waited: float


@dataclass(frozen=True, slots=True)
class CallRejected(Event):
    """A gate refused a call; `reason` and `retry_after` are those of the `Rejected` that the caller got."""

    reason: str
    retry_after: float | None


@dataclass(frozen=True, slots=True)
class CallSettled(Event):
    """A call that a gate had let in ended. `outcome` is ``success``, ``failure``, ``throttled`` or ``ignored``."""

    outcome: str


@dataclass(frozen=True, slots=True)
class CallTimedOut(Event):
    """A `timeout` guard cut a call off; `limit` is ``total``, ``first`` or ``idle``."""

    limit: str
    seconds: float


@dataclass(frozen=True, slots=True)
class CallStarted(Event):
    """A guarded call begins: one event for the whole pipeline. `call` is a number of this process, the same in its
    `CallFinished`.

    It comes in the context of the caller, so a sink may set a context variable and reset it at the end; not for a
    `stream`, whose two events come from steps of its reader, between which the context is the reader's own.
    """

    call: int
    stream: bool = False


@dataclass(frozen=True, slots=True)
class CallFinished(Event):
    """A guarded call is over, `seconds` after it began. `outcome` is ``success``, ``failure``, ``throttled``,
    ``rejected`` (a guard refused it), or ``ignored`` (a cancellation, for one). `first` is the seconds until the first
    item of a stream, None without one.
    """

    call: int
    seconds: float
    outcome: str
    first: float | None = None


@dataclass(frozen=True, slots=True)
class BreakerChanged(Event):
    """A breaker moved from `old` to `new` (``closed``, ``open``, ``half-open``, ``forced-open``, ``disabled``,
    ``metrics-only``); `retry_after` when it opened.
    """

    old: str
    new: str
    retry_after: float | None


@dataclass(frozen=True, slots=True)
class MemoryPressure(Event):
    """An `admit` guard's memory level changed: ``normal``, ``high`` (calls wait) or ``critical`` (calls are shed)."""

    level: str
    used: int
    limit: int


Sink = Callable[[Event], object]

#: The subscribed sinks. Read it to ask whether anybody listens; change it only through `subscribe`.
sinks: tuple[Sink, ...] = ()
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - a thread that is not in the child may have held it
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def subscribe(sink: Sink) -> Callable[[], None]:
    """Have `sink` called with every event from now on. Returns the function that ends the subscription."""
    global sinks  # noqa: PLW0603 - one stream for the process is the point
    if not callable(sink):
        msg = f"sink takes a function of one event, not {type(sink).__name__}"
        raise TypeError(msg)
    with _lock:
        sinks = (*sinks, sink)

    subscribed = True

    def unsubscribe() -> None:
        global sinks  # noqa: PLW0603
        nonlocal subscribed
        with _lock:
            if subscribed:  # called twice, it must not end another subscription of the same sink
                subscribed = False
                remaining = list(sinks)
                remaining.remove(sink)
                sinks = tuple(remaining)

    return unsubscribe


def emit(event: Event) -> None:
    """Hand `event` to every sink."""
    for sink in sinks:
        try:
            sink(event)
        except Exception:  # a broken sink must not become a broken call: it is logged, with its traceback
            _log.exception("event sink %r failed on %s", sink, type(event).__name__)
