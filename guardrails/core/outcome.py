"""What a call's end means: success, failure, throttled or ignored. One function decides, for every guard alike.

* `ignored` is cancellation, a refusal of ours (`Rejected`), an early close, and a client's own mistake (a 4xx, a
  `CallerError`): it says nothing about the health of the dependency.
* `throttled` is 429 and its kin (503 with Retry-After, Anthropic's 529): the dependency is alive and asks for less.

An exception may carry its verdict in an attribute `__outcome__`, one of the four words; `CallerError` does. Others are
read by shape, not by class, so no provider's package is imported (see `guardrails.core.client_errors`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from guardrails.core.client_errors import attribute, read_error, read_response
from guardrails.core.errors import Rejected
from guardrails.core.retry_after import retry_after, seconds_asked

Kind = Literal["success", "failure", "throttled", "ignored"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on one attempt.

    Attributes:
        kind: one of the four.
        exception: what was raised, if anything was.
        retry_after: seconds that the dependency, or the guard that refused, asked to be left alone, when it said so.
            Whatever it is made with, it is None or a number from 0 to `MAX_RETRY_AFTER`.
    """

    kind: Kind
    exception: BaseException | None = None
    retry_after: float | None = None

    def __post_init__(self) -> None:
        if self.retry_after is not None:
            object.__setattr__(self, "retry_after", seconds_asked(self.retry_after))


SUCCESS = Outcome("success")
IGNORED = Outcome("ignored")

_TOO_MANY_REQUESTS = 429
_UNAVAILABLE = 503
_OVERLOADED = 529
_REQUEST_TIMEOUT = 408
_FIRST_SERVER_ERROR = 500
_FIRST_CLIENT_ERROR = 400

_RANK: dict[Kind, int] = {"success": 0, "ignored": 1, "throttled": 2, "failure": 3}


def is_cancellation(exc: BaseException) -> bool:
    """Whether `exc` is the event loop's cancellation (asyncio's or trio's) and not an error of the call."""
    # Looked up, not imported: a loop that is not loaded has cancelled nothing.
    asyncio, trio = sys.modules.get("asyncio"), sys.modules.get("trio")
    if asyncio is not None and isinstance(exc, asyncio.CancelledError):
        return True
    return trio is not None and isinstance(exc, trio.Cancelled)


def classify(exc: BaseException) -> Outcome:
    """The outcome of a call that raised `exc`. Never raises.

    A group of errors is as bad as its worst member, and asks for the longest wait of them all.
    """
    if not isinstance(exc, Exception):
        # CancelledError, trio.Cancelled, GeneratorExit, KeyboardInterrupt, SystemExit.
        return Outcome("ignored", exc)
    if isinstance(exc, Rejected):  # our own refusals further in
        return Outcome("ignored", exc, attribute(exc, "retry_after"))
    if isinstance(exc, ExceptionGroup):
        members = [classify(member) for member in exc.exceptions]
        kind = max((member.kind for member in members), key=_RANK.__getitem__)
        waits = [member.retry_after for member in members if member.retry_after is not None]
        return Outcome(kind, exc, max(waits, default=None))
    if type(exc).__module__ == "builtins" and not exc.__dict__:
        return Outcome("failure", exc)  # the usual case, and it has nothing that could be read
    said = attribute(exc, "__outcome__")
    if isinstance(said, str) and said in _RANK:
        return Outcome(said, exc, attribute(exc, "retry_after"))
    reading = read_error(exc)
    if reading.status is None:
        return Outcome("failure", exc)
    return _of_status(reading.status, exc, reading.retry_after)


def classify_result(result: object) -> Outcome:
    """The outcome of a call that returned: a success, unless what it returned is an HTTP response that says
    otherwise.
    """
    try:  # on the path of every call that returns an object, hence no call more than has to be
        if getattr(result, "status_code", None) is None and getattr(result, "status", None) is None:
            return SUCCESS
    except Exception:  # a property of it raises: whatever it is, it is no HTTP status
        return SUCCESS
    reading = read_response(result)
    if reading.status is None or reading.status < _FIRST_CLIENT_ERROR:
        return SUCCESS
    return _of_status(reading.status, None, reading.retry_after)


def refusal_of(exc: BaseException | None) -> Rejected | None:
    """`exc` if it is a refusal; the first one if it is a group of nothing but refusals; else None."""
    if isinstance(exc, Rejected):
        return exc
    if not isinstance(exc, ExceptionGroup):
        return None
    members = [refusal_of(member) for member in exc.exceptions]
    return None if None in members else members[0]


def _of_status(status: int, exc: BaseException | None, wait: float | None) -> Outcome:
    if status in (_TOO_MANY_REQUESTS, _OVERLOADED) or (status == _UNAVAILABLE and wait is not None):
        return Outcome("throttled", exc, wait)
    if status >= _FIRST_SERVER_ERROR or status == _REQUEST_TIMEOUT:
        return Outcome("failure", exc, wait)
    return Outcome("ignored" if status >= _FIRST_CLIENT_ERROR else "failure", exc, wait)


__all__ = [
    "IGNORED",
    "SUCCESS",
    "Kind",
    "Outcome",
    "classify",
    "classify_result",
    "is_cancellation",
    "refusal_of",
    "retry_after",
]
