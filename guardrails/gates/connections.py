"""Connections: at most so many open ones a user, and none that nobody uses. For WebSocket, SSE and Socket.IO handlers.

A connection is a handler that runs for minutes or hours, so it is counted and not queued: one too many is refused, or
takes the place of the user's oldest. One that was idle for too long is closed: its handler is cancelled, cleans up,
and ends with `ConnectionClosed`. However it ends (a return, an error, a disconnect, a cancellation), its place comes
back.

It imports no framework: a handler is any `async def`, or async generator; a key is whatever says whose it is.

Threads: loops in several threads may share the guard; a connection is touched from any, and closed on its own.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncGenerator, Callable, Hashable
from contextvars import Token
from types import TracebackType
from typing import Any, Literal, NoReturn, ParamSpec, TypeVar, cast

from guardrails.core import events
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.errors import Rejected
from guardrails.core.fixed import fixed
from guardrails.core.keys import checked
from guardrails.core.kinds import kind_of
from guardrails.core.names import name_of
from guardrails.gates.connection import (
    Connection,
    ConnectionClosed,
    ConnectionEnded,
    ConnectionOpened,
    TooManyConnections,
    current,
)

P = ParamSpec("P")
R = TypeVar("R")


class _Block:
    """``async with guard.connection(key) as connection:``."""

    def __init__(self, guard: Connections, key: Hashable) -> None:
        self._guard = guard
        self._key = key
        self._connection: Connection | None = None
        self._token: Token[Connection | None] | None = None

    async def __aenter__(self) -> Connection:
        connection = self._guard.open(self._key)
        self._connection = connection
        self._token = current.set(connection)
        connection.__enter__()
        return connection

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        connection, token = self._connection, self._token
        assert connection is not None  # noqa: S101 - entered
        assert token is not None  # noqa: S101 - entered
        connection.release()
        current.reset(token)
        connection.__exit__(kind, exc, trace)


@fixed("key", "clock")
class Connections:
    """Counts connections. Build it with `connections(...)`, which documents the arguments."""

    def __init__(
        self,
        *,
        name: str,
        per_key: int,
        max_total: int | None,
        idle_timeout: float | None,
        when_full: Literal["refuse", "close_oldest"],
        key: Callable[..., Hashable] | None,
        clock: Clock,
    ) -> None:
        self.name = name
        self._per_key = per_key
        self._max_total = max_total
        self._idle_timeout = idle_timeout
        self._when_full = when_full
        self._key = key
        self._clock = clock
        self._lock = threading.RLock()
        # A dictionary keeps the order of opening. A key without connections is not in it.
        self._open: dict[Hashable, dict[Connection, None]] = {}
        self._total = 0

    # Settings that can be assigned to: they hold for connections that are opened from then on

    @property
    def per_key(self) -> int:
        """Open connections that a key may have. A lower number closes none."""
        return self._per_key

    @per_key.setter
    def per_key(self, value: int) -> None:
        self._per_key = _number("per_key", value)

    @property
    def max_total(self) -> int | None:
        """Open connections that all keys may have together; None for no limit."""
        return self._max_total

    @max_total.setter
    def max_total(self, value: int | None) -> None:
        self._max_total = None if value is None else _number("max_total", value)

    @property
    def idle_timeout(self) -> float | None:
        """Seconds without use after which a connection is closed; None for no limit."""
        return self._idle_timeout

    @idle_timeout.setter
    def idle_timeout(self, value: float | None) -> None:
        self._idle_timeout = _idle(value)

    @property
    def when_full(self) -> Literal["refuse", "close_oldest"]:
        """What becomes of one connection too many."""
        return self._when_full

    @when_full.setter
    def when_full(self, value: Literal["refuse", "close_oldest"]) -> None:
        self._when_full = _policy(value)

    # What it is now

    @property
    def total(self) -> int:
        """Open connections of everybody."""
        return self._total

    def count(self, key: Hashable) -> int:
        """Open connections of a key."""
        return len(self._open.get(checked(self.name, key), ()))

    def describe(self) -> str:
        """One line: what it is and the settings that matter."""
        limits = [f"{self._per_key} a key"]
        if self._max_total is not None:
            limits.append(f"{self._max_total} in all")
        if self._idle_timeout is not None:
            limits.append(f"idle for {self._idle_timeout:g} s at most")
        return f"connections {self.name!r}: {', '.join(limits)}"

    def __repr__(self) -> str:
        return f"<connections {self.name!r} {self._total} open, of {len(self._open)} keys>"

    def connection(self, key: Hashable) -> _Block:
        """``async with guard.connection(user) as connection:`` around a handler's work.

        Raises:
            TooManyConnections: on entering. ConnectionClosed: at the end, when the guard closed it.
        """
        return _Block(self, key)

    def open(self, key: Hashable, *, on_close: Callable[[str], object] | None = None) -> Connection:
        """Count a connection whose beginning and end are two events (Socket.IO): call `release` on it at its end.

        Args:
            key: whose it is.
            on_close: called with the reason when the guard closes it; may be a coroutine function.

        Raises:
            TooManyConnections: there is no place.
        """
        place = checked(self.name, key)
        connection = Connection(self, key, place, on_close, self._clock)
        oldest: Connection | None = None
        refusal: TooManyConnections | None = None
        with self._lock:
            own = self._open.get(place, {})
            full = len(own) >= self._per_key
            if full or (self._max_total is not None and self._total >= self._max_total):
                if self._when_full == "close_oldest" and own:
                    # Never somebody else's: one user must not be able to throw out another.
                    oldest = next(iter(own))
                    oldest.closed = oldest.closed or "replaced"
                elif full:
                    refusal = TooManyConnections(self.name, detail=f"{len(own)} connections of this key are open")
                else:
                    detail = f"{self._total} connections are open"
                    refusal = TooManyConnections(self.name, reason="too_many_in_total", detail=detail)
            if oldest is not None:
                self._strike(oldest)
            if refusal is None:
                self._open.setdefault(place, {})[connection] = None
                self._total += 1
        if refusal is not None:
            connection.counted = False
            self._refuse(refusal)
        if oldest is not None:
            self._tell(oldest)
            oldest.home.do(oldest.cut)
        if events.sinks:
            events.emit(ConnectionOpened(self.name))
        if self._idle_timeout is not None:
            connection.watch(self._idle_timeout)
        return connection

    def touch(self) -> None:
        """The connection whose handler runs here is in use. Nothing happens outside a handler."""
        connection = current.get()
        if connection is not None:
            connection.touch()

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Guard a handler: an `async def`, or an async generator, each of whose items counts as use.

        Raises:
            TypeError: it is neither, or the guard was built without `key`.
        """
        kind = kind_of(fn)
        if kind not in ("coroutine", "stream"):
            msg = f"{self.name} guards async handlers; {name_of(fn)} is a {kind}"
            raise TypeError(msg)
        if self._key is None:
            msg = f"{self.name}: to decorate a handler, say whose a connection is: connections(..., key=function)"
            raise TypeError(msg)
        handler: Any = fn
        guarded: Any = self._stream(handler, self._key) if kind == "stream" else self._handler(handler, self._key)
        return cast("Callable[P, R]", functools.wraps(fn)(guarded))

    # Inside

    def _handler(self, fn: Any, key: Callable[..., Hashable]) -> Any:
        async def guarded(*args: Any, **kwargs: Any) -> Any:
            async with self.connection(key(*args, **kwargs)):
                return await fn(*args, **kwargs)

        return guarded

    def _stream(self, fn: Any, key: Callable[..., Hashable]) -> Any:
        async def guarded(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            connection = self.open(key(*args, **kwargs))
            try:
                source = fn(*args, **kwargs)
                try:
                    step, given = source.asend, None
                    while True:
                        if connection.closed is not None:  # while the reader held the last item
                            raise ConnectionClosed(self.name, reason=connection.closed)
                        token = current.set(connection)
                        try:
                            with connection:
                                item = await step(given)
                        except StopAsyncIteration:
                            return
                        finally:
                            current.reset(token)
                        connection.touch()
                        step = source.asend
                        try:
                            given = yield item
                        except GeneratorExit:
                            raise
                        except BaseException as exc:  # thrown in by the reader: the source decides
                            step, given = source.athrow, exc
                finally:
                    await source.aclose()
            finally:
                connection.release()

        return guarded

    def forget(self, connection: Connection) -> None:
        """Give the connection's place back. Twice is once."""
        with self._lock:
            counted = connection.counted
            if counted:
                self._strike(connection)
        if counted:
            self._tell(connection)

    def _strike(self, connection: Connection) -> None:
        # Under the lock.
        connection.counted = False
        own = self._open[connection.place]
        del own[connection]
        if not own:
            del self._open[connection.place]
        self._total -= 1

    def _tell(self, connection: Connection) -> None:
        if events.sinks:
            seconds = self._clock.now() - connection.opened
            events.emit(ConnectionEnded(self.name, connection.closed or "done", seconds))

    def _refuse(self, refusal: Rejected) -> NoReturn:
        if events.sinks:
            events.emit(events.CallRejected(self.name, refusal.reason, refusal.retry_after))
        raise refusal


def connections(
    *,
    per_key: int,
    idle_timeout: float | None = None,
    max_total: int | None = None,
    key: Callable[..., Hashable] | None = None,
    when_full: Literal["refuse", "close_oldest"] = "refuse",
    name: str = "connections",
    clock: Clock = SYSTEM_CLOCK,
) -> Connections:
    """Limit long-lived connections.

    Args:
        per_key: open connections that a key (a user) may have.
        idle_timeout: seconds without a `touch` (or, for a stream, an item) after which a connection is closed.
        max_total: open connections that all may have together.
        key: a function of a decorated handler's arguments that says whose the connection is.
        when_full: ``refuse`` the new one, or ``close_oldest``: the same key's oldest makes way, never another key's.
        name: how it calls itself in errors and events.
        clock: for tests.

    Raises:
        ValueError: an argument is out of range. TypeError: it has the wrong type.
    """
    _number("per_key", per_key)
    if max_total is not None:
        _number("max_total", max_total)
    _idle(idle_timeout)
    _policy(when_full)
    if key is not None and not callable(key):
        msg = f"key takes a function of the handler's arguments, not {type(key).__name__}"
        raise TypeError(msg)
    return Connections(
        name=name,
        per_key=per_key,
        max_total=max_total,
        idle_timeout=idle_timeout,
        when_full=when_full,
        key=key,
        clock=clock,
    )


def _number(argument: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{argument} takes a whole number of connections, not {type(value).__name__}"
        raise TypeError(msg)
    if value < 1:
        msg = f"{argument} takes a number of at least 1, not {value!r}"
        raise ValueError(msg)
    return value


def _idle(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"idle_timeout takes a number of seconds, not {type(value).__name__}"
        raise TypeError(msg)
    if not 0 < value < float("inf"):
        msg = f"idle_timeout takes a number of seconds above 0, not {value!r}"
        raise ValueError(msg)
    return value


def _policy(value: Any) -> Literal["refuse", "close_oldest"]:
    if value not in ("refuse", "close_oldest"):
        msg = f"when_full takes 'refuse' or 'close_oldest', not {value!r}"
        raise ValueError(msg)
    return cast("Literal['refuse', 'close_oldest']", value)


__all__ = ["Connection", "ConnectionClosed", "Connections", "TooManyConnections", "connections"]
