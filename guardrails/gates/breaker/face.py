"""What a circuit shows of itself, and what may be set and done to it by hand."""

from __future__ import annotations

from collections.abc import Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from guardrails.core.clock import Clock
from guardrails.core.outcome import IGNORED, Outcome
from guardrails.gates.breaker.break_duration import BreakDuration, Fixed, break_duration
from guardrails.gates.breaker.shared_state import STATES, SharedFailures, SharedState
from guardrails.gates.breaker.windows import ConsecutiveFailures, Counts, FailureCount, Rule

State = Literal["closed", "open", "half-open", "forced-open", "disabled", "metrics-only"]

#: The states that the circuit comes to by itself.
NORMAL = STATES
#: What pybreaker would call the others.
PYBREAKER: dict[State, State] = {"forced-open": "open", "disabled": "closed", "metrics-only": "closed"}


class StateName(str):
    """A state: its name, which pybreaker's states have as `name`."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Itself, as a plain string."""
        return str(self)


_NAMES: dict[str, StateName] = {name: StateName(name) for name in (*NORMAL, "forced-open", "disabled", "metrics-only")}


def state_name(state: State) -> StateName:
    """`state`, with a `name`."""
    return _NAMES[state]


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """A breaker at one moment.

    Attributes:
        name: the breaker's.
        state: as `Breaker.state`.
        calls, failures, slow: what its rule holds; for a row of failures, `calls` are those failures.
        failure_rate, slow_rate: shares of `calls`; None when there are none.
        open_since: seconds since it was opened; None unless it is open.
        retry_after: seconds until a probe is let through, 0.0 if that is due; None unless it is open.
        probes_in_flight, probe_successes: of this time in half-open.
        times_opened: openings in a row since it was last closed.
    """

    name: str
    state: State
    calls: int
    failures: int
    slow: int
    failure_rate: float | None
    slow_rate: float | None
    open_since: float | None
    retry_after: float | None
    probes_in_flight: int
    probe_successes: int
    times_opened: int


