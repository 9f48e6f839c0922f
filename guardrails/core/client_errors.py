"""Reads other packages' exceptions and responses by shape: which HTTP status one amounts to, and how long to wait.

No client package is imported. What is looked at, in this order:

* `status_code`, `status` or `http_status`: openai, anthropic, httpx, aiohttp, urllib, azure, kubernetes, stripe;
* the same of `response`: requests, httpx, huggingface_hub; where that is a mapping, botocore's `ResponseMetadata` and
  error code;
* `code`, a number beside `headers` or a `response`: google-api-core, google-genai, tornado;
* a gRPC status code, as ``code()``, `code`, `status` or `grpc_status_code`;
* the type of an error that came in the body, for a stream that failed after its status 200: anthropic, openai;
* redis' class, since Redis has no statuses.

gRPC and Redis are put into HTTP's terms, as Google's API guide does for gRPC.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

from guardrails.core.retry_after import retry_after, seconds_asked

_LOWEST, _HIGHEST = 100, 599
_CLIENT_ERROR = 400
_TIMED_OUT = 408
_THROTTLED = 429


class Reading(NamedTuple):
    """What an exception says: an HTTP status, and the seconds it asks for. None where it says nothing."""

    status: int | None
    retry_after: float | None


def read_error(exc: BaseException) -> Reading:
    """The status and the wait that `exc` stands for. Never raises."""
    response = attribute(exc, "response")
    found = attribute(response, "headers")
    headers = attribute(exc, "headers") if found is None else found
    status = _status(exc)
    if status is None:
        status = _status(response)
    if status is None and isinstance(response, Mapping):
        status, headers = _botocore(response)
    if status is None:
        status = _code(exc, response, headers)
    if status is None:
        status = _grpc_status(exc)
    if status is None or status < _CLIENT_ERROR:
        status = _status_of_body(attribute(exc, "body")) or status
    if status is None:
        status = _redis(exc)
    if status is None:
        return Reading(None, None)
    wait = retry_after(headers)
    return Reading(status, _grpc_wait(exc) if wait is None else wait)


def read_response(result: object) -> Reading:
    """The status and the wait of a returned HTTP response. Never raises.

    `status_code` (httpx, requests), or `status` beside `headers` (aiohttp, urllib): a `status` alone is a word that any
    object may have.
    """
    status = _whole(attribute(result, "status_code"))
    if status is None:
        status = _whole(attribute(result, "status"))
        if status is None or attribute(attribute(result, "headers"), "get") is None:
            return Reading(None, None)
    return Reading(status, retry_after(attribute(result, "headers")) if status >= _CLIENT_ERROR else None)


def attribute(thing: object, name: str) -> Any:
    """`thing.name`, or None if it has none, or if a property of it raises (httpx has some that do)."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def _whole(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and _LOWEST <= value <= _HIGHEST:
        return int(value)
    return None


def _status(thing: object) -> int | None:
    for name in ("status_code", "status", "http_status"):
        status = _whole(attribute(thing, name))
        if status is not None:
            return status
    return None


# botocore

#: AWS answers these with status 400 as often as with 429 or 503. They are those of botocore's own retries.
_AWS_THROTTLED = frozenset({
    "BandwidthLimitExceeded", "EC2ThrottledException", "LimitExceededException", "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException", "RequestLimitExceeded", "RequestThrottled", "RequestThrottledException",
    "SlowDown", "ThrottledException", "Throttling", "ThrottlingException", "TooManyRequestsException",
    "TransactionInProgressException",
})  # fmt: skip
_AWS_TIMED_OUT = frozenset({"RequestTimeout", "RequestTimeoutException"})


def _botocore(response: Mapping[Any, Any]) -> tuple[int | None, Any]:
    metadata, error = response.get("ResponseMetadata"), response.get("Error")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    code = error.get("Code") if isinstance(error, Mapping) else None
    headers = metadata.get("HTTPHeaders")
    if isinstance(code, str) and code in _AWS_THROTTLED:
        return _THROTTLED, headers
    if isinstance(code, str) and code in _AWS_TIMED_OUT:
        return _TIMED_OUT, headers
    return _whole(metadata.get("HTTPStatusCode")), headers


