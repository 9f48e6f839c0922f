"""One open connection of `guardrails.gates.connections`: its use, its end, and who is told."""

from __future__ import annotations

import contextvars
import inspect
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, cast

import anyio

from guardrails.core import events
from guardrails.core.background import Home
from guardrails.core.clock import Clock
from guardrails.core.errors import Failed, Rejected

_log = logging.getLogger("guardrails")


class TooManyConnections(Rejected):
    """The key has as many connections as it may (``too_many_connections``), or all together have
    (``too_many_in_total``).
    """

    reason = "too_many_connections"


class ConnectionClosed(Failed):
    """The guard closed the connection.

    Attributes:
        guard: name of the guard.
        reason: ``idle``, ``replaced`` (by a newer one of the same key), or what `Connection.close` was given.
    """

    def __init__(self, guard: str, *, reason: str) -> None:
        super().__init__(guard, reason)
        self.guard = guard
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.guard}: connection closed: {self.reason}"


@dataclass(frozen=True, slots=True)
class ConnectionOpened(events.Event):
    """A connection was let in."""


@dataclass(frozen=True, slots=True)
class ConnectionEnded(events.Event):
    """A connection ended after `seconds`. `reason` is that of `ConnectionClosed`, or ``done``: its handler ended it."""

    reason: str
    seconds: float


class Owner(Protocol):
    """The guard of a connection."""

    name: str

    def forget(self, connection: Connection) -> None: ...


class Connection:
    """An open connection.

    Attributes:
        key: whose it is.
        place: what its guard keeps it under: the key, in a form whose hash stays.
        closed: why the guard closed it, None while it has not.
        counted: whether it has a place.
        opened: when, on the guard's clock.
        home: its event loop.
    """

    def __init__(
        self, guard: Owner, key: Hashable, place: Hashable, on_close: Callable[[str], object] | None, clock: Clock
    ) -> None:
        self.key = key
        self.place = place
        self.closed: str | None = None
        self._guard = guard
        self._on_close = on_close
        self._clock = clock
        self.opened = self._used = self._clock.now()
        self.counted = True
        self._scope: anyio.CancelScope | None = None
        self.home = Home()
        self._stop_watching: Callable[[], None] | None = None

    def touch(self) -> None:
        """It is in use: a message came or went. Costs a look at the clock."""
        self._used = self._clock.now()

    @property
    def idle_for(self) -> float:
        """Seconds since it was last used."""
        return self._clock.now() - self._used

    def close(self, reason: str = "closed") -> None:
        """Close it: its handler is cancelled, and ends with `ConnectionClosed`. From any thread. Twice is once."""
        if not self.counted:
            return
        if self.closed is None:
            self.closed = reason
        self._guard.forget(self)
        self.home.do(self.cut)

    def release(self) -> None:
        """It has ended: give its place back. Twice is once. On its own loop's thread."""
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = None
        self._guard.forget(self)

    def cut(self) -> None:
        """Interrupt its handler; on its loop's thread."""
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = None
        if self._scope is not None:
            self._scope.cancel()
        if self._on_close is not None:
            call, self._on_close = self._on_close, None
            try:
                pending = call(self.closed or "closed")
            except Exception:
                _log.exception("on_close of a connection failed")
            else:
                if inspect.isawaitable(pending):
                    self.home.start(lambda: cast("Awaitable[object]", pending))

    def watch(self, idle: float) -> None:
        """Close it once it has been idle for so many seconds."""

        async def watch() -> None:
            while (left := idle - self.idle_for) > 0:
                await self._clock.sleep(left)
            self._stop_watching = None  # it ends here by itself
            self.close("idle")

        self._stop_watching = self.home.start(watch)

    # One step of the handler

    def __enter__(self) -> None:
        # One for each step of a stream, or for a whole block: none is open while a stream's reader holds an item.
        scope = self._scope = anyio.CancelScope()
        scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        scope, self._scope = self._scope, None
        assert scope is not None  # noqa: S101 - entered
        # trio's says True for a block that ended well, too.
        if scope.__exit__(kind, exc, trace) and exc is not None:
            raise ConnectionClosed(self._guard.name, reason=self.closed or "closed") from exc


current: contextvars.ContextVar[Connection | None] = contextvars.ContextVar("guardrails.connection", default=None)
