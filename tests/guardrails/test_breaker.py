from __future__ import annotations

import logging
import threading

import anyio
import pybreaker
import pytest

from guardrails.core.guard import Call
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.errors import CircuitOpen, QueueFull
from guardrails.gates.breaker import breaker

CALL = Call((), {})
FAILURE = Outcome("failure", ValueError("down"))
THROTTLED = Outcome("throttled", ValueError("429"))


def run(circuit, outcome=SUCCESS):
    circuit.settle(circuit.try_enter(CALL), outcome)


def opened(clock, **options):
    circuit = breaker(fail_max=1, open_for=10, clock=clock, **options)
    run(circuit, FAILURE)
    assert circuit.state == "open"
    return circuit


def refused(circuit):
    with pytest.raises(CircuitOpen) as caught:
        circuit.try_enter(CALL)
    return caught.value


# Closed


def test_it_opens_after_fail_max_failures_in_a_row(clock):
    circuit = breaker(fail_max=3, clock=clock)
    for outcome in (FAILURE, FAILURE, SUCCESS, FAILURE, FAILURE):
        run(circuit, outcome)
    assert (circuit.state, circuit.fail_counter) == ("closed", 2)
    run(circuit, FAILURE)
    assert circuit.state == circuit.current_state == "open"


def test_it_opens_at_the_failure_rate(clock):
    circuit = breaker(failure_rate=0.5, min_calls=4, window=10, clock=clock)
    for outcome in (FAILURE, FAILURE, SUCCESS):
        run(circuit, outcome)
    assert circuit.state == "closed"
    run(circuit, FAILURE)
    assert circuit.state == "open"


def test_throttled_counts_as_a_failure_and_ignored_as_nothing(clock):
    circuit = breaker(fail_max=2, clock=clock)
    for outcome in (FAILURE, IGNORED, THROTTLED):
        run(circuit, outcome)
    assert circuit.state == "open"


def test_bare_it_trips_with_the_documented_defaults():
    @breaker
    def work():
        raise ValueError("down")

    for _ in range(5):
        with pytest.raises(ValueError, match="down"):
            work()
    with pytest.raises(CircuitOpen) as caught:
        work()
    assert caught.value.guard.endswith("work")
    assert 59 < caught.value.retry_after <= 60


# Open


def test_open_refuses_at_once_with_a_true_retry_after(clock):
    circuit = opened(clock, name="api")
    clock.advance(4)
    error = refused(circuit)
    assert (error.guard, error.reason, error.retry_after) == ("api", "open", 6.0)
    assert "open after too many failures" in str(error)
    clock.advance(error.retry_after)
    run(circuit)
    assert circuit.state == "closed"


def test_a_refusal_does_not_prolong_the_wait(clock):
    circuit = opened(clock)
    for _ in range(10):
        clock.advance(0.75)
        refused(circuit)
    clock.advance(2.5)
    circuit.try_enter(CALL)


def test_calls_let_in_before_it_opened_change_nothing(clock):
    circuit = breaker(fail_max=1, open_for=10, clock=clock)
    early = [circuit.try_enter(CALL) for _ in range(3)]
    circuit.settle(early[0], FAILURE)
    clock.advance(5)
    circuit.settle(early[1], FAILURE)
    circuit.settle(early[2], SUCCESS)
    assert circuit.state == "open"
    assert refused(circuit).retry_after == 5.0


@pytest.mark.parametrize("late", [SUCCESS, FAILURE], ids=["success", "failure"])
def test_a_call_that_outlives_a_whole_cycle_is_not_counted(clock, late):
    circuit = breaker(fail_max=2, open_for=10, clock=clock)
    slow = circuit.try_enter(CALL)
    run(circuit, FAILURE)
    run(circuit, FAILURE)
    clock.advance(10)
    run(circuit)
    run(circuit, FAILURE)
    circuit.settle(slow, late)
    assert (circuit.state, circuit.fail_counter) == ("closed", 1)


# Half-open


