"""Builds a retry from its arguments, and says what is wrong with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.strategies.backoff import Backoff, Fixed, FullJitter, seconds
from guardrails.strategies.budget import RetryBudget, budget_of
from guardrails.strategies.retry.policy import Policy
from guardrails.strategies.retry.strategy import Retry

if TYPE_CHECKING:
    import tenacity

    from guardrails.strategies.retry.policy import On, Stop

    Wait = float | Backoff | Callable[[tenacity.RetryCallState], float]

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_ATTEMPTS = 3


@overload
def retry(fn: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def retry(
    *,
    attempts: int | None = None,
    wait: Wait | None = None,
    stop: Stop | None = None,
    budget: float | RetryBudget | None = 0.1,
    on: On | tuple[On, ...] | None = None,
    on_result: Callable[[Any], bool] | None = None,
    raise_results: bool = False,
    retry_rejected: bool = False,
    max_retry_after: float = 60,
    name: str = "retry",
    clock: Clock = SYSTEM_CLOCK,
) -> Retry: ...
def retry(
    fn: Callable[P, R] | None = None,
    /,
    *,
    attempts: int | None = None,
    wait: Wait | None = None,
    stop: Stop | None = None,
    budget: float | RetryBudget | None = 0.1,
    on: On | tuple[On, ...] | None = None,
    on_result: Callable[[Any], bool] | None = None,
    raise_results: bool = False,
    retry_rejected: bool = False,
    max_retry_after: float = 60,
    name: str = "retry",
    clock: Clock = SYSTEM_CLOCK,
) -> Retry | Callable[P, R]:
    """Try again after failures and throttling: `@retry` bare, or `retry(attempts=3, ...)`.

    What the pipeline judges as ``ignored`` is never tried again: cancellations, refusals of guards further in, the
    caller's own mistakes (4xx). A stream is tried again only before its first item. A sync function waits by blocking
    its thread; on a thread that runs an event loop it does not wait, and its first error is raised.

    When no further attempt is made, the caller gets the last exception itself, with a note that says how many attempts
    were made and why no more, or what the last attempt returned.

    Args:
        attempts: how often the call is made at most; by default 3, or without limit when `stop` is given.
        wait: seconds between attempts; or `FullJitter(base, cap)` (the default: 0.1 and 20 s) or `DecorrelatedJitter`
            of `guardrails.strategies.backoff`; or a wait of tenacity, or any function of its `RetryCallState`.
        stop: a stop of tenacity, or any function of its `RetryCallState`; asked before each wait, which it can see as
            `upcoming_sleep`.
        budget: share of the calls that may be tried again (0.1: one in ten, ten at the start, and one a second for
            those who make few calls), or a `RetryBudget` to share with other retries and hedges; None for no limit.
        on: exception types, functions of the exception, or retry conditions of tenacity, that alone are tried again:
            4xx too, if they match; a refusal only where its type is named. tenacity's are asked about results, too.
        on_result: a function of what was returned: true is a failure, here. What all guards shall see as one, give as
            `classify_result` to `guard(...)` instead.
        raise_results: raise `RetriesExhausted` in place of returning a result that is a failure.
        retry_rejected: try again after a refusal too (`Rejected`, an open circuit say), not before its `retry_after`.
        max_retry_after: seconds that the dependency may ask for (Retry-After). It is never asked again earlier than
            that: if it asks for more, its error is raised at once.
        name: how it calls itself in errors and events.
        clock: for tests.

    Raises:
        ValueError: an argument is out of range. TypeError: it has the wrong type.
    """
    if fn is not None:
        if not callable(fn):
            msg = (
                f"retry takes keywords only, or decorates a function; got {type(fn).__name__}: write retry(attempts=3)"
            )
            raise TypeError(msg)
        return retry()(fn)
    if attempts is None and stop is None:
        attempts = DEFAULT_ATTEMPTS
    if attempts is not None and (isinstance(attempts, bool) or not isinstance(attempts, int)):
        msg = f"attempts takes a whole number, not {type(attempts).__name__}"
        raise TypeError(msg)
    if attempts is not None and attempts < 1:
        msg = f"attempts takes a number from 1 on (1: no retries), not {attempts}"
        raise ValueError(msg)
    seconds("max_retry_after", max_retry_after, zero=True)
    if on_result is not None:
        _sync_callable("on_result", on_result, "a function of the result", classes=True)
    if stop is not None:
        _sync_callable("stop", stop, "a stop of tenacity")
    policy = Policy(
        attempts=attempts,
        wait=_wait(wait),
        stop=stop,
        budget=budget_of(budget, clock),
        on=_on(on),
        on_result=on_result,
        retry_rejected=retry_rejected,
        max_retry_after=max_retry_after,
        clock=clock,
    )
    return Retry(policy, raise_results=raise_results, name=name, clock=clock)


def _wait(wait: Wait | None) -> Backoff | Callable[[tenacity.RetryCallState], float]:
    if wait is None:
        return FullJitter()
    if isinstance(wait, Backoff):
        return wait
    if isinstance(wait, int | float):
        return Fixed(wait)
    _sync_callable("wait", wait, "seconds, a Backoff or a wait of tenacity")
    return wait


def _on(on: On | tuple[On, ...] | None) -> tuple[On, ...] | None:
    if on is None:
        return None
    wanted = on if isinstance(on, tuple) else (on,)
    if not wanted:
        msg = "on takes at least one exception type or function of an exception; leave it out for the default"
        raise ValueError(msg)
    for item in wanted:
        if not isinstance(item, type):
            _sync_callable("on", item, "exception types, functions of an exception, or conditions of tenacity")
        elif not issubclass(item, Exception):
            msg = f"on takes types of Exception, not {item.__name__}: a cancellation is never tried again"
            raise TypeError(msg)
    return wanted


def _sync_callable(argument: str, value: Any, takes: str, *, classes: bool = False) -> None:
    if not callable(value) or (isinstance(value, type) and not classes):
        what = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        msg = f"{argument} takes {takes}, not {what}"
        raise TypeError(msg)
    if inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(type(value).__call__):
        msg = f"{argument} takes {takes} that answers at once, not an async one"
        raise TypeError(msg)
