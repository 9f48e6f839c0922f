"""Circuit breaker: stops calling a dependency that fails, and finds out carefully whether it is back.

::

              the window trips                      open_for seconds have passed
    closed ─────────────────────▶ open ───────────────────────────────▶ half-open
      ▲                             ▲          a probe fails                 │
      │                             └────────────────────────────────────────┤
      └──────────────────────────────────────────────────────────────────────┘
                              `success_threshold` probes succeed

(M. Nygard, "Release It!", 2007. The words and defaults are pybreaker's; its listeners and `exclude` work unchanged.)

* Half-open lets exactly `probes` calls through and refuses the others at once. A probe's place is a lease: one that
  hangs longer than `probe_lease` gives it back. A cancelled probe gives it back immediately.
* Every change of state starts a new generation. A call that ends in a later one than it was let in changes nothing.
* `throttled` (429) counts as a failure: a provider that refuses everything is as good as down. `ignored` counts as
  nothing.

Threads: the lock guards a change of state or a count, never a call, a listener or a sink. In the closed state, entering
takes no lock and makes no system call.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from guardrails.core import events
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.guard import Call, Gate, Position
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Layer
from guardrails.gates.windows import ConsecutiveFailures, FailureRate, Window

if TYPE_CHECKING:
    import pybreaker

P = ParamSpec("P")
R = TypeVar("R")
State = Literal["closed", "open", "half-open"]
Exclusion = type[BaseException] | Callable[[BaseException], bool]

_log = logging.getLogger("guardrails.breaker")


class _Ticket:
    """A call that was let in: in which generation, and as a probe until when."""

    __slots__ = ("generation", "lease_ends")

    def __init__(self, generation: int, lease_ends: float) -> None:
        self.generation = generation
        self.lease_ends = lease_ends


class Breaker(Layer, Gate):
    """One dependency's circuit. Build it with `breaker(...)`, which documents the arguments."""

    positions = (Position.BREAKER,)

    def __init__(
        self,
        *,
        name: str,
        window: Window,
        open_for: float,
        success_threshold: int,
        probes: int,
        probe_lease: float,
        exclude: Iterable[Exclusion],
        listeners: Sequence[pybreaker.CircuitBreakerListener],
        clock: Clock,
    ) -> None:
        from guardrails.gates.circuit_open import CircuitOpen  # noqa: PLC0415 - see that module

        self.name = name
        self.open_for = open_for
        self.success_threshold = success_threshold
        self.probes = probes
        self.probe_lease = probe_lease
        self._exclude = tuple(exclude)
        self._listeners = tuple(listeners)
        self._clock = clock
        self._window = window
        self._refusal = CircuitOpen
        # Re-entrant: the garbage collector may finalise a guarded generator, and so settle a call, in the middle of our
        # own code.
        self._lock = threading.RLock()
        self._state: State = "closed"
        self._generation = 0
        self._ticket = _Ticket(0, 0.0)  # in the closed state all calls share one
        self._opened_at = 0.0
        self._probing: set[_Ticket] = set()
        self._probe_successes = 0

    # What it is now

    @property
    def state(self) -> State:
        """``closed``, ``open`` or ``half-open``. An open circuit becomes half-open with the first call after its
        time.
        """
        return self._state

    @property
    def current_state(self) -> str:
        """`state`, under pybreaker's name."""
        return self._state

    @property
    def fail_counter(self) -> int:
        """Failures that the window holds at present."""
        return self._window.failures

    @property
    def probes_in_flight(self) -> int:
        """Probes that are running."""
        return len(self._probing)

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        return f"breaker {self.name!r}: {self._window.describe()}, for {self.open_for:g} s, then {self.probes} probe(s)"

    def __repr__(self) -> str:
        return f"<breaker {self.name!r} {self._state}>"

    # The contract

    def try_enter(self, call: Call) -> _Ticket:  # noqa: ARG002 - the contract
        """Let the call in, or raise `CircuitOpen`. Never waits."""
        ticket = self._ticket if self._state == "closed" else self._enter_slow()
        if self._listeners:
            self._tell("before_call", None)
        if events.sinks:
            events.emit(events.CallAdmitted(self.name, 0.0))
        return ticket

    def settle(self, ticket: _Ticket, outcome: Outcome) -> None:
        """Count the outcome, unless the circuit has moved on since the call was let in."""
        kind = outcome.kind
        if self._exclude and kind in ("failure", "throttled") and self._excluded(outcome.exception):
            kind = "success"  # pybreaker's meaning: a business error shows that the dependency works
        if self._listeners and kind in ("failure", "throttled"):
            self._tell("failure", outcome.exception)  # before the change of state that it may cause, as pybreaker does
        if self._state == "closed" and ticket.generation == self._generation:
            if kind == "success":
                if self._window.failures or type(self._window) is not ConsecutiveFailures:
                    with self._lock:
                        self._window.success()
            elif kind != "ignored":
                self._failed(ticket)
        elif kind == "ignored":
            with self._lock:
                self._probing.discard(ticket)
        else:
            self._settle_probe(ticket, failed=kind != "success")
        if self._listeners and kind == "success":
            self._tell("success", None)
        if events.sinks:
            events.emit(events.CallSettled(self.name, outcome.kind))

    # By hand

    def reset(self) -> None:
        """Close the circuit and forget all counts."""
        with self._lock:
            old = self._move("closed")
        self._changed(old, "closed")

    # Inside

    def _enter_slow(self) -> _Ticket:
        now = self._clock.now()
        old: State | None = None
        refused: tuple[str, float] | None = None
        with self._lock:
            if self._state == "open":
                wait = self._opened_at + self.open_for - now
                if wait > 0:
                    refused = ("open", wait)
                else:
                    old = self._move("half-open")
            ticket = self._ticket
            if self._state == "half-open":
                for probe in tuple(self._probing):
                    if probe.lease_ends <= now:
                        self._probing.discard(probe)
                if len(self._probing) + self._probe_successes >= self.probes:
                    wait = min((probe.lease_ends for probe in self._probing), default=now) - now
                    refused = ("half_open", wait)
                else:
                    ticket = _Ticket(self._generation, now + self.probe_lease)
                    self._probing.add(ticket)
        if old is not None:
            self._changed(old, "half-open")
        if refused is not None:
            reason, wait = refused
            if events.sinks:
                events.emit(events.CallRejected(self.name, reason, wait))
            raise self._refusal(self.name, reason=reason, retry_after=wait, detail=_DETAIL[reason])
        return ticket

    def _failed(self, ticket: _Ticket) -> None:
        with self._lock:
            if self._state != "closed" or ticket.generation != self._generation or not self._window.failure():
                return
            old = self._move("open")
        self._changed(old, "open")

    def _settle_probe(self, ticket: _Ticket, *, failed: bool) -> None:
        with self._lock:
            if ticket not in self._probing:
                return  # of an earlier generation, or its lease ran out: somebody else has its place
            self._probing.discard(ticket)
            self._probe_successes += not failed
            if not failed and self._probe_successes < self.success_threshold:
                return
            new: State = "open" if failed else "closed"
            old = self._move(new)
        self._changed(old, new)

    def _move(self, new: State) -> State:
        # Under the lock.
        old, self._state = self._state, new
        self._generation += 1
        self._ticket = _Ticket(self._generation, 0.0)
        self._probing = set()
        self._probe_successes = 0
        self._window.clear()
        if new == "open":
            self._opened_at = self._clock.now()
        return old

    def _changed(self, old: State, new: State) -> None:
        if old == new:
            return
        if events.sinks:
            events.emit(events.BreakerChanged(self.name, old, new, self.open_for if new == "open" else None))
        for listener in self._listeners:
            _guarded_listener(listener.state_change, self, _NamedState(old), _NamedState(new))

    def _tell(self, what: str, exc: BaseException | None) -> None:
        for listener in self._listeners:
            if what == "before_call":
                _guarded_listener(listener.before_call, self, None)
            elif what == "failure":
                _guarded_listener(listener.failure, self, exc)
            else:
                _guarded_listener(listener.success, self)

    def _excluded(self, exc: BaseException | None) -> bool:
        if exc is None:
            return False
        try:
            return any(
                isinstance(exc, exclusion) if isinstance(exclusion, type) else exclusion(exc)
                for exclusion in self._exclude
            )
        except Exception:  # a broken exclusion must not cost the count, or a probe its place: it is logged
            _log.exception("a function in exclude of %s failed; the error counts as a failure", self.name)
            return False