@pytest.mark.parametrize("probes", [1, 3])
def test_half_open_lets_exactly_its_probes_through(clock, probes):
    circuit = opened(clock, success_threshold=probes, probe_lease=30)
    clock.advance(10)
    tickets = [circuit.try_enter(CALL) for _ in range(probes)]
    clock.advance(4)
    error = refused(circuit)
    assert (error.reason, error.retry_after, circuit.probes_in_flight) == ("half_open", 26.0, probes)
    assert "all its probes are taken" in str(error)
    for ticket in tickets:
        assert circuit.state == "half-open"
        circuit.settle(ticket, SUCCESS)
    assert circuit.state == "closed"
    assert circuit.probes_in_flight == 0


def test_probes_that_succeeded_keep_their_place(clock):
    circuit = opened(clock, success_threshold=2)
    clock.advance(10)
    first, second = circuit.try_enter(CALL), circuit.try_enter(CALL)
    circuit.settle(first, SUCCESS)
    refused(circuit)
    circuit.settle(second, SUCCESS)
    assert circuit.state == "closed"


def test_a_failed_probe_opens_it_again_for_the_full_time(clock):
    circuit = opened(clock)
    clock.advance(12)
    run(circuit, FAILURE)
    assert circuit.state == "open"
    assert refused(circuit).retry_after == 10.0


def test_one_failed_probe_is_enough_and_its_neighbour_changes_nothing(clock):
    circuit = opened(clock, success_threshold=2)
    clock.advance(10)
    first, second = circuit.try_enter(CALL), circuit.try_enter(CALL)
    circuit.settle(first, FAILURE)
    clock.advance(3)
    circuit.settle(second, FAILURE)
    assert refused(circuit).retry_after == 7.0


def test_probes_that_take_longer_than_their_lease_close_it(clock):
    circuit = opened(clock, success_threshold=2, probe_lease=30)
    clock.advance(10)
    probes = []
    for _ in range(4):  # two at once, and as their leases end, two more
        probes.append(circuit.try_enter(CALL))
        if len(probes) == 2:
            clock.advance(30)
    assert circuit.probes_in_flight == 2
    clock.advance(10)
    circuit.settle(probes[0], SUCCESS)
    assert (circuit.state, circuit.success_counter) == ("half-open", 1)
    refused(circuit)  # its place had been taken, and a success keeps one
    circuit.settle(probes[1], SUCCESS)
    assert circuit.state == "closed"
    circuit.settle(probes[2], FAILURE)  # of an earlier generation
    assert (circuit.state, circuit.fail_counter) == ("closed", 0)


def test_a_probe_that_fails_after_its_lease_opens_it_again(clock):
    circuit = opened(clock, probe_lease=30)
    clock.advance(10)
    late = circuit.try_enter(CALL)
    clock.advance(30)
    later = circuit.try_enter(CALL)
    circuit.settle(late, FAILURE)
    assert refused(circuit).retry_after == 10
    circuit.settle(later, SUCCESS)
    assert circuit.state == "open"


def test_late_probes_of_breakers_that_share_a_storage_count_together(clock):
    storage = pybreaker.CircuitMemoryStorage("half-open")
    one, two = (breaker(success_threshold=2, state_storage=storage, clock=clock) for _ in range(2))
    late = [one.try_enter(CALL), two.try_enter(CALL)]
    clock.advance(30)
    one.try_enter(CALL)
    one.settle(late[0], SUCCESS)
    assert (one.state, two.success_counter) == ("half-open", 1)
    two.settle(late[1], SUCCESS)
    assert (one.state, two.state, storage.state) == ("closed", "closed", "closed")


def test_a_late_probe_does_not_close_what_another_breaker_opened_meanwhile(clock):
    storage = pybreaker.CircuitMemoryStorage("half-open")
    one, two = (breaker(open_for=60, state_storage=storage, clock=clock) for _ in range(2))
    late = one.try_enter(CALL)
    run(two, FAILURE)
    one.settle(late, SUCCESS)
    assert (one.state, two.state, storage.state) == ("open", "open", "open")


