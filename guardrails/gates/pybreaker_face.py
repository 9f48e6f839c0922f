"""What a breaker shows to code written for pybreaker: its words, its listeners and its storages.

Differences, all on purpose: a cancellation and a `KeyboardInterrupt` are nobody's failure; a listener that raises is
logged, and the call goes on; no lock is held across a call or a listener; time is monotonic.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import GeneratorType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from guardrails.core import outcome as outcomes
from guardrails.core.drive import judge_result
from guardrails.core.guard import Call
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.gates.windows import Counts

if TYPE_CHECKING:
    import pybreaker

P = ParamSpec("P")
R = TypeVar("R")
Exclusion = type[BaseException] | Callable[[BaseException], bool]

_log = logging.getLogger("guardrails.breaker")


class NamedState:
    """What a pybreaker listener reads of a state: its name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def told(listener: Callable[..., object], *args: Any, **kwargs: Any) -> None:
    """Call a listener. A broken one must not become a broken call: it is logged, with its traceback."""
    try:
        listener(*args, **kwargs)
    except Exception:
        _log.exception("a breaker's listener failed")


class SharedState:
    """A pybreaker storage, read and written off the hot path.

    `CircuitMemoryStorage` is used at once: it never blocks. Any other storage (`CircuitRedisStorage`, one's own) is
    touched by a short-lived thread only: writes go there in order, and what others wrote is seen up to `refresh`
    seconds late, plus the time of a round trip. Until then this process decides by what it knows. A storage that
    raises is logged, and the breaker goes on alone.
    """

    def __init__(self, storage: pybreaker.CircuitBreakerStorage, refresh: float) -> None:
        import pybreaker  # noqa: PLC0415 - it loads redis and tornado where they are installed

        self.storage = storage
        self.refresh = refresh
        self._inline = isinstance(storage, pybreaker.CircuitMemoryStorage)
        self._lock = threading.RLock()
        self._writes: deque[Callable[[], object]] = deque()
        self._busy = False
        self._looked_at = float("-inf")
        self.state = "closed"
        self.counter = 0
        self.success_counter = 0
        self.opened_at: datetime | None = None
        self._read()  # as pybreaker does: the first look waits, so that a new process starts with the shared state

    @property
    def settled(self) -> bool:
        """Whether everything that was written here has reached the storage, so that what it says is newer."""
        return not self._busy

    @property
    def age(self) -> float | None:
        """Seconds since the circuit was opened, by the wall clock that processes share; None if that is not known."""
        return None if self.opened_at is None else (datetime.now(UTC) - self.opened_at).total_seconds()

    def look(self, now: float) -> None:
        """See to it that what is known is at most `refresh` seconds old. Never waits."""
        if self._inline:
            self._read()
        elif now - self._looked_at >= self.refresh:
            self._looked_at = now
            self._run()

    def failed(self) -> int:
        """Count a failure; the number of failures that is known."""
        self.counter += 1
        self._write(self.storage.increment_counter)
        return self.counter

    def succeeded(self) -> None:
        """End the row of failures."""
        if self.counter:
            self.counter = 0
            self._write(self.storage.reset_counter)

    def probe_succeeded(self) -> int:
        """Count a probe's success; the number of successes that is known."""
        self.success_counter += 1
        self._write(self.storage.increment_success_counter)
        return self.success_counter

    def moved(self, state: str) -> None:
        """Write a new state, with what pybreaker writes beside it."""
        storage = self.storage
        self.state = state
        self.success_counter = 0
        opened_at = datetime.now(UTC) if state == "open" else None

        def write() -> None:
            if opened_at is not None:
                storage.opened_at = opened_at
            storage.reset_success_counter()
            storage.state = state
            if state == "closed":
                storage.reset_counter()

        if opened_at is not None:
            self.opened_at = opened_at
        if state == "closed":
            self.counter = 0
        self._write(write)

    def _write(self, write: Callable[[], object]) -> None:
        if self._inline:
            write()
            self._read()
            return
        self._writes.append(write)
        self._run()

    def _run(self) -> None:
        with self._lock:
            if self._busy:
                return
            self._busy = True
        threading.Thread(target=self._work, name="guardrails-breaker-storage", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                while self._writes:
                    self._writes.popleft()()
                self._read()
            except Exception:
                _log.exception("a breaker's state storage failed; the breaker goes on by itself")
            with self._lock:
                if not self._writes:
                    self._busy = False
                    return

    def _read(self) -> None:
        storage = self.storage
        state, counter, successes = storage.state, storage.counter, storage.success_counter
        opened_at = storage.opened_at
        if not self._writes:  # else what is known here is newer than what was just read
            self.state, self.counter, self.success_counter, self.opened_at = state, counter, successes, opened_at


class SharedFailures:
    """Trips at `limit` failures in a row, of all that share the storage together."""

    def __init__(self, limit: int, shared: SharedState) -> None:
        self.limit = limit
        self.shared = shared

    def record(self, now: float, *, failed: bool, slow: bool = False) -> bool:  # noqa: ARG002 - the protocol
        """Note a call; whether the row is long enough."""
        if failed:
            return self.shared.failed() >= self.limit
        self.shared.succeeded()
        return False

    def counts(self, now: float) -> Counts:  # noqa: ARG002 - the protocol
        """The row."""
        return Counts(self.shared.counter, self.shared.counter, 0)

    def clear(self) -> None:
        """Forget the row."""
        self.shared.succeeded()

    def describe(self) -> str:
        """The rule in a few words."""
        return f"opens after {self.limit} failures in a row, counted together"


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
            msg = f"call takes sync functions; decorate {getattr(func, '__qualname__', func)!r}, which is async"
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
            ticket = self._enter_alone(Call(args, kwargs), fn)
            try:
                result = await fn(*args, **kwargs)
            except BaseException as exc:
                self._leave(ticket, exc)
            self.settle(ticket, judge_result(self.judge_result, result))
            return result

        return guarded_async

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
