"""Retry-After: reads, checks and caps the time that a dependency asks to be left alone.

A header is written by another machine: it may be text, NaN, infinite, negative, or a date in 9999. What is no number of
seconds is no answer; what is longer than `MAX_RETRY_AFTER` is cut to that, so that one bad header stops a client for a
day at most. Guards have lower limits of their own (`retry(max_retry_after=)`, `FromRetryAfter(cap=)`).
"""

from __future__ import annotations

import math
import time
from typing import Any

#: Seconds that a dependency can ask for at most.
MAX_RETRY_AFTER = 86_400.0


def seconds_asked(value: object) -> float | None:
    """`value` as a number of seconds from 0 to `MAX_RETRY_AFTER`; None if it is no finite number. Never raises."""
    seconds = _number(value)
    return None if seconds is None else min(max(0.0, seconds), MAX_RETRY_AFTER)


def retry_after(headers: Any, *, wall_now: float | None = None) -> float | None:
    """Seconds asked for by ``retry-after-ms`` or ``Retry-After`` (RFC 9110: seconds or an HTTP date), else None.

    `headers` is any mapping with `get`; a date in the past means 0. Text that is neither is no answer, not an error.
    `wall_now` is the wall-clock time in seconds since 1970 against which a date is read; by default the system's.
    """
    # The third is what AWS sends, in milliseconds too.
    names = ("retry-after-ms", "Retry-After-Ms", "x-amz-retry-after")
    milliseconds = _number(_header(headers, *names))
    if milliseconds is not None:
        return seconds_asked(milliseconds / 1000)
    value = _header(headers, "retry-after", "Retry-After")
    seconds = seconds_asked(value)
    return _seconds_until(value, time.time() if wall_now is None else wall_now) if seconds is None else seconds


def _header(headers: Any, *spellings: str) -> Any:
    # Both spellings, since a plain dict knows no other case than its own.
    try:
        return next((value for name in spellings if (value := headers.get(name)) is not None), None)
    except Exception:  # no mapping, or none that takes a name
        return None


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except Exception:  # no number; or an object whose conversion fails, in whatever way
        return None
    return number if math.isfinite(number) else None


def _seconds_until(value: Any, wall_now: float) -> float | None:
    if not isinstance(value, str):
        return None
    from datetime import UTC  # noqa: PLC0415 - few answers carry a date, and these two are a tenth of our import
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        when = parsedate_to_datetime(value)
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)  # an HTTP date is in GMT, written or not
        return seconds_asked(when.timestamp() - wall_now)
    except Exception:  # email's parser answers junk with errors of half a dozen types
        return None
