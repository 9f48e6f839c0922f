"""Builds a cache from its arguments, and says what is wrong with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.sizes import parse_size
from guardrails.strategies.backoff import seconds
from guardrails.strategies.cache.remembered import Matcher, matcher
from guardrails.strategies.cache.store import Backing, CacheStore
from guardrails.strategies.cache.strategy import Cache

T = TypeVar("T")


def cache(
    bare: None = None,
    /,
    *,
    ttl: float | Callable[[Any], float | None],
    max_bytes: str | float = "64MiB",
    key: Callable[..., Any] | None = None,
    per_instance: bool = True,
    stale_if_error: float | None = None,
    stale_while_revalidate: float | None = None,
    errors: Matcher | None = None,
    error_ttl: float | None = None,
    store: CacheStore | None = None,
    store_timeout: float = 0.5,
    copy: Callable[[T], T] | None = None,
    name: str = "cache",
    clock: Clock = SYSTEM_CLOCK,
) -> Cache:
    """Keep what calls return, and give it to calls that are the same. Only successes are kept, and `errors`.

    Calls that are the same and come at the same time are made once: the others wait, and get the same result or the
    same error. A caller that is cancelled cancels no other. A function that calls itself with the same arguments is
    run, as one that would wait for itself through others.

    Functions may share a cache; a call is told apart by its function and its arguments, as they are written: `f(1)` and
    `f(x=1)` are two. The entries hold the functions. Every caller gets the same object: treat it as immutable, or use
    `copy`.

    Args:
        ttl: seconds that a result is fresh, or a function of the result that returns them; 0 or None from it: this
            result is not kept.
        max_bytes: of all entries with their keys, as far as can be told; what was used longest ago goes first.
        key: a function of the call's arguments that returns what tells calls apart: text, bytes, numbers, or a tuple
            of such. None from it: this call is not cached. Needed for arguments that are not plain data. It is given
            all of them, `self` too.
        per_instance: with `key`, a method's answers belong to the instance (or class) that it is called on, whatever
            `key` returns. False: `key` alone decides, and instances for which it returns the same share their answers.
        stale_if_error: seconds after `ttl` in which an entry is still given when the call fails, is throttled, or is
            refused by a guard further in. None: never.
        stale_while_revalidate: seconds after `ttl` in which an entry is still given while a new one is fetched: for
            async functions by a task of its own, one a key, which goes on when the caller is cancelled and ends with
            its event loop; for sync ones by the first call that finds it. What goes wrong there is an event, and the
            entry is given on. None: never; calls wait for the new one.
        errors: which exceptions are remembered and raised again for calls that are the same: a class, a tuple of
            classes, or a function of the exception. In memory only, as a copy without traceback, cause and context.
            Cancellations and refusals of a guard are never remembered.
        error_ttl: seconds that an exception is remembered. Needed with `errors`.
        store: where entries are looked for too, if not found in memory, and put (see `CacheStore`): a store that
            processes share. One that fails, or is slow, is done without.
        store_timeout: seconds for one operation of an async store. A sync store cannot be interrupted, and blocks the
            event loop when it serves async functions.
        copy: a function that makes of a kept result what each caller gets (`copy.deepcopy`).
        name: how it calls itself in events.
        clock: for tests.

    Raises:
        TypeError, ValueError: an argument is wrong. When called, a TypeError: the arguments make no key, or the result
            is an iterator or an awaitable, which can be used only once.
    """
    if bare is not None:
        msg = "ttl is given by its name: cache(ttl=60)"
        raise TypeError(msg)
    if callable(ttl):
        if inspect.iscoroutinefunction(ttl):
            msg = "ttl takes seconds or a sync function of the result, not an async function"
            raise TypeError(msg)
    else:
        seconds("ttl", ttl)
    for argument, function in (("key", key), ("copy", copy)):
        if function is not None and (not callable(function) or inspect.iscoroutinefunction(function)):
            what = "an async function" if callable(function) else type(function).__name__
            msg = f"{argument} takes a sync function, not {what}"
            raise TypeError(msg)
    if not isinstance(per_instance, bool):
        msg = f"per_instance takes True or False, not {type(per_instance).__name__}"
        raise TypeError(msg)
    if key is None and not per_instance:
        msg = "per_instance=False needs key=, which then tells the instances apart"
        raise TypeError(msg)
    for argument, window in (("stale_if_error", stale_if_error), ("stale_while_revalidate", stale_while_revalidate)):
        if window is not None:
            seconds(argument, window)
    if (errors is None) != (error_ttl is None):
        msg = "errors and error_ttl go together: which exceptions are remembered, and for how many seconds"
        raise TypeError(msg)
    if error_ttl is not None:
        seconds("error_ttl", error_ttl)
    seconds("store_timeout", store_timeout)
    if store is not None:
        for method in ("get", "set", "delete"):
            if not callable(getattr(store, method, None)):
                msg = f"store takes an object with get, set and delete; {type(store).__name__} has no {method}"
                raise TypeError(msg)
    return Cache(
        ttl=ttl,
        max_bytes=parse_size(max_bytes, "max_bytes"),
        key=key,
        per_instance=per_instance,
        stale_if_error=stale_if_error or 0.0,
        stale_while_revalidate=stale_while_revalidate or 0.0,
        errors=None if errors is None else matcher(errors),
        error_ttl=error_ttl or 0.0,
        backing=None if store is None else Backing(store, store_timeout, name, clock),
        copy=copy,
        name=name,
        clock=clock,
    )


__all__ = ["cache"]
