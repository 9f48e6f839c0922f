"""Rules, break durations, switches by hand, the snapshot, and what the fast path may not lose."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import guard
from guardrails.core.guard import Call
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.errors import CircuitOpen
from guardrails.gates.breaker import FromRetryAfter, Growing, breaker
from guardrails.testing import FakeClock
from tests.guardrails.heard import decisions

CALL = Call((), {})
FAILURE = Outcome("failure", ValueError("down"))


def run(circuit, outcome=SUCCESS, *, clock=None, takes=0.0):
    ticket = circuit.try_enter(CALL)
    if clock is not None:
        clock.advance(takes)
    circuit.settle(ticket, outcome)


def refused(circuit):
    with pytest.raises(CircuitOpen) as caught:
        circuit.try_enter(CALL)
    return caught.value


def test_failures_in_a_count_window(clock):
    circuit = breaker(fail_max=2, window=3, clock=clock)
    for outcome in (FAILURE, SUCCESS, SUCCESS, FAILURE, SUCCESS):
        run(circuit, outcome)
    assert circuit.state == "closed"
    run(circuit, FAILURE)
    assert circuit.state == "open"


def test_failures_in_a_time_window(clock):
    circuit = breaker(fail_max=2, window_seconds=10, clock=clock)
    run(circuit, FAILURE)
    clock.advance(11)
    run(circuit, FAILURE)
    assert (circuit.state, circuit.fail_counter) == ("closed", 1)
    run(circuit, FAILURE)
    assert circuit.state == "open"


def test_a_rate_reached_by_a_success_opens_it(clock):
    circuit = breaker(failure_rate=0.5, min_calls=4, clock=clock)
    for outcome in (FAILURE, FAILURE, SUCCESS, SUCCESS):
        run(circuit, outcome)
    assert circuit.state == "open"


def test_slow_calls_open_it_and_a_slow_probe_keeps_it_open(clock):
    circuit = breaker(slow_after=2, slow_rate=0.5, min_calls=2, open_for=10, clock=clock)
    run(circuit, clock=clock, takes=1.9)
    run(circuit, clock=clock, takes=2)
    assert circuit.state == "open"
    clock.advance(10)
    run(circuit, clock=clock, takes=3)
    assert circuit.state == "open"
    clock.advance(10)
    run(circuit, clock=clock, takes=1)
    assert circuit.state == "closed"


def test_results_can_be_failures():
    circuit = breaker(fail_max=2, failure_if=lambda result: result == "bad")
    work = circuit(lambda result: result)
    work("bad"), work("good"), work("bad")
    assert (circuit.state, circuit.fail_counter) == ("closed", 1)
    assert circuit.call(lambda: "bad") == "bad"
    assert circuit.state == "open"


def test_only_failure_on_counts(clock, caplog):
    circuit = breaker(fail_max=2, failure_on=[KeyError, lambda exc: exc.code == 5], clock=clock)
    run(circuit, Outcome("failure", KeyError()))
    with caplog.at_level(logging.ERROR, "guardrails.breaker"):
        run(circuit, Outcome("failure", ValueError()))
    assert circuit.state == "open"
    assert "failure_on" in caplog.text
    circuit = breaker(fail_max=1, failure_on=[KeyError], clock=clock)
    run(circuit, FAILURE)
    assert circuit.state == "closed"


# For how long


def test_it_stays_open_longer_each_time_until_it_was_closed(clock):
    circuit = breaker(fail_max=1, open_for=Growing(10, cap=35, jitter=0), clock=clock)
    for seconds in (10, 20, 35, 35):
        run(circuit, FAILURE)
        assert refused(circuit).retry_after == seconds
        clock.advance(seconds)
    run(circuit)
    run(circuit, FAILURE)
    assert refused(circuit).retry_after == 10


@given(st.floats(0.1, 100), st.floats(1.1, 5), st.floats(100, 1e6), st.floats(0, 1), st.integers(1, 10_000))
def test_a_growing_break_stays_within_its_bounds(first, factor, cap, jitter, times):
    for chance in (0.0, 0.5, 1.0):
        growing = Growing(first, factor=factor, cap=cap, jitter=jitter, random=lambda chance=chance: chance)
        exact = min(cap, first * factor ** min(times - 1, 400))
        assert growing.seconds(times, FAILURE) == pytest.approx(exact * (1 - jitter * chance))


def test_it_stays_open_as_long_as_the_dependency_asks_for(clock):
    circuit = breaker(fail_max=1, open_for=FromRetryAfter(otherwise=7, cap=100), clock=clock)
    for asked, seconds in ((20.0, 20.0), (None, 7.0), (0.0, 7.0), (5000.0, 100.0)):
        run(circuit, Outcome("throttled", ValueError(), asked))
        assert refused(circuit).retry_after == seconds
        circuit.reset()


def test_the_outcome_can_decide(clock, caplog):
    circuit = breaker(fail_max=1, open_for=lambda outcome: {"throttled": 3, "failure": "no"}[outcome.kind], clock=clock)
    run(circuit, Outcome("throttled", ValueError()))
    assert refused(circuit).retry_after == circuit.reset_timeout == 3
    circuit.reset()
    with caplog.at_level(logging.ERROR, "guardrails.breaker"):
        run(circuit, FAILURE)
    assert refused(circuit).retry_after == 3
    assert "open_for of breaker failed" in caplog.text


def test_half_open_does_not_last_for_ever(clock):
    circuit = breaker(fail_max=1, open_for=10, half_open_max=5, probe_lease=60, clock=clock)
    run(circuit, FAILURE)
    clock.advance(10)
    hung = circuit.try_enter(CALL)
    clock.advance(4)
    assert refused(circuit).reason == "half_open"
    clock.advance(2)
    error = refused(circuit)
    assert (error.reason, error.retry_after, circuit.state) == ("open", 9, "open")
    circuit.settle(hung, SUCCESS)
    assert circuit.state == "open"


def test_half_open_ends_exactly_at_its_time(clock):
    circuit = breaker(fail_max=1, open_for=10, half_open_max=5, probe_lease=60, clock=clock)
    run(circuit, FAILURE)
    clock.advance(10)
    circuit.try_enter(CALL)
    clock.advance(5)
    assert (refused(circuit).retry_after, circuit.state) == (10, "open")


# By hand


def test_force_open_until_enabled(clock):
    circuit = breaker(clock=clock)
    circuit.enable()
    circuit.force_open()
    clock.advance(1e6)
    error = refused(circuit)
    assert (error.reason, error.retry_after, circuit.current_state) == ("forced_open", None, "open")
    circuit.enable()
    run(circuit)
    assert circuit.state == "closed"


@pytest.mark.parametrize(("switch", "failures"), [("disable", 0), ("metrics_only", 3)])
def test_disabled_counts_nothing_and_metrics_only_never_opens(clock, switch, failures):
    circuit = breaker(fail_max=2, clock=clock)
    getattr(circuit, switch)()
    for _ in range(3):
        run(circuit, FAILURE)
    assert (circuit.current_state, circuit.fail_counter) == ("closed", failures)
    circuit.enable()
    assert (circuit.state, circuit.fail_counter) == ("closed", 0)


def test_a_snapshot(clock):
    circuit = breaker(name="api", failure_rate=0.5, min_calls=4, open_for=10, clock=clock)
    assert circuit.snapshot().failure_rate is None
    for outcome in (SUCCESS, FAILURE, SUCCESS, IGNORED, FAILURE):
        run(circuit, outcome)
    clock.advance(4)
    seen = circuit.snapshot()
    assert (seen.name, seen.state, seen.calls, seen.failures, seen.failure_rate) == ("api", "open", 4, 2, 0.5)
    assert (seen.open_since, seen.retry_after, seen.times_opened) == (4, 6, 1)


def test_a_success_on_the_fast_path_reads_no_clock_and_a_failure_leaves_it():
    class Untouched(FakeClock):
        def now(self):
            raise AssertionError

    circuit = breaker(clock=Untouched())
    first, second = circuit.try_enter(CALL), circuit.try_enter(CALL)
    assert first is second
    with decisions() as seen:
        circuit.settle(first, SUCCESS)
    assert len(seen) == 1


def test_rates_have_no_fail_max():
    with pytest.raises(AttributeError, match="fail_max"):
        _ = breaker(failure_rate=0.5).fail_max


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"window": 5, "window_seconds": 5}, ValueError, "exclude each other"),
        ({"window": 3}, ValueError, "fail_max=5 can never be reached"),
        ({"slow_after": 5}, ValueError, "slow_after and slow_rate"),
        ({"slow_rate": 0.5}, ValueError, "slow_after and slow_rate"),
        ({"failure_if": 5}, TypeError, "failure_if"),
        ({"half_open_max": 0}, ValueError, "half_open_max"),
        ({"window_seconds": "5"}, TypeError, "window_seconds"),
    ],
)
def test_misuse_names_the_argument(options, error, named):
    with pytest.raises(error, match=named):
        breaker(**options)


@pytest.mark.parametrize("options", [{"first": 0}, {"factor": 1}, {"cap": 5}, {"jitter": 2}])
def test_a_growing_break_names_its_argument(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Growing(**{"first": 10, **options})


def test_it_says_how_long_it_opens():
    told = [
        breaker(open_for=open_for).describe().split(", ", 1)[1]
        for open_for in (Growing(5), FromRetryAfter(), lambda outcome: 1.0)
    ]
    assert told == [
        "for 5 s, growing to 300 s, then 1 probe(s)",
        "for as long as it asks for or 60 s, then 1 probe(s)",
        "for a time that depends on the outcome, then 1 probe(s)",
    ]


def test_calls_of_pybreakers_methods_are_events_too():
    circuit = breaker(fail_max=1)
    with decisions() as seen:
        circuit.call(lambda: 7)
        with pytest.raises(CircuitOpen):
            circuit.call(lambda: 1 / 0)
        for attempt in (circuit.try_enter, lambda call: circuit.call(len, ())):
            with pytest.raises(CircuitOpen):
                attempt(CALL)
    assert [type(event).__name__ for event in seen] == [
        "CallAdmitted", "CallSettled", "CallAdmitted", "BreakerChanged", "CallSettled", "CallRejected", "CallRejected",
    ]  # fmt: skip


@pytest.mark.anyio
async def test_a_predicate_on_results_holds_inside_a_pipeline():
    circuit = breaker(fail_max=1, failure_if=lambda result: result == "bad")

    @guard(circuit)
    async def call():
        return "bad"

    assert await call() == "bad"
    assert circuit.state == "open"
