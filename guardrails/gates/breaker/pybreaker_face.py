"""What a breaker shows to code written for pybreaker: its words, its listeners and its storages.

Differences, all on purpose: a cancellation and a `KeyboardInterrupt` are not failures; a listener that raises is
logged, and the call goes on; no lock is held across a call; time is monotonic. Listeners are called as pybreaker calls
them: one at a time, in the order of what they are about, on the thread that caused it. A lock is held across them.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from types import GeneratorType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from guardrails.core import outcome as outcomes
from guardrails.core.drive import judge_result
from guardrails.core.guard import Call
from guardrails.core.names import name_of
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome

if TYPE_CHECKING:
    import pybreaker

P = ParamSpec("P")
R = TypeVar("R")
Exclusion = type[BaseException] | Callable[[BaseException], bool]

_log = logging.getLogger("guardrails.breaker")


def told(listener: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Call a listener. A broken one must not become a broken call: it is logged, with its traceback."""
    try:
        listener(*args, **kwargs)
    except Exception:
        _log.exception("a breaker's listener failed")


class PybreakerFace:
    """pybreaker's methods. `Circuit` is the only class with it, and has what it builds on."""

    name: str
    _lock: Any
    _listeners: tuple[Any, ...]
    _exclude: tuple[Exclusion, ...]
    _throw: bool | None

    if TYPE_CHECKING:

        def _enter_alone(self, call: Call, func: Callable[..., Any] | None) -> Any: ...
        def settle(self, ticket: Any, outcome: Outcome) -> None: ...
        def _by_hand(self, new: Any, *, always: bool = False) -> None: ...
        def _doors(self) -> None: ...
        def _tripped_error(self, exc: BaseException) -> BaseException: ...
        def judge_result(self, result: Any) -> Outcome: ...
        def _matches(self, exc: BaseException, tests: Iterable[Exclusion], argument: str, *, broken: bool) -> bool: ...

    # Calling

    def call(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a sync function, as `pybreaker.CircuitBreaker.call` does. A generator is settled at its end.

        Raises:
            CircuitOpen: the circuit is open; or, unless `throw_new_error_on_trip=False` was given, this call's failure
                opened it (``reason="tripped"``, the function's own error is its `__cause__`).
        """
        ticket = self._enter_alone(Call(args, kwargs), func)
        try:
            result = func(*args, **kwargs)
        except BaseException as exc:
            self._leave(ticket, exc)
        if inspect.iscoroutine(result) or inspect.isasyncgen(result):
            self.settle(ticket, IGNORED)
            if inspect.iscoroutine(result):
                result.close()
            msg = f"call takes sync functions; decorate {name_of(func)!r}, which is async"
            raise TypeError(msg)
        if isinstance(result, GeneratorType):
            return self._generate(ticket, result)  # type: ignore[return-value]
        self.settle(ticket, judge_result(self.judge_result, result))
        return result

    @contextmanager
    def calling(self) -> Iterator[None]:
        """`call` for a block: ``with circuit.calling(): ...``."""
        ticket = self._enter_alone(Call((), {}), None)
        try:
            yield
        except BaseException as exc:
            self._leave(ticket, exc)
        self.settle(ticket, SUCCESS)

    def _leave(self, ticket: Any, exc: BaseException) -> NoReturn:
        self.settle(ticket, outcomes.classify(exc))
        if ticket.tripped and self._throw is not False:
            raise self._tripped_error(exc) from exc
        raise exc

    def _generate(self, ticket: Any, source: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        try:
            result = yield from source
        except GeneratorExit:
            self.settle(ticket, IGNORED)
            raise
        except BaseException as exc:
            self._leave(ticket, exc)
        self.settle(ticket, SUCCESS)
        return result

    def _throwing(self, fn: Callable[..., Any], kind: str) -> Callable[..., Any]:
        # A decorated function whose tripping call raises CircuitOpen. Gates cannot change what a sync call raises, so
        # this does without the pipeline.
        if kind == "stream":
            msg = f"{self.name}: throw_new_error_on_trip does not work on async generators ({fn.__qualname__})"
            raise TypeError(msg)
        if kind != "coroutine":

            @functools.wraps(fn)
            def guarded(*args: Any, **kwargs: Any) -> Any:
                return self.call(fn, *args, **kwargs)

            return guarded

        @functools.wraps(fn)
        async def guarded_async(*args: Any, **kwargs: Any) -> Any:
            return await self.call_async(fn, *args, **kwargs)

        return guarded_async

    async def call_async(self, func: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """`call` for an async function. Works in tornado's coroutines too, where `yield` awaits it."""
        ticket = self._enter_alone(Call(args, kwargs), func)
        try:
            result = await func(*args, **kwargs)
        except BaseException as exc:
            self._leave(ticket, exc)
        self.settle(ticket, judge_result(self.judge_result, result))
        return result

    # By hand

    def open(self) -> bool:
        """Open the circuit now, for as long as one failure would. Returns `throw_new_error_on_trip`."""
        self._by_hand("open", always=True)
        return self._throw is not False

    def half_open(self) -> None:
        """Let probes through now."""
        self._by_hand("half-open", always=True)

    def close(self) -> None:
        """Close the circuit and forget all counts. Listeners hear of it even if it was closed."""
        self._by_hand("closed", always=True)

    def is_system_error(self, exception: BaseException) -> bool:
        """Whether `exception` counts as a failure, as far as `exclude` says."""
        return not self._matches(exception, self._exclude, "exclude", broken=False)

    # Listeners and exclusions

    @property
    def listeners(self) -> tuple[Any, ...]:
        """The listeners."""
        return self._listeners

    def add_listener(self, listener: pybreaker.CircuitBreakerListener) -> None:
        """Have `listener` told from now on."""
        self.add_listeners(listener)

    def add_listeners(self, *listeners: pybreaker.CircuitBreakerListener) -> None:
        """Have all of them told from now on."""
        with self._lock:
            self._listeners = (*self._listeners, *listeners)
            self._doors()

    def remove_listener(self, listener: pybreaker.CircuitBreakerListener) -> None:
        """Tell `listener` no more.

        Raises:
            ValueError: it is none of the listeners.
        """
        with self._lock:
            self._listeners = _without(self._listeners, listener)
            self._doors()

    @property
    def excluded_exceptions(self) -> tuple[Exclusion, ...]:
        """What counts as a success: exception types, and functions of an exception."""
        return self._exclude

    def add_excluded_exception(self, exception: Exclusion) -> None:
        """Count `exception` as a success from now on."""
        self.add_excluded_exceptions(exception)

    def add_excluded_exceptions(self, *exceptions: Exclusion) -> None:
        """Count all of them as successes from now on."""
        with self._lock:
            self._exclude = (*self._exclude, *exceptions)

    def remove_excluded_exception(self, exception: Exclusion) -> None:
        """Count `exception` as a failure again.

        Raises:
            ValueError: it is not excluded.
        """
        with self._lock:
            self._exclude = _without(self._exclude, exception)


def _without(items: tuple[Any, ...], item: Any) -> tuple[Any, ...]:
    remaining = list(items)
    remaining.remove(item)
    return tuple(remaining)
