"""The circuit itself: states, probes, and the gate's two ends. `guardrails.gates.breaker` builds it and says more."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from guardrails.core import events, outcome
from guardrails.core.clock import Clock
from guardrails.core.fixed import fixed
from guardrails.core.guard import Call, Gate, Position
from guardrails.core.kinds import kind_of
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Layer
from guardrails.gates.breaker.break_duration import BreakDuration, Fixed
from guardrails.gates.breaker.face import NORMAL, PYBREAKER, CircuitFace, State, state_name
from guardrails.gates.breaker.pybreaker_face import Exclusion, PybreakerFace, told
from guardrails.gates.breaker.shared_state import SharedState
from guardrails.gates.breaker.windows import ConsecutiveFailures, Rule

if TYPE_CHECKING:
    import pybreaker

P = ParamSpec("P")
R = TypeVar("R")

_DETAIL = {
    "open": "the circuit is open after too many failures",
    "half_open": "the circuit is half-open and all its probes are taken",
    "forced_open": "the circuit was opened by hand",
    "tripped": "this call's failure opened the circuit",
}

_log = logging.getLogger("guardrails.breaker")
_FREE: AbstractContextManager[object] = nullcontext()


class _Ticket:
    """A call that was let in: in which generation, as a probe until when, and when it began if that matters."""

    __slots__ = ("first", "generation", "lease_ends", "started", "tripped")

    def __init__(self, generation: int, lease_ends: float = 0.0, started: float | None = None) -> None:
        self.generation = generation
        self.lease_ends = lease_ends
        self.started = started
        self.first: float | None = None  # when the first item of a stream came
        self.tripped = False


@fixed(
    "exclude",
    "state_storage",
    "storage_refresh",
    "throw_new_error_on_trip",
    "failure_rate",
    "slow_after",
    "slow_rate",
    "min_calls",
    "window",
    "window_seconds",
    "failure_on",
    "clock",
)
class Breaker(CircuitFace, PybreakerFace, Layer, Gate):
    """One dependency's circuit. Build it with `breaker(...)`, which documents the arguments."""

    positions = (Position.BREAKER,)

    def __init__(
        self,
        *,
        name: str,
        rule: Rule,
        open_for: BreakDuration,
        success_threshold: int,
        probes: int,
        probe_lease: float,
        half_open_max: float | None,
        slow_after: float | None,
        failure_if: Callable[[Any], bool] | None,
        failure_on: Iterable[Exclusion] | None,
        exclude: Iterable[Exclusion],
        listeners: Sequence[pybreaker.CircuitBreakerListener],
        shared: SharedState | None,
        throw_new_error_on_trip: bool | None,
        clock: Clock,
    ) -> None:
        from guardrails.gates.breaker.refusal import CircuitOpen  # noqa: PLC0415 - see that module

        self.name = name
        self._probes = probes
        self._probe_lease = probe_lease
        self._half_open_max = half_open_max
        self._success_threshold = success_threshold
        self._rule = rule
        self._open_for = open_for
        self._slow_after = slow_after
        self.times_first = slow_after is not None
        self.failure_if = failure_if
        self.judges = failure_if is not None
        self._failure_on = None if failure_on is None else tuple(failure_on)
        self._exclude = tuple(exclude)
        self._listeners = tuple(listeners)
        self.reads_call = bool(listeners)  # one that is added later gets no arguments of what was guarded before
        self._shared = shared
        self._throw = throw_new_error_on_trip
        self._clock = clock
        self._refusal = CircuitOpen
        # Re-entrant: the garbage collector may finalise a guarded generator, and so settle a call, in the middle of our
        # own code.
        self._lock = threading.RLock()
        self._state: State = "closed"
        self._generation = 0
        self._since = 0.0  # when it was opened, or became half-open
        self._seconds = open_for.length if isinstance(open_for, Fixed) else 60.0  # how long this opening lasts
        self._times = 0
        self._probing: set[_Ticket] = set()
        self._probe_successes = 0
        self._current = _Ticket(0)  # in the closed state all calls share one
        # The fast path. `_door` is what every call gets, or None if there is more to do on entering than that;
        # `_quiet` is the ticket whose success changes nothing, or None.
        self._door: _Ticket | None = None
        self._quiet: _Ticket | None = None
        if shared is not None:
            self._adopt(clock.now())
        self._doors()

    @property
    def probes(self) -> int:
        """Calls let through while half-open."""
        return self._probes

    @property
    def probe_lease(self) -> float:
        """Seconds after which a probe that has not ended gives its place back."""
        return self._probe_lease

    @property
    def half_open_max(self) -> float | None:
        """Seconds after which a half-open circuit opens again; None for no limit."""
        return self._half_open_max

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        rule, time = self._rule.describe(), self._open_for.describe()
        return f"breaker {self.name!r}: {rule}, for {time}, then {self._probes} probe(s)"

    def __repr__(self) -> str:
        return f"<breaker {self.name!r} {self._state}>"

    @overload
    def __call__(self, fn: Callable[P, R], /) -> Callable[P, R]: ...
    @overload
    def __call__(self, /, **options: bool) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
    def __call__(self, fn: Any = None, /, **options: Any) -> Any:
        """Guard a function: ``@circuit``, or ``@circuit()`` as pybreaker allows, whose only option is
        ``__pybreaker_call_async=True``.
        """
        is_async = options.pop("__pybreaker_call_async", False)
        if options:
            msg = f"{self.name} decorates a function; it takes no argument {next(iter(options))!r}"
            raise TypeError(msg)
        if fn is None:
            return functools.partial(self.__call__, __pybreaker_call_async=True) if is_async else self.__call__
        if is_async:
            return functools.wraps(fn)(functools.partial(self.call_async, fn))
        return self._throwing(fn, kind_of(fn)) if self._throw else super().__call__(fn)

    # The contract

    def try_enter(self, call: Call) -> _Ticket:
        """Let the call in, or raise `CircuitOpen`. Never waits."""
        ticket = self._door
        if ticket is None:
            if self._state == "open" and self._shared is None:
                # An outage refuses thousands of calls a second: two numbers are read without the lock. If the circuit
                # moves meanwhile, this call came before that.
                wait = self._since + self._seconds - self._clock.now()
                if wait > 0:
                    if events.sinks:
                        events.emit(events.CallRejected(self.name, "open", wait))
                    raise self._refusal(self.name, reason="open", retry_after=wait, detail=_DETAIL["open"])
            ticket = self._enter(call, None) if self._listeners else self._let_in(call, None)
        if events.sinks:
            events.emit(events.CallAdmitted(self.name, 0.0))
        return ticket

    def settle(self, ticket: _Ticket, outcome: Outcome) -> None:
        """Count the outcome, unless the circuit has moved on since the call was let in."""
        if ticket is not self._quiet or outcome.kind != "success":
            if self._listeners:
                with self._lock:
                    self._count(ticket, outcome)
            else:
                self._count(ticket, outcome)
        if events.sinks:
            events.emit(events.CallSettled(self.name, outcome.kind))

    def first_item(self, ticket: _Ticket) -> None:
        """A stream is as slow as its first item."""
        ticket.first = self._clock.now()

    def judge_result(self, result: Any) -> Outcome:
        """The outcome of a call that returned `result`: a failure if `failure_if` says so."""
        if self.failure_if is not None and self.failure_if(result):
            return Outcome("failure")
        return outcome.classify_result(result)

    def _in_turn(self) -> AbstractContextManager[object]:
        # Held across a decision and the listeners that are notified of it, so that they are called one at a time and in
        # the order of the decisions. It is the circuit's own lock: two locks could be taken in either order.
        return self._lock if self._listeners else _FREE

    # Entering

    def _enter_alone(self, call: Call, func: Callable[..., Any] | None) -> _Ticket:
        # For who wants to know whether its own call tripped: a ticket that no other call shares.
        ticket = self._enter(call, func, alone=True)
        if events.sinks:
            events.emit(events.CallAdmitted(self.name, 0.0))
        return ticket

    def _enter(self, call: Call, func: Callable[..., Any] | None, *, alone: bool = False) -> _Ticket:
        with self._in_turn():
            return self._let_in(call, func, alone=alone)

    def _let_in(self, call: Call, func: Callable[..., Any] | None, *, alone: bool = False) -> _Ticket:
        changes: list[tuple[State, State]] = []
        refused: tuple[str, float | None] | None = None
        with self._lock:
            now = self._clock.now()
            if self._shared is not None:
                self._shared.look(now)
                changes += self._adopt(now)
            if self._state == "half-open" and self._half_open_max is not None:
                ended = self._since + self._half_open_max
                if ended <= now:
                    changes.append((self._move("open", since=ended, seconds=self._seconds), "open"))
            ticket = self._current
            if self._state == "open":
                wait = self._since + self._seconds - now
                if wait > 0:
                    refused = ("open", wait)
                else:
                    changes.append((self._move("half-open", since=now), "half-open"))
            elif self._state == "forced-open":
                refused = ("forced_open", None)
            if self._state == "half-open":
                for probe in tuple(self._probing):
                    if probe.lease_ends <= now:
                        self._probing.discard(probe)
                if len(self._probing) + self._probe_successes >= self._probes:
                    refused = ("half_open", min((probe.lease_ends for probe in self._probing), default=now) - now)
                else:
                    ticket = _Ticket(self._generation, now + self._probe_lease, now)
                    self._probing.add(ticket)
            elif alone or self._slow_after is not None:
                ticket = _Ticket(self._generation, 0.0, now)
        for old, new in changes:
            self._changed(old, new)
        if refused is not None:
            reason, seconds = refused
            if events.sinks:
                events.emit(events.CallRejected(self.name, reason, seconds))
            raise self._refusal(self.name, reason=reason, retry_after=seconds, detail=_DETAIL[reason])
        for listener in self._listeners:
            told(listener.before_call, self, func, *(call.args or ()), **(call.kwargs or {}))
        return ticket

    def _tripped_error(self, exc: BaseException) -> BaseException:  # noqa: ARG002
        return self._refusal(
            self.name, reason="tripped", retry_after=self.snapshot().retry_after, detail=_DETAIL["tripped"]
        )

    # Settling

    def _count(self, ticket: _Ticket, outcome: Outcome) -> None:
        failed, ignored = self._verdict(outcome)
        trips, closed, success = False, None, not failed and not ignored
        if self._shared is not None and self._state == "half-open":
            self._follow()  # a probe may end long after another process has decided
        with self._lock:
            now = self._clock.now()
            if ticket.generation != self._generation or self._state == "disabled":
                pass  # of an earlier generation
            elif self._state == "half-open":
                # All calls of this generation are probes. One whose lease has ended has no place to give back, but its
                # end counts: else a circuit whose calls take longer than a lease would never close.
                if ignored:
                    self._probing.discard(ticket)
                else:
                    slow = self._is_slow(ticket, now)
                    self._rule.record(now, failed=failed, slow=slow)
                    trips = failed or slow  # it keeps its place until the circuit has opened, so that nobody takes it
                    if not trips and self._probe_succeeded(ticket):
                        closed = self._move("closed")
            elif not ignored:
                reached = self._rule.record(now, failed=failed, slow=self._is_slow(ticket, now))
                trips = reached and self._state == "closed"
                self._doors()
        if failed:  # before the change of state that it may cause, as pybreaker does
            for listener in self._listeners:
                told(listener.failure, self, outcome.exception)
        if trips:
            self._trip(ticket, outcome)
        elif closed is not None:
            self._changed(closed, "closed")
        if success:
            for listener in self._listeners:
                told(listener.success, self)

    def _probe_succeeded(self, ticket: _Ticket) -> bool:
        # Under the lock. Whether it was the last that was needed.
        self._probing.discard(ticket)
        self._probe_successes += 1
        successes = self._probe_successes
        if self._shared is not None:
            successes = max(successes, self._shared.probe_succeeded())
        return successes >= self._success_threshold

    def _trip(self, ticket: _Ticket, outcome: Outcome) -> None:
        seconds = self._break(outcome, self._times + 1)
        with self._lock:
            if ticket.generation != self._generation:
                return  # another call was faster
            old = self._move("open", seconds=seconds)
            ticket.tripped = True
        self._changed(old, "open")

    def _is_slow(self, ticket: _Ticket, now: float) -> bool:
        if self._slow_after is None or ticket.started is None:
            return False
        answered = now if ticket.first is None else ticket.first
        return answered - ticket.started >= self._slow_after

    def _verdict(self, outcome: Outcome) -> tuple[bool, bool]:
        # Whether it failed, and whether it counts for nothing.
        if outcome.kind not in ("failure", "throttled"):
            return False, outcome.kind == "ignored"
        exc = outcome.exception
        if exc is None:
            return True, False
        # pybreaker's meaning: a business error shows that the dependency works.
        if self._exclude and self._matches(exc, self._exclude, "exclude", broken=False):
            return False, False
        if self._failure_on is not None and not self._matches(exc, self._failure_on, "failure_on", broken=True):
            return False, False
        return True, False

    def _matches(self, exc: BaseException, tests: Iterable[Exclusion], argument: str, *, broken: bool) -> bool:
        try:
            return any(isinstance(exc, test) if isinstance(test, type) else test(exc) for test in tests)
        except Exception:  # a broken test must not cost the count, or a probe its place: it is logged
            _log.exception("a function in %s of %s failed; the error counts as a failure", argument, self.name)
            return broken

    def _break(self, outcome: Outcome, times: int) -> float:
        # Outside the lock: it may be the user's function.
        try:
            return self._open_for.seconds(times, outcome)
        except Exception:
            _log.exception("open_for of %s failed; the circuit opens for %g s", self.name, self._seconds)
            return self._seconds

    # Moving

    def _move(
        self, new: State, *, since: float | None = None, seconds: float | None = None, share: bool = True
    ) -> State:
        # Under the lock.
        old, self._state = self._state, new
        self._generation += 1
        self._current = _Ticket(self._generation)
        self._probing = set()
        self._probe_successes = 0
        self._since = self._clock.now() if since is None else since
        if new == "open":
            self._times += 1
            self._seconds = self._seconds if seconds is None else seconds
        if self._shared is not None and share and new in NORMAL:
            self._shared.moved(new)
        if new not in ("open", "half-open", "forced-open"):
            self._rule.clear()
            self._times = 0
        self._doors()
        return old

    def _adopt(self, now: float) -> list[tuple[State, State]]:
        # Under the lock: follow what another breaker wrote to the storage.
        shared = self._shared
        if shared is None or not shared.settled or self._state not in NORMAL:
            return []
        new: State = shared.state if shared.state in NORMAL else "closed"  # type: ignore[assignment]
        age = shared.age if new == "open" else 0.0
        # Not known when it was opened: pybreaker lets a probe through at once.
        since = now - (self._seconds if age is None else max(0.0, age))
        if new == self._state:
            if new == "open":
                self._since = since
            return []
        return [(self._move(new, since=since, share=False), new)]

    def _follow(self) -> None:
        # Between calls: see what others have written.
        shared = self._shared
        if shared is None:
            return
        with self._in_turn():
            with self._lock:
                now = self._clock.now()
                shared.look(now)
                changes = self._adopt(now)
            for old, new in changes:
                self._changed(old, new)

    def _doors(self) -> None:
        # Under the lock, after every change of what the fast path rests on.
        plain = self._state in ("closed", "disabled", "metrics-only") and not self._listeners and self._shared is None
        self._door = self._current if plain and (self._slow_after is None or self._state == "disabled") else None
        rule = self._rule
        calm = self._state == "disabled" or (type(rule) is ConsecutiveFailures and not rule.failures)
        self._quiet = self._door if calm else None

    def _changed(self, old: State, new: State, *, always: bool = False) -> None:
        if old == new and not always:
            return
        if events.sinks and old != new:
            events.emit(events.BreakerChanged(self.name, old, new, self._seconds if new == "open" else None))
        before, after = state_name(PYBREAKER.get(old, old)), state_name(PYBREAKER.get(new, new))
        for listener in self._listeners:
            told(listener.state_change, self, before, after)