def test_a_probe_that_is_cancelled_after_its_lease_gives_no_place_of_anothers_back(clock):
    circuit = opened(clock, probe_lease=30)
    clock.advance(10)
    late = circuit.try_enter(CALL)
    clock.advance(30)
    circuit.try_enter(CALL)
    circuit.settle(late, IGNORED)
    refused(circuit)


def test_an_ignored_probe_gives_its_place_back_and_decides_nothing(clock):
    circuit = opened(clock)
    clock.advance(10)
    run(circuit, IGNORED)
    assert (circuit.state, circuit.probes_in_flight) == ("half-open", 0)
    run(circuit)
    assert circuit.state == "closed"


def test_a_probe_refused_further_in_gives_its_place_back(clock):
    circuit = opened(clock)
    clock.advance(10)

    @circuit
    def work():
        raise QueueFull("inner")

    with pytest.raises(QueueFull):
        work()
    assert (circuit.state, circuit.probes_in_flight) == ("half-open", 0)


def test_more_probes_than_successes_needed(clock):
    circuit = opened(clock, success_threshold=2, probes=3)
    clock.advance(10)
    tickets = [circuit.try_enter(CALL) for _ in range(3)]
    circuit.settle(tickets[0], SUCCESS)
    circuit.settle(tickets[1], SUCCESS)
    assert circuit.state == "closed"
    circuit.settle(tickets[2], FAILURE)
    assert (circuit.state, circuit.fail_counter) == ("closed", 0)


def test_reset_closes_it_and_forgets(clock):
    circuit = breaker(fail_max=2, clock=clock)
    run(circuit, FAILURE)
    circuit.reset()
    run(circuit, FAILURE)
    assert circuit.state == "closed"
    run(circuit, FAILURE)
    circuit.reset()
    run(circuit)
    assert (circuit.state, circuit.fail_counter) == ("closed", 0)


# Exclusions


def test_excluded_errors_count_as_successes(clock):
    class Business(Exception):
        pass

    circuit = breaker(fail_max=2, exclude=[Business, lambda exc: str(exc) == "mine"], clock=clock)
    for error in (ValueError("x"), Business(), ValueError("x"), ValueError("mine"), ValueError("x")):
        run(circuit, Outcome("failure", error))
    assert (circuit.state, circuit.fail_counter) == ("closed", 1)


def test_an_excluded_error_closes_a_half_open_circuit(clock):
    circuit = opened(clock, exclude=[KeyError])
    clock.advance(10)
    run(circuit, Outcome("failure", KeyError()))
    assert circuit.state == "closed"


def test_a_broken_exclusion_costs_neither_the_count_nor_the_probe(clock, caplog):
    circuit = breaker(name="api", fail_max=1, open_for=10, exclude=[lambda exc: exc.code == 5], clock=clock)
    with caplog.at_level(logging.ERROR, "guardrails.breaker"):
        run(circuit, FAILURE)
        assert circuit.state == "open"
        clock.advance(10)
        run(circuit, FAILURE)
    assert (circuit.state, circuit.probes_in_flight) == ("open", 0)
    assert "a function in exclude of api failed" in caplog.text


# pybreaker's listeners


class Recorder(pybreaker.CircuitBreakerListener):
    def __init__(self):
        self.seen = []

    def before_call(self, cb, func, *args, **kwargs):
        self.seen.append(("before", cb.name))

    def success(self, cb):
        self.seen.append(("success", cb.current_state))

    def failure(self, cb, exc):
        self.seen.append(("failure", type(exc).__name__))

    def state_change(self, cb, old_state, new_state):
        self.seen.append((old_state.name, new_state.name))


def test_listeners_hear_what_pybreaker_tells_them(clock):
    listener = Recorder()
    circuit = breaker(name="api", fail_max=1, open_for=10, listeners=[listener], clock=clock)
    run(circuit)
    run(circuit, FAILURE)
    refused(circuit)
    clock.advance(10)
    run(circuit)
    assert listener.seen == [
        ("before", "api"),
        ("success", "closed"),
        ("before", "api"),
        ("failure", "ValueError"),
        ("closed", "open"),
        ("open", "half-open"),
        ("before", "api"),
        ("half-open", "closed"),
        ("success", "closed"),
    ]


