"""What kind of function something is, as far as guarding it goes, and what cannot be guarded at all."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

from guardrails.core.names import name_of


def kind_of(fn: Any) -> str:
    """``coroutine``, ``stream`` (async generator), ``generator`` or ``function``; else a TypeError."""
    if isinstance(fn, staticmethod | classmethod | property):
        msg = f"a guard stands under @{type(fn).__name__}, next to the function: swap the two decorators"
        raise TypeError(msg)
    if isinstance(fn, type) or not callable(fn):
        what = f"the class {fn.__name__}" if isinstance(fn, type) else f"a {type(fn).__name__}"
        msg = f"a guard decorates a function, not {what}: decorate the method that makes the call"
        raise TypeError(msg)
    bare = _called(fn)
    if getattr(bare, "__globals__", None) is vars(contextlib):
        msg = f"{name_of(fn)} makes a context manager, which does its work later: guard the block, 'with layer:'"
        raise TypeError(msg)
    # A plain wrapper around an async function (the openai client has them) hands its coroutine through: look behind it.
    bare = inspect.unwrap(bare)
    if inspect.iscoroutinefunction(bare) or inspect.iscoroutinefunction(fn):  # AsyncMock says so itself
        return "coroutine"
    if inspect.isasyncgenfunction(bare):
        return "stream"
    return "generator" if inspect.isgeneratorfunction(bare) else "function"


def _called(fn: Any) -> Any:
    # What a call of it runs: the function in a partial; for an object, its class's __call__.
    while isinstance(fn, functools.partial):
        fn = fn.func
    return fn if inspect.isroutine(fn) else type(fn).__call__


def is_async(fn: Any) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(_called(fn))


def checked(fn: Callable[..., Any]) -> Callable[..., Any]:
    # It only looks async, from behind a wrapper that may as well run the coroutine itself (with asyncio.run, say).
    def call(*args: Any, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        if not inspect.isawaitable(result):
            msg = (
                f"{name_of(fn)} wraps an async function but returned a {type(result).__name__}, nothing to await: "
                "guard the async function itself, inside the wrapper"
            )
            raise TypeError(msg)
        return result

    return call