_DETAIL = {
    "open": "the circuit is open after too many failures",
    "half_open": "the circuit is half-open and all its probes are taken",
}


class _NamedState:
    """What a pybreaker listener reads of a state: its name."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _guarded_listener(listener: Callable[..., object], *args: Any) -> None:
    try:
        listener(*args)
    except Exception:  # a broken listener must not become a broken call: it is logged, with its traceback
        _log.exception("a breaker's listener failed")


@overload
def breaker(fn: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def breaker(
    *,
    name: str | None = None,
    fail_max: int = 5,
    reset_timeout: float = 60,
    success_threshold: int = 1,
    exclude: Iterable[Exclusion] = (),
    listeners: Sequence[pybreaker.CircuitBreakerListener] = (),
    failure_rate: float | None = None,
    min_calls: int = 10,
    window: int = 100,
    open_for: float | None = None,
    probes: int | None = None,
    probe_lease: float = 30,
    clock: Clock = SYSTEM_CLOCK,
) -> Breaker: ...
def breaker(
    fn: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    fail_max: int = 5,
    reset_timeout: float = 60,
    success_threshold: int = 1,
    exclude: Iterable[Exclusion] = (),
    listeners: Sequence[pybreaker.CircuitBreakerListener] = (),
    failure_rate: float | None = None,
    min_calls: int = 10,
    window: int = 100,
    open_for: float | None = None,
    probes: int | None = None,
    probe_lease: float = 30,
    clock: Clock = SYSTEM_CLOCK,
) -> Breaker | Callable[P, R]:
    """A circuit breaker for one dependency: `@breaker` bare, or `breaker(name="openai", ...)`.

    Args:
        name: how it calls itself in errors and events; bare, the function's name.
        fail_max: failures in a row that open the circuit. Not used when `failure_rate` is given.
        reset_timeout: seconds that the circuit stays open. `open_for` is another name for it and wins.
        success_threshold: probes that must succeed before the circuit closes.
        exclude: exception types, or functions of an exception, that count as success (business errors).
        listeners: pybreaker's `CircuitBreakerListener` objects. `before_call` gets None for the function.
        failure_rate: share of failures, above 0 and at most 1, of the last `window` calls that opens the circuit.
        min_calls: calls that must be known before `failure_rate` decides.
        window: how many calls `failure_rate` looks back on.
        open_for: see `reset_timeout`.
        probes: calls let through while half-open; by default `success_threshold`.
        probe_lease: seconds after which a probe that has not ended gives its place back.
        clock: for tests.

    Raises:
        ValueError: an argument is out of range. TypeError: it has the wrong type.
    """
    if fn is not None:
        if not callable(fn):
            msg = f"breaker takes keywords only, or decorates a function; got {type(fn).__name__}"
            raise TypeError(msg)
        return breaker(name=getattr(fn, "__qualname__", "breaker"))(fn)
    for argument, value in (
        ("fail_max", fail_max), ("success_threshold", success_threshold), ("min_calls", min_calls), ("window", window),
        ("probes", success_threshold if probes is None else probes),
    ):  # fmt: skip
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            msg = f"{argument} takes a whole number of at least 1, not {value!r}"
            raise ValueError(msg)
    seconds = reset_timeout if open_for is None else open_for
    for argument, duration in (("open_for", seconds), ("probe_lease", probe_lease)):
        if isinstance(duration, bool) or not isinstance(duration, int | float):
            msg = f"{argument} takes a number of seconds, not {type(duration).__name__}"
            raise TypeError(msg)
        if not duration > 0:
            msg = f"{argument} takes a number of seconds above 0, not {duration!r}"
            raise ValueError(msg)
    if failure_rate is not None and (isinstance(failure_rate, str) or not 0 < failure_rate <= 1):
        msg = f"failure_rate takes a share above 0 and at most 1 (0.5 is half of the calls), not {failure_rate!r}"
        raise ValueError(msg)
    if failure_rate is not None and min_calls > window:
        msg = f"min_calls={min_calls} can never be reached: window holds only {window} calls"
        raise ValueError(msg)
    if probes is not None and probes < success_threshold:
        msg = f"probes={probes} could never close the circuit: success_threshold asks for {success_threshold} successes"
        raise ValueError(msg)
    rule: Window = (
        ConsecutiveFailures(fail_max)
        if failure_rate is None
        else FailureRate(failure_rate, size=window, min_calls=min_calls)
    )
    return Breaker(
        name=name or "breaker",
        window=rule,
        open_for=seconds,
        success_threshold=success_threshold,
        probes=success_threshold if probes is None else probes,
        probe_lease=probe_lease,
        exclude=exclude,
        listeners=listeners,
        clock=clock,
    )


__all__ = ["Breaker", "breaker"]