def test_a_broken_listener_is_logged_and_the_call_goes_on(clock, caplog):
    class Broken(pybreaker.CircuitBreakerListener):
        def before_call(self, *args, **kwargs):
            raise ValueError("listener is broken")

        state_change = success = failure = before_call

    circuit = breaker(fail_max=1, listeners=[Broken()], clock=clock)
    with caplog.at_level(logging.ERROR, "guardrails.breaker"):
        assert circuit(lambda: 7)() == 7
        run(circuit, FAILURE)
    assert circuit.state == "open"
    assert "listener is broken" in caplog.text


def test_a_listener_may_use_the_breaker(clock):
    class Resets(pybreaker.CircuitBreakerListener):
        def state_change(self, cb, old_state, new_state):
            if new_state.name == "open":
                cb.reset()

    circuit = breaker(fail_max=1, listeners=[Resets()], clock=clock)
    run(circuit, FAILURE)
    assert circuit.state == "closed"


# Threads


def test_half_open_admits_exactly_its_probes_of_many_threads(clock):
    circuit = opened(clock, success_threshold=3, probes=3)
    clock.advance(10)
    start, tickets, refusals = threading.Barrier(16), [], []

    def caller():
        start.wait()
        try:
            tickets.append(circuit.try_enter(CALL))
        except CircuitOpen as error:
            refusals.append(error)

    threads = [threading.Thread(target=caller) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(tickets), len(refusals), circuit.probes_in_flight) == (3, 13, 3)


# Misuse


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"fail_max": 0}, ValueError, "fail_max"),
        ({"fail_max": True}, ValueError, "fail_max"),
        ({"fail_max": "5"}, ValueError, "fail_max"),
        ({"success_threshold": 0}, ValueError, "success_threshold"),
        ({"min_calls": 0}, ValueError, "min_calls"),
        ({"window": 0}, ValueError, "window"),
        ({"probes": 0}, ValueError, "probes"),
        ({"open_for": 0}, ValueError, "open_for"),
        ({"reset_timeout": -1}, ValueError, "open_for"),
        ({"open_for": float("nan")}, ValueError, "open_for"),
        ({"open_for": "15"}, TypeError, "open_for"),
        ({"probe_lease": 0}, ValueError, "probe_lease"),
        ({"probe_lease": None}, TypeError, "probe_lease"),
        ({"failure_rate": 0}, ValueError, "failure_rate"),
        ({"failure_rate": 1.1}, ValueError, "failure_rate"),
        ({"failure_rate": "half"}, ValueError, "failure_rate"),
        ({"failure_rate": 0.5, "min_calls": 11, "window": 10}, ValueError, "min_calls=11 can never be reached"),
        ({"success_threshold": 3, "probes": 2}, ValueError, "probes=2 could never close"),
    ],
)
def test_misuse_names_the_argument(options, error, named):
    with pytest.raises(error, match=named):
        breaker(**options)


def test_it_takes_no_positional_argument_but_a_function():
    with pytest.raises(TypeError, match="keywords only"):
        breaker(5)


def test_open_for_wins_over_reset_timeout(clock):
    circuit = breaker(fail_max=1, reset_timeout=60, open_for=3, clock=clock)
    run(circuit, FAILURE)
    assert refused(circuit).retry_after == 3


def test_it_describes_itself():
    assert breaker(name="api").describe() == "breaker 'api': opens after 5 failures in a row, for 60 s, then 1 probe(s)"
    assert repr(breaker(name="api")) == "<breaker 'api' closed>"


@pytest.mark.anyio
async def test_a_cancelled_probe_gives_its_place_back(clock, idle):
    circuit = opened(clock)
    clock.advance(10)

    @circuit
    async def hang():
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hang)
        await idle()
        assert circuit.probes_in_flight == 1
        tasks.cancel_scope.cancel()
    assert (circuit.state, circuit.probes_in_flight) == ("half-open", 0)
