"""The store behind a cache's own memory: its protocol, and what keeps its failures away from the calls."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable
from typing import Any, Protocol

from guardrails.core import events
from guardrails.core.clock import Clock
from guardrails.strategies.cache.signals import CacheStoreFailed, CacheStoreRecovered

_log = logging.getLogger("guardrails")

#: After a failure the store is left alone for this many times `timeout`: an outage slows down few calls.
PAUSE = 10

Found = tuple[Any, float]


class CacheStore(Protocol):
    """A store that processes share, or that outlives them. Each method may be async.

    Keys are 16 bytes, and say nothing about the arguments that they stand for.
    """

    def get(self, key: bytes, /) -> Found | Awaitable[Found | None] | None:
        """The value and its age in seconds, or None."""
        ...

    def set(self, key: bytes, value: Any, keep: float, /) -> object:
        """Keep a value that is new now. After `keep` seconds it is of no more use."""
        ...

    def delete(self, key: bytes, /) -> object:
        """Forget a value, if it is there."""
        ...


class _Health:
    """Of one operation."""

    __slots__ = ("down", "retry_at")

    def __init__(self) -> None:
        self.down = False
        self.retry_at = 0.0


class Backing:
    """A store whose failures are told, once an outage, and stay here: `get` then finds nothing, `set` keeps nothing.

    Threads: may be used from any. Two may tell the same outage.

    Args:
        store: see `CacheStore`.
        timeout: seconds after which an async operation is given up. A sync one cannot be interrupted.
        name: of the cache, for events.
        clock: of the cache.
    """

    def __init__(self, store: CacheStore, timeout: float, name: str, clock: Clock) -> None:
        self._store = store
        self._timeout = timeout
        self._name = name
        self._clock = clock
        self._health = {"get": _Health(), "set": _Health()}
        operations = (getattr(store, name, None) for name in ("get", "set", "delete"))
        #: Whether it cannot serve sync functions.
        self.is_async = any(inspect.iscoroutinefunction(operation) for operation in operations)

    async def get(self, key: bytes) -> Found | None:
        """The value and its age in seconds."""
        return _found(await self._attempt("get", key))

    async def set(self, key: bytes, value: Any, keep: float) -> None:
        """Keep a value for so many seconds."""
        await self._attempt("set", key, value, keep)

    async def delete(self, key: bytes) -> None:
        """Forget a value. Raises what the store raises, and a TimeoutError."""
        answer = self._store.delete(key)
        if inspect.isawaitable(answer):
            with self._clock.scope(self._timeout) as scope:
                await answer
            if scope.cancelled_caught:
                msg = f"{self._name}: the store did not delete within {self._timeout:g} s"
                raise TimeoutError(msg)

    def get_blocking(self, key: bytes) -> Found | None:
        """`get` for sync code."""
        return _found(self._attempt_blocking("get", key))

    def set_blocking(self, key: bytes, value: Any, keep: float) -> None:
        """`set` for sync code."""
        self._attempt_blocking("set", key, value, keep)

    def delete_blocking(self, key: bytes) -> None:
        """`delete` for sync code."""
        _refuse_awaitable(self._name, self._store.delete(key))

    async def _attempt(self, operation: str, *args: Any) -> Any:
        if self._resting(operation):
            return None
        failure: str | None = None
        answer = None
        try:
            answer = getattr(self._store, operation)(*args)
            if inspect.isawaitable(answer):
                with self._clock.scope(self._timeout) as scope:
                    answer = await answer
                if scope.cancelled_caught:
                    failure, answer = "TimeoutError", None
            _check(operation, answer)
        except Exception as exc:
            failure, answer = type(exc).__name__, None
        self._note(operation, failure)
        return answer

    def _attempt_blocking(self, operation: str, *args: Any) -> Any:
        if self._resting(operation):
            return None
        failure: str | None = None
        try:
            answer = getattr(self._store, operation)(*args)
            if not inspect.isawaitable(answer):
                _check(operation, answer)
        except Exception as exc:
            failure, answer = type(exc).__name__, None
        _refuse_awaitable(self._name, answer)  # a mistake in the program, not an outage
        self._note(operation, failure)
        return answer

    def _resting(self, operation: str) -> bool:
        health = self._health[operation]
        if not health.down:
            return False
        now = self._clock.now()
        if now < health.retry_at:
            return True
        health.retry_at = now + PAUSE * self._timeout  # this call tries; the others leave it alone meanwhile
        return False

    def _note(self, operation: str, failure: str | None) -> None:
        health = self._health[operation]
        if failure is not None:
            health.retry_at = self._clock.now() + PAUSE * self._timeout
        if health.down == (failure is not None):
            return
        health.down = failure is not None
        if failure is None:
            _log.info("%s: its store does %r again", self._name, operation)
            if events.sinks:
                events.emit(CacheStoreRecovered(self._name, operation))
            return
        # The error's own text may hold the value.
        _log.warning("%s: its store fails in %r (%s); going on without it", self._name, operation, failure)
        if events.sinks:
            events.emit(CacheStoreFailed(self._name, operation, failure))


def _check(operation: str, answer: Any) -> None:
    if operation == "get" and answer is not None:
        _, age = answer
        float(age)


def _found(answer: Any) -> Found | None:
    if answer is None:
        return None
    value, age = answer
    return value, max(0.0, float(age))


def _refuse_awaitable(name: str, answer: Any) -> None:
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        msg = f"{name}: an async store cannot serve a sync function; give the cache a sync one"
        raise TypeError(msg)


__all__ = ["Backing", "CacheStore"]