# Google and gRPC

_GRPC = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": _THROTTLED,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}


def _code(exc: BaseException, response: object, headers: object) -> int | None:
    # Many packages number their errors in `code`. An HTTP status comes with something of HTTP or of gRPC beside it.
    code = _whole(attribute(exc, "code"))
    if code is None or code < _CLIENT_ERROR:
        return None
    return code if response is not None or headers is not None or _has(exc, "response") else None


def _has(thing: object, name: str) -> bool:
    try:
        return hasattr(thing, name)
    except Exception:  # a property of it raises: then it has one
        return True


def _grpc_status(exc: BaseException) -> int | None:
    for name in ("code", "grpc_status_code", "status"):
        code = attribute(exc, name)
        if name == "code" and callable(code) and not isinstance(code, type):
            try:
                code = code()
            except Exception:  # it takes arguments: it is something else
                code = None
        if isinstance(code, enum.Enum) and code.name in _GRPC:
            return _GRPC[code.name]
    return None


def _grpc_wait(exc: BaseException) -> float | None:
    """Seconds of a `google.rpc.RetryInfo` among the details, else those of gRPC's trailing metadata."""
    details = attribute(exc, "details")
    if isinstance(details, Mapping):  # google-genai: the body of the answer
        error = details.get("error")
        details = error.get("details") if isinstance(error, Mapping) else None
    for detail in details if isinstance(details, list | tuple) else ():
        delay = detail.get("retryDelay") if isinstance(detail, Mapping) else attribute(detail, "retry_delay")
        if isinstance(delay, str):
            wait = seconds_asked(delay.removesuffix("s"))
        else:  # a protobuf Duration
            seconds, nanos = attribute(delay, "seconds"), attribute(delay, "nanos")
            wait = seconds_asked(seconds + nanos / 1e9 if type(seconds) is int and type(nanos) is int else None)
        if wait is not None:
            return wait
    metadata = attribute(exc, "trailing_metadata")
    try:
        pairs = {str(key).lower(): value for key, value in metadata()} if callable(metadata) else {}
    except Exception:  # not gRPC's
        return None
    return retry_after({**pairs, "retry-after-ms": pairs.get("grpc-retry-pushback-ms", pairs.get("retry-after-ms"))})


# Errors in the body

_BODY_TYPES = {
    "api_error": 500,
    "authentication_error": 401,
    "insufficient_quota": _THROTTLED,
    "invalid_request_error": 400,
    "not_found_error": 404,
    "overloaded_error": 529,
    "permission_error": 403,
    "rate_limit_error": _THROTTLED,
    "rate_limit_exceeded": _THROTTLED,
    "request_too_large": 413,
    "server_error": 500,
    "timeout_error": 504,
}


def _status_of_body(body: object) -> int | None:
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        body = body["error"]
    if not isinstance(body, Mapping):
        return None
    # The code is the more exact of the two, where it is a word.
    words = (word for word in (body.get("code"), body.get("type")) if isinstance(word, str))
    return next((_BODY_TYPES[word] for word in words if word in _BODY_TYPES), None)


# Redis

#: Errors of a command that was wrong, not of the server that says so.
_REDIS_MISTAKES = frozenset({
    "AuthenticationWrongNumberOfArgsError", "ClusterCrossSlotError", "CrossSlotTransactionError", "DataError",
    "ExecAbortError", "NoPermissionError", "NoScriptError", "WatchError",
})  # fmt: skip
#: First words of a plain ResponseError that speak of the server's state.
_REDIS_STATES = frozenset(
    {"BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "UNKILLABLE"}
)


def _redis(exc: BaseException) -> int | None:
    cls = type(exc)
    if cls.__module__ != "redis.exceptions":
        return None
    if cls.__name__ == "ResponseError":
        words = str(exc).split(maxsplit=1)
        return None if words and words[0] in _REDIS_STATES else _CLIENT_ERROR
    return _CLIENT_ERROR if cls.__name__ in _REDIS_MISTAKES else None
