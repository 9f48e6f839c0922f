"""What a call's end means: success, failure, throttled or ignored. One function decides, for every guard alike.

* `ignored` is cancellation, a refusal of ours (`Rejected`), an early close, and a client's own mistake (4xx): it says
  nothing about the health of the dependency.
* `throttled` is 429 and its kin (503 with Retry-After, Anthropic's 529): the dependency is alive and asks for less.

Exceptions are read by shape, not by class, so no provider's package is imported: a `status_code` (openai, anthropic,
httpx, requests through `.response`) or `status` (aiohttp), and a response's `headers`.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

from guardrails.core.errors import Rejected

Kind = Literal["success", "failure", "throttled", "ignored"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on one attempt.

    Attributes:
        kind: one of the four.
        exception: what was raised, if anything was.
        retry_after: seconds that the dependency asked to be left alone, when it said so.
    """

    kind: Kind
    exception: BaseException | None = None
    retry_after: float | None = None


SUCCESS = Outcome("success")
IGNORED = Outcome("ignored")

_TOO_MANY_REQUESTS = 429
_UNAVAILABLE = 503
_OVERLOADED = 529
_REQUEST_TIMEOUT = 408
_FIRST_SERVER_ERROR = 500
_FIRST_CLIENT_ERROR = 400


def is_cancellation(exc: BaseException) -> bool:
    """Whether `exc` is the event loop's cancellation (asyncio's or trio's) and not an error of the call."""
    if isinstance(exc, asyncio.CancelledError):
        return True
    trio = sys.modules.get("trio")  # not imported means that no trio task can be running
    return trio is not None and isinstance(exc, trio.Cancelled)


def classify(exc: BaseException) -> Outcome:
    """The outcome of a call that raised `exc`. Never raises. A group of errors is as bad as its worst member."""
    if not isinstance(exc, Exception) or isinstance(exc, Rejected):
        # CancelledError, trio.Cancelled, GeneratorExit, KeyboardInterrupt, SystemExit; and our own refusals further in.
        return Outcome("ignored", exc)
    if isinstance(exc, ExceptionGroup):
        worst = max((classify(member) for member in exc.exceptions), key=lambda outcome: _RANK[outcome.kind])
        return Outcome(worst.kind, exc, worst.retry_after)
    response = _attribute(exc, "response")
    status = _status(exc)
    if status is None and response is not None:
        status = _status(response)
    if status is None:
        return Outcome("failure", exc)
    return _of_status(status, exc, response if response is not None else exc)


def classify_result(result: object) -> Outcome:
    """The outcome of a call that returned: a success, unless what it returned is an HTTP response that says
    otherwise.
    """
    try:
        status = getattr(result, "status_code", None)
    except Exception:  # a property of somebody's class: whatever it is, it is no HTTP status
        return SUCCESS
    if not isinstance(status, int):
        return SUCCESS
    return _of_status(status, None, result) if status >= _FIRST_CLIENT_ERROR else SUCCESS


_RANK = {"success": 0, "ignored": 1, "throttled": 2, "failure": 3}


def _attribute(thing: object, name: str) -> Any:
    try:
        return getattr(thing, name, None)
    except Exception:  # a property that raises (httpx has some) must not take the place of the call's own error
        return None


def _status(thing: object) -> int | None:
    for attribute in ("status_code", "status"):
        status = _attribute(thing, attribute)
        if isinstance(status, int) and not isinstance(status, bool):
            return status
    return None


def _of_status(status: int, exc: BaseException | None, response: object) -> Outcome:
    wait = retry_after(_attribute(response, "headers"))
    if status in (_TOO_MANY_REQUESTS, _OVERLOADED) or (status == _UNAVAILABLE and wait is not None):
        return Outcome("throttled", exc, wait)
    if status >= _FIRST_SERVER_ERROR or status == _REQUEST_TIMEOUT:
        return Outcome("failure", exc, wait)
    return Outcome("ignored" if status >= _FIRST_CLIENT_ERROR else "failure", exc, wait)


def retry_after(headers: Any, *, wall_now: float | None = None) -> float | None:
    """Seconds asked for by ``retry-after-ms`` or ``Retry-After`` (RFC 9110: seconds or an HTTP date), else None.

    `headers` is any mapping with `get`; a date in the past means 0. Text that is neither is no answer, not an error.
    `wall_now` is the wall-clock time in seconds since 1970 against which a date is read; by default the system's.
    """
    milliseconds = _seconds(_header(headers, "retry-after-ms", "Retry-After-Ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = _header(headers, "retry-after", "Retry-After")
    seconds = _seconds(value)
    return _seconds_until(value, time.time() if wall_now is None else wall_now) if seconds is None else seconds


def _header(headers: Any, *spellings: str) -> Any:
    # Both spellings, since a plain dict knows no other case than its own.
    try:
        return next((value for name in spellings if (value := headers.get(name)) is not None), None)
    except Exception:  # no mapping, or none that takes a name
        return None


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None  # NaN and infinity are no answer


def _seconds_until(value: Any, wall_now: float) -> float | None:
    if not isinstance(value, str):
        return None
    from datetime import UTC  # noqa: PLC0415 - few answers carry a date, and these two are a tenth of our import
    from email.utils import parsedate_to_datetime  # noqa: PLC0415

    try:
        when = parsedate_to_datetime(value)
    except Exception:  # email's parser answers junk with errors of half a dozen types
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)  # an HTTP date is in GMT, written or not
    return max(0.0, when.timestamp() - wall_now)
