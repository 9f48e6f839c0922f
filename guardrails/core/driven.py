"""Puts one strategy around a function: a shape for each kind of function, and for each way that strategies work."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from guardrails.core.drive import ResultVerdict, Verdict, judge, judge_result
from guardrails.core.guard import DrivenCall, Strategy
from guardrails.core.outcome import Outcome


def check(strategy: Strategy, kind: str, name: str) -> None:
    """Raise a TypeError if `strategy` cannot drive functions of this kind; `name` is the function's."""
    if kind == "generator" or (kind == "stream" and not strategy.streams):
        msg = f"{strategy.name} cannot drive {name}, a {kind}"
        raise TypeError(msg)
    cls = type(strategy)
    blocking = (
        cls.recover_blocking is not Strategy.recover_blocking
        if strategy.recovers
        else (cls.run_blocking is not Strategy.run_blocking)
    )
    if kind == "function" and not blocking:
        msg = f"{strategy.name} cannot drive {name}, a sync function: it drives async ones only"
        raise TypeError(msg)


def driven(
    fn: Callable[..., Any], strategy: Strategy, kind: str, verdict: Verdict, result_verdict: ResultVerdict
) -> Callable[..., Any]:
    """`fn` behind `strategy`."""

    def judged(exc: BaseException) -> Any:
        return judge(verdict, exc)

    def judged_result(result: Any) -> Any:
        return judge_result(result_verdict, result)

    def call_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> DrivenCall:
        return DrivenCall(args, kwargs, judged, judged_result)

    if kind == "stream":

        def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            return strategy.run_stream(call_of(args, kwargs), lambda: fn(*args, **kwargs))

        return stream
    if kind == "coroutine":
        return _recovered(fn, strategy, call_of) if strategy.recovers else _run(fn, strategy, call_of)

    def blocking(*args: Any, **kwargs: Any) -> Any:
        return strategy.run_blocking(call_of(args, kwargs), lambda: fn(*args, **kwargs))

    return _recovered_blocking(fn, strategy, call_of) if strategy.recovers else blocking


CallOf = Callable[[tuple[Any, ...], dict[str, Any]], DrivenCall]


def _run(fn: Callable[..., Awaitable[Any]], strategy: Strategy, call_of: CallOf) -> Callable[..., Awaitable[Any]]:
    async def run(*args: Any, **kwargs: Any) -> Any:
        return await strategy.run(call_of(args, kwargs), lambda: fn(*args, **kwargs))

    return run


def _recovered(fn: Callable[..., Awaitable[Any]], strategy: Strategy, call_of: CallOf) -> Callable[..., Awaitable[Any]]:
    judged, judged_result = _judges(call_of)

    async def recovered(*args: Any, **kwargs: Any) -> Any:
        result = None
        try:
            result = await fn(*args, **kwargs)
        except Exception as exc:
            outcome = _with(judged(exc), exc)
        else:
            outcome = judged_result(result)
            if outcome.kind == "success":
                return result
        return await strategy.recover(call_of(args, kwargs), outcome, result, lambda: fn(*args, **kwargs))

    return recovered


def _recovered_blocking(fn: Callable[..., Any], strategy: Strategy, call_of: CallOf) -> Callable[..., Any]:
    judged, judged_result = _judges(call_of)

    def recovered(*args: Any, **kwargs: Any) -> Any:
        result = None
        try:
            result = fn(*args, **kwargs)
        except Exception as exc:
            outcome = _with(judged(exc), exc)
        else:
            outcome = judged_result(result)
            if outcome.kind == "success":
                return result
        return strategy.recover_blocking(call_of(args, kwargs), outcome, result, lambda: fn(*args, **kwargs))

    return recovered


def _with(outcome: Outcome, exc: BaseException) -> Outcome:
    # A classify of the user's may leave the exception out; without it the call would seem to have returned.
    return outcome if outcome.exception is not None else replace(outcome, exception=exc)


def _judges(call_of: CallOf) -> tuple[Callable[[BaseException], Any], Callable[[Any], Any]]:
    call = call_of((), {})
    return call.judge, call.judge_result
