"""`CircuitOpen`: ours, and pybreaker's `CircuitBreakerError` too, so that code written for pybreaker goes on catching
it.

A module of its own because pybreaker imports redis and tornado where they are installed: importing `guardrails` must
    not.
It is imported when the first breaker is built, which is while the application starts, not in the middle of an outage.
"""

from __future__ import annotations

import pybreaker

from guardrails.core.errors import Rejected


class CircuitOpen(Rejected, pybreaker.CircuitBreakerError):
    """The circuit is open (``reason="open"``), open by hand (``"forced_open"``), or half-open with every probe taken
    (``"half_open"``); or, where it was asked for, this call's own failure opened it (``"tripped"``: it did run).

    `retry_after` says in how many seconds the next probe is let through; for ``half_open`` it is the longest that the
    probes may still take.
    """

    reason = "open"

    def __init__(self, guard: str, *, reason: str = "open", retry_after: float | None = None, detail: str = "") -> None:
        # As the base does, in one step: an outage makes thousands a second.
        self.args = (guard, reason, retry_after)
        self.guard = guard
        self.reason = reason
        self.retry_after = retry_after
        self.detail = detail
