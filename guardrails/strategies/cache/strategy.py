"""The cache itself: `cache(...)`, and how it drives a call."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from guardrails.core import events
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.guard import DrivenCall, Position, Strategy
from guardrails.core.pipeline import Layer
from guardrails.core.sizes import format_size, parse_size
from guardrails.core.waiting import TaskWaiter, ThreadWaiter
from guardrails.strategies.backoff import seconds
from guardrails.strategies.cache.answers import ALONE, Answers, CacheSnapshot, Key
from guardrails.strategies.cache.flight import Flight, Following, Landing, Leading
from guardrails.strategies.cache.key import NoKey, chosen_key, local_key, store_key
from guardrails.strategies.cache.receiver import receiver_of
from guardrails.strategies.cache.store import Backing, CacheStore

T = TypeVar("T")
_NO_NAMES: dict[str, Any] = {}


class Cache(Layer, Strategy):
    """Answers that are kept. Build it with `cache(...)`, which documents the arguments."""

    positions = (Position.CACHE,)

    def __init__(
        self,
        *,
        ttl: float | Callable[[Any], float | None],
        max_bytes: int,
        key: Callable[..., Any] | None,
        per_instance: bool,
        stale_if_error: float,
        stale_while_revalidate: float,
        backing: Backing | None,
        copy: Callable[[Any], Any] | None,
        name: str,
        clock: Clock,
    ) -> None:
        self.name = name
        self._key_of = key
        self._per_instance = per_instance
        self._backing = backing
        self._clock = clock
        self._now = clock.now
        self._answers = answers = Answers(
            ttl=ttl,
            max_bytes=max_bytes,
            if_error=stale_if_error,
            while_revalidate=stale_while_revalidate,
            copy=copy,
            name=name,
            clock=clock,
        )
        # Bound once: a hit needs them.
        self._look = answers.entries.get
        self._touch = answers.entries.move_to_end
        self._count_hit = answers.count_hit
        self._plain = copy is None

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        answers = self._answers
        fresh = "as long as a function says" if callable(answers.ttl) else f"{answers.ttl:g} s"
        parts = [f"fresh for {fresh}", f"{format_size(answers.lru.max_bytes)} at most"]
        if answers.while_revalidate:
            parts.append(f"stale for {answers.while_revalidate:g} s more while revalidating")
        if answers.if_error:
            parts.append(f"stale for {answers.if_error:g} s more if the call fails")
        if self._backing is not None:
            parts.append("with a store")
        return f"cache {self.name!r}: {', '.join(parts)}"

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    def snapshot(self) -> CacheSnapshot:
        """What it holds, and what it did."""
        return self._answers.snapshot()

    # Forgetting

    def invalidate(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Forget the answer to `fn(*args, **kwargs)`, written as it is called: in memory, and in a sync store.

        A call of it that is in flight goes on, but what it brings is not kept, and nobody joins it any more.

        Args:
            fn: the function or method, guarded or bare.
            args, kwargs: the call's.

        Raises:
            TypeError: the store is an async one: use `invalidate_async`. What the store raises is raised too.
        """
        if self._backing is not None and self._backing.is_async:
            msg = f"{self.name} has an async store: await invalidate_async(...)"
            raise TypeError(msg)
        key = self._forget(fn, args, kwargs)
        if key is not None and self._backing is not None:
            try:
                self._backing.delete_blocking(store_key(key))
            finally:
                self._answers.forget(key)  # once more: somebody may have read the store meanwhile

    async def invalidate_async(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """`invalidate`, with any store. A store that does not answer within `store_timeout` is a TimeoutError."""
        key = self._forget(fn, args, kwargs)
        if key is not None and self._backing is not None:
            try:
                await self._backing.delete(store_key(key))
            finally:
                self._answers.forget(key)

    def clear(self) -> None:
        """Forget everything in memory; the store keeps what it has. Calls in flight go on, and are not kept."""
        self._answers.clear()

    def _forget(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Key | None:
        function, args = _bare(fn, args)
        key_of, chosen = self._key_of, None
        if key_of is not None:
            chosen = key_of(*args, **kwargs)
            if chosen is None:
                return None
        try:
            key = local_key(function, args, kwargs) if key_of is None else self._chosen(function, args, kwargs, chosen)
            self._answers.forget(key)
        except TypeError as exc:
            raise self._no_key(function, exc) from None
        return key

    # The contract

    async def run(self, call: DrivenCall, proceed: Callable[[], Awaitable[T]]) -> Any:
        """Answer an async call."""
        function, args, kwargs = call.function, call.args or (), call.kwargs or _NO_NAMES
        key_of, chosen = self._key_of, None
        if key_of is not None:
            chosen = key_of(*args, **kwargs)
            if chosen is None:
                return await proceed()
        try:
            key = local_key(function, args, kwargs) if key_of is None else self._chosen(function, args, kwargs, chosen)
            entry = self._look(key)
        except TypeError as exc:
            raise self._no_key(function, exc) from None
        if entry is not None and self._now() < entry.fresh_until:
            self._count_hit()
            try:  # noqa: SIM105 - this is the hot path, and `suppress` costs more than all of it
                self._touch(key)
            except KeyError:
                pass  # another thread has just removed it
            return entry.value if self._plain and not events.sinks else self._answers.hit(entry.value)
        coming = self._answers.arrive(key, _home(), TaskWaiter)
        if isinstance(coming, Following):
            following = coming
            with following:
                await following.seat.wait()
            coming = following.take() or following.flight
            del following
        if isinstance(coming, Flight):
            return await self._lead(call, key, coming, proceed)
        if coming is ALONE:
            coming = await self._make(call, key, proceed)
        try:
            return self._answers.open(coming)
        finally:
            del coming  # an error's traceback holds this frame

    def run_blocking(self, call: DrivenCall, proceed: Callable[[], T]) -> Any:
        """Answer a sync call."""
        function, args, kwargs = call.function, call.args or (), call.kwargs or _NO_NAMES
        key_of, chosen = self._key_of, None
        if key_of is not None:
            chosen = key_of(*args, **kwargs)
            if chosen is None:
                return proceed()
        try:
            key = local_key(function, args, kwargs) if key_of is None else self._chosen(function, args, kwargs, chosen)
            entry = self._look(key)
        except TypeError as exc:
            raise self._no_key(function, exc) from None
        if entry is not None and self._now() < entry.fresh_until:
            self._count_hit()
            try:  # noqa: SIM105 - this is the hot path, and `suppress` costs more than all of it
                self._touch(key)
            except KeyError:
                pass  # another thread has just removed it
            return entry.value if self._plain and not events.sinks else self._answers.hit(entry.value)
        coming = self._answers.arrive(key, None, ThreadWaiter)
        if isinstance(coming, Following):
            following = coming
            with following:
                following.seat.wait(self._clock, None)
            coming = following.take() or following.flight
            del following
        if isinstance(coming, Flight):
            return self._lead_blocking(call, key, coming, proceed)
        if coming is ALONE:
            coming = self._make_blocking(call, key, proceed)
        try:
            return self._answers.open(coming)
        finally:
            del coming

    # Inside

    def _chosen(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], chosen: Any
    ) -> Key:
        receiver = receiver_of(function, args, kwargs) if self._per_instance else None
        return chosen_key(function, chosen, receiver)

    def _no_key(self, function: Callable[..., Any], error: TypeError) -> TypeError:
        what = type(function).__name__
        if not isinstance(error, NoKey):
            msg = f"{self.name} cannot tell a {what} from others, since it cannot be hashed: guard a function"
        elif self._key_of is None:
            msg = (
                f"{self.name} cannot make a key of the arguments, with {error} among them: pass key=, a function of "
                "the arguments that returns text, bytes, numbers or a tuple of such"
            )
        else:
            msg = f"{self.name}: key= must return text, bytes, numbers or a tuple of such, not {error}"
        return TypeError(msg)

    async def _lead(self, call: DrivenCall, key: Key, flight: Flight, proceed: Callable[[], Awaitable[Any]]) -> Any:
        backing = self._backing
        with Leading(flight):
            landing = None
            stored_as = b"" if backing is None else store_key(key)
            if backing is not None:
                landing = self._answers.found(key, flight, await backing.get(stored_as))
            if landing is None:
                landing = await self._make(call, key, proceed)
            kept = self._answers.land(key, flight, landing)
        if kept and backing is not None:
            await backing.set(stored_as, landing.value, self._answers.keep_for(landing.keep))
        return self._answers.open(landing)

    def _lead_blocking(self, call: DrivenCall, key: Key, flight: Flight, proceed: Callable[[], Any]) -> Any:
        backing = self._backing
        with Leading(flight):
            landing = None
            stored_as = b"" if backing is None else store_key(key)
            if backing is not None:
                landing = self._answers.found(key, flight, backing.get_blocking(stored_as))
            if landing is None:
                landing = self._make_blocking(call, key, proceed)
            kept = self._answers.land(key, flight, landing)
        if kept and backing is not None:
            backing.set_blocking(stored_as, landing.value, self._answers.keep_for(landing.keep))
        return self._answers.open(landing)

    async def _make(self, call: DrivenCall, key: Key, proceed: Callable[[], Awaitable[Any]]) -> Landing:
        self._answers.missed()
        try:
            result = await proceed()
        except Exception as exc:
            stale = self._answers.instead_of(call.judge(exc), key)
            if stale is None:
                raise
            return stale
        return self._answers.returned(call, key, result)

    def _make_blocking(self, call: DrivenCall, key: Key, proceed: Callable[[], Any]) -> Landing:
        self._answers.missed()
        try:
            result = proceed()
        except Exception as exc:
            stale = self._answers.instead_of(call.judge(exc), key)
            if stale is None:
                raise
            return stale
        return self._answers.returned(call, key, result)


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
    store: CacheStore | None = None,
    store_timeout: float = 0.5,
    copy: Callable[[T], T] | None = None,
    name: str = "cache",
    clock: Clock = SYSTEM_CLOCK,
) -> Cache:
    """Keep what calls return, and give it to calls that are the same. Only successes are kept.

    Calls that are the same and come at the same time are made once: the others wait, and get the same result or the
    same error. A caller who is cancelled takes nobody along. A function that calls itself with the same arguments is
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
        stale_while_revalidate: seconds after `ttl` in which an entry is still given to all but the first caller, who
            fetches a new one. None: never; they wait for the first.
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
        backing=None if store is None else Backing(store, store_timeout, name, clock),
        copy=copy,
        name=name,
        clock=clock,
    )


def _bare(fn: Any, args: tuple[Any, ...]) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """What `DrivenCall.function` is for calls of `fn`, and their positional arguments."""
    if inspect.ismethod(fn) and hasattr(fn, "__guarded__"):
        fn, args = fn.__func__, (fn.__self__, *args)
    each = fn
    while each is not None:
        guarded = getattr(each, "__guarded__", None)
        if getattr(guarded, "wrapper", None) is each:
            return guarded.fn, args  # type: ignore[union-attr]
        each = getattr(each, "__wrapped__", None)  # somebody's decorator stands around it
    return fn, args


def _home() -> object:
    """The event loop that this runs on."""
    loop = asyncio._get_running_loop()  # noqa: SLF001 - documented for framework authors, and does not raise
    if loop is not None:
        return loop
    trio = sys.modules.get("trio")
    return trio.lowlevel.current_trio_token() if trio is not None and trio.lowlevel.in_trio_run() else None
