"""What `inject` puts in the place of a call: how long it takes, and how it ends. Values in, values out."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from random import Random
from typing import Any

from guardrails.core.errors import Failed
from guardrails.core.names import name_of

#: Seconds to wait, given a call's arguments.
LatencyRule = Callable[[tuple[Any, ...], Any], float]
#: The exception to raise, given a call's arguments: another object each time.
ErrorRule = Callable[[tuple[Any, ...], Any], Exception]

Latency = float | tuple[float, float] | Callable[..., float]
Error = int | Exception | type[Exception] | Callable[..., Exception]


class InjectedError(Failed):
    """The answer of a dependency that failed on purpose (`inject(error=503)`).

    Attributes:
        guard: name of the `inject` guard.
        status_code: the HTTP status.
        headers: those of the answer: ``retry-after`` and, for parts of a second, ``retry-after-ms``; else empty.
    """

    def __init__(self, guard: str, *, status_code: int, headers: dict[str, str]) -> None:
        super().__init__(guard)
        self.guard = guard
        self.status_code = status_code
        self.headers = headers

    def __str__(self) -> str:
        return f"{self.guard}: injected HTTP {self.status_code}"


def latency_rule(latency: Latency, random: Random) -> tuple[LatencyRule, str]:
    """How long a call takes, and that in words."""
    if callable(latency):
        function = with_arguments("latency", latency)
        return lambda args, kwargs: number("latency", function(args, kwargs)), "latency by a function"
    if isinstance(latency, tuple):
        if len(latency) != 2:
            msg = f"latency takes a number of seconds, a pair (lowest, highest), or a function, not {latency!r}"
            raise ValueError(msg)
        low, high = (number("latency", end) for end in latency)
        if low > high or high == math.inf:
            msg = f"latency takes a pair (lowest, highest) of finite seconds, not {latency!r}"
            raise ValueError(msg)
        return lambda args, kwargs: random.uniform(low, high), f"latency {low:g} to {high:g} s"  # noqa: ARG005
    seconds = number("latency", latency)
    words = "a hang" if seconds == math.inf else f"latency {seconds:g} s"
    return lambda args, kwargs: seconds, words  # noqa: ARG005


def error_rule(error: Error, retry_after: float | None, name: str) -> tuple[ErrorRule, str]:
    """How a call fails, and that in words."""
    if isinstance(error, int) and not isinstance(error, bool):
        return _status_rule(error, retry_after, name)
    if retry_after is not None:
        msg = "retry_after needs error=<an HTTP status> (429, 503): it goes into the headers of that answer"
        raise ValueError(msg)
    if isinstance(error, Exception):
        again(error)  # one that cannot be copied is refused now, not in the middle of a game day
        return lambda args, kwargs: again(error), f"error {type(error).__name__}"  # noqa: ARG005
    if isinstance(error, type) and issubclass(error, Exception):
        return _class_rule(error, name), f"error {error.__name__}"
    if isinstance(error, type | BaseException) or not callable(error):
        what = error.__name__ if isinstance(error, type) else type(error).__name__
        msg = f"error takes an exception, its class, a function that makes one, or an HTTP status, not {what}"
        raise TypeError(msg)
    function = with_arguments("error", error)

    def made(args: tuple[Any, ...], kwargs: Any) -> Exception:
        exception = function(args, kwargs)
        if not isinstance(exception, Exception):
            msg = f"error's function made a {type(exception).__name__}, not an Exception"
            raise TypeError(msg)
        return exception

    return made, "error by a function"


def again(exception: Exception) -> Exception:
    """Another exception like this one. Raised again and again, one object would drag a growing traceback along."""
    try:
        other = copy.copy(exception)
    except Exception:  # its class asks for more than `args`: build it without asking
        other = type(exception).__new__(type(exception), *exception.args)
        other.args = exception.args
        other.__dict__.update(exception.__dict__)
    if type(other) is not type(exception) or other is exception:
        msg = f"error: a {type(exception).__name__} cannot be copied; give a function that makes a new one each time"
        raise TypeError(msg)
    other.__cause__ = exception.__cause__
    other.__suppress_context__ = exception.__suppress_context__
    return other


def with_arguments(argument: str, function: Callable[..., Any]) -> Callable[[tuple[Any, ...], Any], Any]:
    """`function` as one of a call's arguments, which it gets only if it takes any."""
    if inspect.iscoroutinefunction(function) and argument != "result":
        msg = f"{argument} takes a sync function, not the async {name_of(function)}"
        raise TypeError(msg)
    try:
        bare = not inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin that does not tell
        bare = False
    if bare:
        return lambda args, kwargs: function()  # noqa: ARG005
    return lambda args, kwargs: function(*args, **kwargs)


def number(argument: str, value: object) -> float:
    """`value`, a number of seconds from 0 on, infinity included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{argument} takes a number of seconds, not {type(value).__name__}"
        raise TypeError(msg)
    if not value >= 0:  # NaN is not
        msg = f"{argument} takes a number of seconds from 0 on, not {value!r}"
        raise ValueError(msg)
    return float(value)


def _status_rule(status: int, retry_after: float | None, name: str) -> tuple[ErrorRule, str]:
    if not 400 <= status <= 599:
        msg = f"error takes an HTTP status from 400 to 599, not {status}"
        raise ValueError(msg)
    headers: dict[str, str] = {}
    if retry_after is not None:
        seconds = number("retry_after", retry_after)
        if seconds == math.inf:
            msg = "retry_after takes a finite number of seconds, not inf"
            raise ValueError(msg)
        headers["retry-after"] = str(math.ceil(seconds))  # RFC 9110 knows whole seconds only
        if seconds != int(seconds):
            headers["retry-after-ms"] = f"{seconds * 1000:.15g}"

    def made(args: tuple[Any, ...], kwargs: Any) -> Exception:  # noqa: ARG001
        return InjectedError(name, status_code=status, headers=dict(headers))

    return made, f"error HTTP {status}" + ("" if retry_after is None else f", retry after {retry_after:g} s")


def _class_rule(kind: type[Exception], name: str) -> ErrorRule:
    message = f"injected by {name}"
    try:
        kind(message)
    except TypeError as exc:
        msg = f"error: {kind.__name__} cannot be built from a message; give an instance, or a function that makes one"
        raise TypeError(msg) from exc
    return lambda args, kwargs: kind(message)  # noqa: ARG005
