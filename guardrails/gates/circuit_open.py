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
    """The circuit is open (``reason="open"``), or half-open with every probe taken (``reason="half_open"``).

    `retry_after` says in how many seconds the next probe is let through; for ``half_open`` it is the longest that the
    probes may still take.
    """

    reason = "open"
