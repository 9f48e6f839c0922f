"""Puts one strategy around a function: a shape for each kind of function, and for each way that strategies work."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

from guardrails.core import events
from guardrails.core.drive import CallMaker
from guardrails.core.guard import Strategy


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


def driven(  # noqa: PLR0917
    fn: Callable[..., Any],
    strategy: Strategy,
    kind: str,
    call_of: CallMaker,
    observed: Callable[..., Any] | None = None,
    binder: Callable[..., object] | None = None,
) -> Callable[..., Any]:
    """`fn` behind `strategy`. One that recovers from calls is `drive.gated`'s, with the gates inside it, if any.

    With `binder`, wrong arguments are refused first. With `observed`, that is called in place of all this while there
    are listeners of events.
    """
    # For those alone that ever are: to ask costs as much as a gate.
    can_idle = type(strategy).idle is not Strategy.idle
    if kind == "stream":

        def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            if binder is not None:
                binder(*args, **kwargs)
            if events.sinks and observed is not None:
                return observed(*args, **kwargs)  # type: ignore[no-any-return]
            if can_idle and strategy.idle:
                return fn(*args, **kwargs)  # type: ignore[no-any-return]
            return strategy.run_stream(call_of(args, kwargs), lambda: fn(*args, **kwargs))

        return stream
    if kind == "coroutine":

        async def run(*args: Any, **kwargs: Any) -> Any:
            if binder is not None:
                binder(*args, **kwargs)
            if events.sinks and observed is not None:
                return await observed(*args, **kwargs)
            if can_idle and strategy.idle:
                return await fn(*args, **kwargs)
            return await strategy.run(call_of(args, kwargs), lambda: fn(*args, **kwargs))

        return run

    def blocking(*args: Any, **kwargs: Any) -> Any:
        if binder is not None:
            binder(*args, **kwargs)
        if events.sinks and observed is not None:
            return observed(*args, **kwargs)
        if can_idle and strategy.idle:
            return fn(*args, **kwargs)
        return strategy.run_blocking(call_of(args, kwargs), lambda: fn(*args, **kwargs))

    return blocking
