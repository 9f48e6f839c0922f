"""Builds a breaker from its arguments, and says what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.outcome import Outcome
from guardrails.gates.breaker.break_duration import BreakDuration, break_duration
from guardrails.gates.breaker.circuit import Breaker
from guardrails.gates.breaker.face import whole
from guardrails.gates.breaker.pybreaker_face import Exclusion
from guardrails.gates.breaker.shared_state import SharedFailures, SharedState
from guardrails.gates.breaker.windows import ConsecutiveFailures, CountWindow, FailureCount, Rates, Rule, TimeWindow

if TYPE_CHECKING:
    import pybreaker

P = ParamSpec("P")
R = TypeVar("R")


@overload
def breaker(fn: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def breaker(
    *,
    name: str | None = None,
    fail_max: int = 5,
    reset_timeout: float = 60,
    success_threshold: int = 1,
    exclude: Iterable[Exclusion] | None = (),
    listeners: Sequence[pybreaker.CircuitBreakerListener] | None = (),
    state_storage: pybreaker.CircuitBreakerStorage | Callable[[], pybreaker.CircuitBreakerStorage] | None = None,
    storage_refresh: float = 1,
    throw_new_error_on_trip: bool | None = None,
    failure_rate: float | None = None,
    slow_after: float | None = None,
    slow_rate: float | None = None,
    min_calls: int = 10,
    window: int | None = None,
    window_seconds: float | None = None,
    failure_if: Callable[[Any], bool] | None = None,
    failure_on: Iterable[Exclusion] | None = None,
    open_for: float | BreakDuration | Callable[[Outcome], float] | None = None,
    probes: int | None = None,
    probe_lease: float = 30,
    half_open_max: float | None = None,
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
    exclude: Iterable[Exclusion] | None = (),
    listeners: Sequence[pybreaker.CircuitBreakerListener] | None = (),
    state_storage: pybreaker.CircuitBreakerStorage | Callable[[], pybreaker.CircuitBreakerStorage] | None = None,
    storage_refresh: float = 1,
    throw_new_error_on_trip: bool | None = None,
    failure_rate: float | None = None,
    slow_after: float | None = None,
    slow_rate: float | None = None,
    min_calls: int = 10,
    window: int | None = None,
    window_seconds: float | None = None,
    failure_if: Callable[[Any], bool] | None = None,
    failure_on: Iterable[Exclusion] | None = None,
    open_for: float | BreakDuration | Callable[[Outcome], float] | None = None,
    probes: int | None = None,
    probe_lease: float = 30,
    half_open_max: float | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Breaker | Callable[P, R]:
    """A circuit breaker for one dependency: `@breaker` bare, or `breaker(name="openai", ...)`.

    Args:
        name: how it calls itself in errors and events; bare, the function's name.
        fail_max: failures that open the circuit: in a row; or, if `window` or `window_seconds` is given, among those
            calls. Not used when a rate is given.
        reset_timeout: seconds that the circuit stays open. `open_for` is another name for it and wins.
        success_threshold: probes that must succeed before the circuit closes.
        exclude: exception types, or functions of an exception, that count as success (business errors).
        listeners: pybreaker's `CircuitBreakerListener` objects. `before_call` gets the function from `call` only; in a
            pipeline it gets None, and the arguments.
        state_storage: a pybreaker storage that several breakers share: state, and the failures in a row. Only
            `CircuitMemoryStorage` is used at once; any other is read and written by a thread beside the calls, and what
            other processes did is seen up to `storage_refresh` seconds late. Half-open lets `probes` calls of *each*
            process through. Or a function that makes one, for a storage that cannot be made while its server is down
            (`CircuitRedisStorage` asks its server at once): it is called in that thread, again until it succeeds. A
            storage out of reach delays no call and no construction by more than a second: the breaker goes on alone.
        storage_refresh: see there; seconds.
        throw_new_error_on_trip: whether the call whose failure opens the circuit raises `CircuitOpen`
            (``reason="tripped"``, the call's error as its `__cause__`) and not the call's own error. pybreaker's
            default is True; here it is None: True for pybreaker's own methods, `call` and `calling`, and False for
            decorators,
            blocks and pipelines, since the call's own error says more, and a retry further out has to see it. True
            makes a decorated function do so too, but it then no longer fuses with other guards into one frame, and in
            `guard(...)` it changes nothing.
        failure_rate: share of failures, above 0 and at most 1, that opens the circuit.
        slow_after: seconds from which on a call is slow. Of a stream, the time to its first item counts.
        slow_rate: share of slow calls that opens the circuit; needs `slow_after`. A slow probe opens it again.
        min_calls: calls that must be known before a rate decides.
        window: how many calls it looks back on; with a rate, 100.
        window_seconds: look back on a time and not on a number of calls. It is forgotten in tenths.
        failure_if: a function of what a call returned: true counts as a failure, always for this breaker. It holds for
            the other guards of its pipeline too, unless that has a `classify_result` or they have one of their own.
        failure_on: exception types, or functions of an exception; given, every other exception counts as success.
        open_for: seconds; or `Growing(...)`, `FromRetryAfter(...)` (in `guardrails.gates.breaker`); or a function of
            the `Outcome` that opened it (`ignored` when it was opened by hand) that returns seconds. One that fails is
            logged, and the last opening's time, at first 60 s, holds.
        probes: calls let through while half-open; by default `success_threshold`.
        probe_lease: seconds after which a probe that has not ended gives its place back. It still counts when it ends.
        half_open_max: seconds after which a half-open circuit is open again; by default it waits for ever.
        clock: for tests.

    Raises:
        ValueError: an argument is out of range, or needs another. TypeError: it has the wrong type.
    """
    if fn is not None:
        if not callable(fn):
            msg = f"breaker takes keywords only, or decorates a function; got {type(fn).__name__}"
            raise TypeError(msg)
        return breaker(name=getattr(fn, "__qualname__", "breaker"))(fn)
    probes = success_threshold if probes is None else probes
    for argument, number in (
        ("fail_max", fail_max), ("success_threshold", success_threshold), ("min_calls", min_calls),
        ("window", 1 if window is None else window), ("probes", probes),
    ):  # fmt: skip
        whole(argument, number)
    for argument, seconds in (
        ("probe_lease", probe_lease), ("storage_refresh", storage_refresh),
        ("half_open_max", 1 if half_open_max is None else half_open_max),
        ("slow_after", 1 if slow_after is None else slow_after),
        ("window_seconds", 1 if window_seconds is None else window_seconds),
    ):  # fmt: skip
        _check_seconds(argument, seconds)
    for argument, rate in (("failure_rate", failure_rate), ("slow_rate", slow_rate)):
        if rate is not None and (isinstance(rate, str | bool) or not 0 < rate <= 1):
            msg = f"{argument} takes a share above 0 and at most 1 (0.5 is half of the calls), not {rate!r}"
            raise ValueError(msg)
    if failure_if is not None and not callable(failure_if):
        msg = f"failure_if takes a function of the call's result, not {type(failure_if).__name__}"
        raise TypeError(msg)
    if (slow_after is None) != (slow_rate is None):
        msg = "slow_after and slow_rate need each other: the seconds that are slow, the share that opens the circuit"
        raise ValueError(msg)
    if probes < success_threshold:
        msg = f"probes={probes} could never close the circuit: success_threshold asks for {success_threshold} successes"
        raise ValueError(msg)
    shared = None if state_storage is None else SharedState(state_storage, storage_refresh, name or "breaker")
    return Breaker(
        name=name or "breaker",
        rule=_rule(fail_max, failure_rate, slow_rate, min_calls, window, window_seconds, shared),
        open_for=break_duration(reset_timeout if open_for is None else open_for, "open_for"),
        success_threshold=success_threshold,
        probes=probes,
        probe_lease=probe_lease,
        half_open_max=half_open_max,
        slow_after=slow_after,
        failure_if=failure_if,
        failure_on=failure_on,
        exclude=exclude or (),
        listeners=listeners or (),
        shared=shared,
        throw_new_error_on_trip=throw_new_error_on_trip,
        clock=clock,
    )


def _rule(  # noqa: PLR0917
    fail_max: int,
    failure_rate: float | None,
    slow_rate: float | None,
    min_calls: int,
    size: int | None,
    seconds: float | None,
    shared: SharedState | None,
) -> Rule:
    if size is not None and seconds is not None:
        msg = "window and window_seconds exclude each other: a number of calls, or a time"
        raise ValueError(msg)
    rated = failure_rate is not None or slow_rate is not None
    if not rated and size is None and seconds is None:
        return ConsecutiveFailures(fail_max) if shared is None else SharedFailures(fail_max, shared)
    if size is None:
        size = 100
    window = CountWindow(size) if seconds is None else TimeWindow(seconds)
    if rated:
        if seconds is None and min_calls > size:
            msg = f"min_calls={min_calls} can never be reached: window holds only {size} calls"
            raise ValueError(msg)
        return Rates(window, min_calls=min_calls, failure_rate=failure_rate, slow_rate=slow_rate)
    if seconds is None and fail_max > size:
        msg = f"fail_max={fail_max} can never be reached: window holds only {size} calls"
        raise ValueError(msg)
    return FailureCount(fail_max, window)


def _check_seconds(argument: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{argument} takes a number of seconds, not {type(value).__name__}"
        raise TypeError(msg)
    if not value > 0:
        msg = f"{argument} takes a number of seconds above 0, not {value!r}"
        raise ValueError(msg)
