"""Dependencies that do what a script says: functions, async functions and streams.

A script is a row of steps, one for each call:

===============================  =====================================================================
an exception, or its class       is raised
a function                       is called with the call's arguments (and awaited if need be)
``sleep(seconds)``               waits on the clock, and gives None
``sleep(seconds, then)``         waits on the clock, and goes on with the step `then`
anything else                    is returned
===============================  =====================================================================

For a stream, a step is the list of its items, in which the same words hold: an exception is raised there, in the middle
of the stream; a function is called and its result is an item; ``sleep(seconds)`` only waits.

Threads: a lock guards the script's place and the counts, so calls from several threads each get a step of their own.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from guardrails.core.clock import SYSTEM_CLOCK, Clock

Then = Literal["last", "again", "error"]
_THEN = ("last", "again", "error")


class Arguments(NamedTuple):
    """What one call was made with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class ScriptEnded(AssertionError):
    """A call came after the last step of a script with ``then="error"``."""


class _Nothing:
    """Stands for no step."""


class sleep:  # noqa: N801 - a step reads as what it does
    """A step that waits for `seconds` on the script's clock before the step `then`, or instead of one."""

    __slots__ = ("seconds", "then")

    def __init__(self, seconds: float, then: Any = _Nothing) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            msg = f"seconds takes a number, not {type(seconds).__name__}"
            raise TypeError(msg)
        if not seconds >= 0:
            msg = f"seconds takes a number of at least 0, not {seconds!r}"
            raise ValueError(msg)
        self.seconds = seconds
        self.then = then

    def __repr__(self) -> str:
        return f"sleep({self.seconds:g}{'' if self.then is _Nothing else f', {self.then!r}'})"


class _Script:
    """The place in a script, and who is in a call of it.

    Attributes:
        calls: the arguments of every call so far, in order: ``len(f.calls)`` is their number.
        in_flight: calls that run now, or streams that are open.
        max_in_flight: the most there ever were at once.
    """

    __slots__ = ("__name__", "__qualname__", "_clock", "_lock", "_place", "_steps", "_then", "calls", "in_flight",
                 "max_in_flight")  # fmt: skip

    def __init__(self, *script: Any, then: Then = "last", clock: Clock = SYSTEM_CLOCK, name: str = "flaky") -> None:
        if not script:
            msg = "script takes at least one step: flaky(TimeoutError(), 'ok')"
            raise TypeError(msg)
        if then not in _THEN:
            msg = f"then takes one of {', '.join(map(repr, _THEN))}, not {then!r}"
            raise ValueError(msg)
        for step in script:
            self._check(step)
        self.__name__ = self.__qualname__ = name
        self.calls: list[Arguments] = []
        self.in_flight = 0
        self.max_in_flight = 0
        self._clock = clock
        self._lock = threading.RLock()
        self._place = 0
        self._steps = script
        self._then = then

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__name__!r}, called {len(self.calls)} times>"

    def _check(self, step: Any) -> None:
        """Raise if this is no step."""

    @contextmanager
    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        with self._lock:
            self.calls.append(Arguments(args, kwargs))
            place, steps = self._place, self._steps
            if place >= len(steps):
                if self._then == "error":
                    msg = f"{self.__name__}: call number {len(self.calls)}, and its script has {len(steps)} steps"
                    raise ScriptEnded(msg)
                place = 0 if self._then == "again" else len(steps) - 1
            self._place = place + 1
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            yield steps[place]
        finally:
            with self._lock:
                self.in_flight -= 1

    async def _waited(self, step: Any) -> Any:
        # The step behind all sleeps.
        while isinstance(step, sleep):
            await self._clock.sleep(step.seconds)
            step = step.then
        return step

    async def _done(self, step: Any, call: Arguments) -> Any:
        result = _play(step, call)
        return await result if inspect.isawaitable(result) else result


class flaky(_Script):  # noqa: N801 - it stands where a function does
    """An ``async def`` that follows a script: ``flaky(TimeoutError(), sleep(2, "ok"))``. See the module for the steps.

    Args:
        script: one step for each call.
        then: what calls after the last step get: ``last``, that step again; ``again``, the script from its beginning;
            ``error``, `ScriptEnded`.
        clock: what `sleep` waits on.
        name: its ``__name__``.

    Raises:
        TypeError: there is no step. ValueError: `then` is something else.

    Attributes:
        calls: the arguments of every call so far, in order: ``len(f.calls)`` is their number.
        in_flight: calls that run now.
        max_in_flight: the most there ever were at once.
    """

    __slots__ = ()

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take the next step."""
        with self._call(args, kwargs) as step:
            return await self._done(await self._waited(step), Arguments(args, kwargs))


class flaky_sync(_Script):  # noqa: N801
    """A ``def`` that follows a script. Everything else is as with `flaky`; `sleep` blocks the thread."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Take the next step."""
        with self._call(args, kwargs) as first:
            step = first
            while isinstance(step, sleep):
                self._clock.wait_thread(threading.Event(), step.seconds)
                step = step.then
            return _play(step, Arguments(args, kwargs))


class flaky_stream(_Script):  # noqa: N801
    """An async generator function that follows a script: ``flaky_stream(["a", ConnectionError()], ["a", "b"])``.

    Each step is a list of items, or an exception for a stream that breaks before its first item. A stream that is
    opened and never read is no call. Everything else is as with `flaky`.

    Raises:
        TypeError: a step is neither.
    """

    __slots__ = ()

    def _check(self, step: Any) -> None:
        if not isinstance(step, list | tuple) and not _is_exception(step):
            msg = f"script takes lists of items, or exceptions, not {type(step).__name__}"
            raise TypeError(msg)

    async def __call__(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        """A stream of the next step's items."""
        with self._call(args, kwargs) as step:
            for item in [step] if _is_exception(step) else step:
                item = await self._waited(item)  # noqa: PLW2901
                if item is not _Nothing:
                    yield await self._done(item, Arguments(args, kwargs))


def _is_exception(step: Any) -> bool:
    return isinstance(step, BaseException) or (isinstance(step, type) and issubclass(step, BaseException))


def _play(step: Any, call: Arguments) -> Any:
    if _is_exception(step):
        # An instance that is raised again and again would collect the frames of all calls.
        raise step.with_traceback(None) if isinstance(step, BaseException) else step
    if step is _Nothing:
        return None
    return step(*call.args, **call.kwargs) if callable(step) else step


__all__ = ["Arguments", "ScriptEnded", "flaky", "flaky_stream", "flaky_sync", "sleep"]