class CircuitFace:
    """The part of `Breaker` that callers look at and turn by hand. `Breaker` has what it builds on."""

    name: str
    _probes: int
    _lock: Any
    _clock: Clock
    _state: State
    _rule: Rule
    _shared: SharedState | None
    _open_for: BreakDuration
    _since: float
    _seconds: float
    _times: int
    _probing: Sized
    _probe_successes: int
    _success_threshold: int

    if TYPE_CHECKING:

        def _break(self, outcome: Outcome, times: int) -> float: ...
        def _follow(self) -> None: ...
        def _in_turn(self) -> AbstractContextManager[object]: ...
        def _move(self, new: State, *, seconds: float | None = None) -> State: ...
        def _changed(self, old: State, new: State, *, always: bool = False) -> None: ...

    # What it is now

    @property
    def state(self) -> StateName:
        """``closed``, ``open`` or ``half-open``; by hand ``forced-open``, ``disabled`` or ``metrics-only``. An open
        circuit becomes half-open with the first call after its time. A string, whose `name` is the same, as pybreaker
        has it.
        """
        if self._shared is not None:
            self._follow()
        return _NAMES[self._state]

    @state.setter
    def state(self, new: str) -> None:
        """As `close`, `open` and `half_open`, by the name of the state."""
        if new not in NORMAL:
            msg = f"state must be one of {', '.join(NORMAL)}, not {new!r}"
            raise ValueError(msg)
        self._by_hand(new, always=True)  # type: ignore[arg-type]

    @property
    def current_state(self) -> str:
        """`state`, in pybreaker's three words."""
        if self._shared is not None and self._state in NORMAL and self._shared.settled:
            self._shared.look(self._clock.now())
            return self._shared.state
        return PYBREAKER.get(self._state, self._state)

    @property
    def fail_counter(self) -> int:
        """Failures that the rule holds at present."""
        return self._counts().failures

    @property
    def success_counter(self) -> int:
        """Probes that have succeeded since it became half-open."""
        if self._shared is None:
            return self._probe_successes
        with self._lock:
            self._shared.look(self._clock.now())
            return self._shared.success_counter

    @property
    def probes_in_flight(self) -> int:
        """Probes that are running."""
        return len(self._probing)

    @property
    def fail_max(self) -> int:
        """Failures that open it. Set, it holds from the next failure on.

        Raises:
            AttributeError: it opens at a rate, not at a number.
        """
        return self._counting().limit

    @fail_max.setter
    def fail_max(self, number: int) -> None:
        rule = self._counting()
        rule.limit = whole("fail_max", number)

    @property
    def reset_timeout(self) -> float:
        """Seconds that it stays open: the fixed number, else those of the last opening. Set, it holds at once."""
        return self._open_for.length if isinstance(self._open_for, Fixed) else self._seconds

    @reset_timeout.setter
    def reset_timeout(self, seconds: float) -> None:
        fixed = break_duration(seconds, "reset_timeout")
        with self._lock:
            self._open_for = fixed
            if isinstance(fixed, Fixed):
                self._seconds = fixed.length

    @property
    def open_for(self) -> float:
        """`reset_timeout`."""
        return self.reset_timeout

    @property
    def success_threshold(self) -> int:
        """Probes that must succeed. Set above `probes`, it raises that too."""
        return self._success_threshold

    @success_threshold.setter
    def success_threshold(self, threshold: int) -> None:
        self._success_threshold = whole("success_threshold", threshold)
        self._probes = max(self._probes, threshold)

    def snapshot(self) -> BreakerSnapshot:
        """Everything at one moment."""
        with self._lock:
            now = self._clock.now()
            calls, failures, slow = self._rule.counts(now)
            opened = self._state == "open"
            return BreakerSnapshot(
                name=self.name,
                state=self._state,
                calls=calls,
                failures=failures,
                slow=slow,
                failure_rate=failures / calls if calls else None,
                slow_rate=slow / calls if calls else None,
                open_since=now - self._since if opened or self._state == "forced-open" else None,
                retry_after=max(0.0, self._since + self._seconds - now) if opened else None,
                probes_in_flight=len(self._probing),
                probe_successes=self._probe_successes,
                times_opened=self._times,
            )

    # By hand

    def reset(self) -> None:
        """Close the circuit, whatever its state, and forget all counts."""
        self._by_hand("closed")

    def enable(self) -> None:
        """Back to normal after `force_open`, `disable` or `metrics_only`: closed, with no counts. Else nothing."""
        if self._state in ("forced-open", "disabled", "metrics-only"):
            self.reset()

    def force_open(self) -> None:
        """Refuse every call (``reason="forced_open"``, no `retry_after`) until `enable` or `reset`."""
        self._by_hand("forced-open")

    def disable(self) -> None:
        """Let every call in and count nothing, until `enable` or `reset`."""
        self._by_hand("disabled")

    def metrics_only(self) -> None:
        """Let every call in and count, but never open, until `enable` or `reset`."""
        self._by_hand("metrics-only")

    def _by_hand(self, new: State, *, always: bool = False) -> None:
        with self._in_turn():
            seconds = self._break(IGNORED, self._times + 1)
            with self._lock:
                old = self._move(new, seconds=seconds)
            self._changed(old, new, always=always)

    def _counts(self) -> Counts:
        with self._lock:
            now = self._clock.now()
            if self._shared is not None:
                self._shared.look(now)
            return self._rule.counts(now)

    def _counting(self) -> ConsecutiveFailures | FailureCount | SharedFailures:
        if not isinstance(self._rule, ConsecutiveFailures | FailureCount | SharedFailures):
            msg = f"{self.name} opens at a rate: it has no fail_max"
            raise AttributeError(msg)  # noqa: TRY004 - what reading an absent attribute raises
        return self._rule


def whole(argument: str, value: object) -> int:
    """`value`, a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        msg = f"{argument} takes a whole number of at least 1, not {value!r}"
        raise ValueError(msg)
    return value
