"""The cache itself: how it drives a call, and how its entries are forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from guardrails.core import deadline, events
from guardrails.core.background import Home
from guardrails.core.clock import Clock
from guardrails.core.deadline import remaining, wait_limit
from guardrails.core.fixed import fixed
from guardrails.core.guard import DrivenCall, Position, Strategy
from guardrails.core.pipeline import Layer
from guardrails.core.sizes import format_size
from guardrails.core.waiting import TaskWaiter, ThreadWaiter
from guardrails.strategies.cache.answers import ALONE, Answers, CacheSnapshot, Key
from guardrails.strategies.cache.flight import Flight, Following, Landing, Leading, belong_to_no_flight
from guardrails.strategies.cache.key import NoKey, chosen_key, local_key, store_key
from guardrails.strategies.cache.receiver import receiver_of
from guardrails.strategies.cache.store import Backing

T = TypeVar("T")
_NO_NAMES: dict[str, Any] = {}


@fixed(
    "ttl",
    "max_bytes",
    "key",
    "per_instance",
    "stale_if_error",
    "stale_while_revalidate",
    "errors",
    "error_ttl",
    "store",
    "store_timeout",
    "copy",
    "clock",
)
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
        errors: Callable[[Exception], object] | None,
        error_ttl: float,
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
            errors=errors,
            error_ttl=error_ttl,
            copy=copy,
            name=name,
            clock=clock,
        )
        # Bound once: a hit needs them.
        self._look = answers.entries.get
        self._touch = answers.entries.move_to_end
        self._count_hit = answers.count_hit
        self._plain = copy is None
        self._error_ttl = error_ttl

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        answers = self._answers
        fresh = "as long as a function says" if callable(answers.ttl) else f"{answers.ttl:g} s"
        parts = [f"fresh for {fresh}", f"{format_size(answers.lru.max_bytes)} at most"]
        if answers.while_revalidate:
            parts.append(f"stale for {answers.while_revalidate:g} s more while revalidating")
        if answers.if_error:
            parts.append(f"stale for {answers.if_error:g} s more if the call fails")
        if self._error_ttl:
            parts.append(f"some errors for {self._error_ttl:g} s")
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
        home = _home()
        coming = self._answers.arrive(key, home, TaskWaiter)
        if isinstance(coming, Following):
            following = coming
            with following:
                await self._wait(following.seat)
            coming = self._answers.gone(call, key) if following.left else following.take() or following.flight
            del following
        elif isinstance(coming, Landing):
            if coming.refresh is not None:
                coming = self._refresh(call, key, coming, proceed, home)
            elif coming.error is not None:
                coming = self._answers.recall(call, key, coming)
        if isinstance(coming, Flight):
            return await self._lead(call, key, coming, proceed)
        if coming is ALONE:
            coming = await self._make(call, key, proceed, None)
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
                following.seat.wait(self._clock, remaining())  # nothing interrupts a thread: every deadline counts
            coming = self._answers.gone(call, key) if following.left else following.take() or following.flight
            del following
        elif isinstance(coming, Landing):
            if coming.refresh is not None:
                coming = coming.refresh  # this call fetches the new one itself
            elif coming.error is not None:
                coming = self._answers.recall(call, key, coming)
        if isinstance(coming, Flight):
            return self._lead_blocking(call, key, coming, proceed)
        if coming is ALONE:
            coming = self._make_blocking(call, key, proceed, None)
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

    async def _wait(self, seat: TaskWaiter[Any]) -> None:
        left = wait_limit(math.inf)
        if left == math.inf:
            await seat.wait()
        else:
            with self._clock.scope(left):
                await seat.wait()

    def _refresh(
        self, call: DrivenCall, key: Key, stale: Landing, proceed: Callable[[], Awaitable[Any]], home: object
    ) -> Landing | Flight:
        """Have a task fetch a new entry, for a caller who gets the stale one."""
        flight, stale.refresh = stale.refresh, None
        assert flight is not None  # noqa: S101 - asked before
        if home is None:
            return flight  # nothing here runs tasks: the caller fetches it

        flight.background = True

        async def refresh() -> None:
            belong_to_no_flight()
            deadline.current.set(None)  # the caller's, who does not wait for this
            with contextlib.suppress(Exception):  # reported as an event, and to those who join the flight
                await self._fly(call, key, flight, proceed)

        try:
            Home().start(refresh, flight.hand_over)
        except RuntimeError:  # the loop is ending, and starts no task any more
            flight.hand_over()
        return stale

    async def _lead(self, call: DrivenCall, key: Key, flight: Flight, proceed: Callable[[], Awaitable[Any]]) -> Any:
        return self._answers.open(await self._fly(call, key, flight, proceed))

    async def _fly(self, call: DrivenCall, key: Key, flight: Flight, proceed: Callable[[], Awaitable[Any]]) -> Landing:
        backing, began = self._backing, self._now()
        try:
            with Leading(flight):
                landing = None
                stored_as = b"" if backing is None else store_key(key)
                if backing is not None:
                    landing = self._answers.found(key, flight, await backing.get(stored_as))
                if landing is None:
                    landing = await self._make(call, key, proceed, flight)
                kept = self._answers.land(key, flight, landing)
        except Exception as exc:
            if flight.refresh:
                self._answers.refreshed(began, type(exc).__name__)
            raise
        if flight.refresh:
            self._answers.refreshed(began, landing.failure)
        if kept and backing is not None:
            await backing.set(stored_as, landing.value, self._answers.keep_for(landing.keep))
        return landing

    def _lead_blocking(self, call: DrivenCall, key: Key, flight: Flight, proceed: Callable[[], Any]) -> Any:
        backing, began = self._backing, self._now()
        try:
            with Leading(flight):
                landing = None
                stored_as = b"" if backing is None else store_key(key)
                if backing is not None:
                    landing = self._answers.found(key, flight, backing.get_blocking(stored_as))
                if landing is None:
                    landing = self._make_blocking(call, key, proceed, flight)
                kept = self._answers.land(key, flight, landing)
        except Exception as exc:
            if flight.refresh:
                self._answers.refreshed(began, type(exc).__name__)
            raise
        if flight.refresh:
            self._answers.refreshed(began, landing.failure)
        if kept and backing is not None:
            backing.set_blocking(stored_as, landing.value, self._answers.keep_for(landing.keep))
        return self._answers.open(landing)

    async def _make(
        self, call: DrivenCall, key: Key, proceed: Callable[[], Awaitable[Any]], flight: Flight | None
    ) -> Landing:
        if flight is None or not flight.background:
            self._answers.missed()
        try:
            result = await proceed()
        except Exception as exc:
            stale = self._answers.raised(call, key, exc, flight)
            if stale is None:
                raise
            return stale
        return self._answers.returned(call, key, result, flight)

    def _make_blocking(self, call: DrivenCall, key: Key, proceed: Callable[[], Any], flight: Flight | None) -> Landing:
        self._answers.missed()
        try:
            result = proceed()
        except Exception as exc:
            stale = self._answers.raised(call, key, exc, flight)
            if stale is None:
                raise
            return stale
        return self._answers.returned(call, key, result, flight)


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
