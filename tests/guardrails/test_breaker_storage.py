"""A storage that may block (Redis, one's own) is touched beside the calls, never by them."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pybreaker
import pytest

from guardrails.core.guard import Call
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.errors import CircuitOpen
from guardrails.events import BreakerStorageFailed, BreakerStorageRecovered
from guardrails.gates.breaker import breaker
from guardrails.gates.breaker.shared_state import MOST_WRITES, NO_ANSWER
from guardrails.testing import capture_events

CALL = Call((), {})
FAILURE = Outcome("failure", ValueError("down"))


class Remote(pybreaker.CircuitBreakerStorage):
    """A storage elsewhere: it answers while `up` is set, and remembers which threads touched it."""

    def __init__(self):
        super().__init__("remote")
        self.memory = pybreaker.CircuitMemoryStorage("closed")
        self.up = threading.Event()
        self.up.set()
        self.broken = False
        self.threads = set()

    def _reach(self):
        self.up.wait()
        self.threads.add(threading.current_thread().name)
        if self.broken:
            raise ConnectionError("gone")
        return self.memory

    state = property(lambda self: self._reach().state, lambda self, value: setattr(self._reach(), "state", value))
    opened_at = property(
        lambda self: self._reach().opened_at, lambda self, value: setattr(self._reach(), "opened_at", value)
    )
    counter = property(lambda self: self._reach().counter)
    success_counter = property(lambda self: self._reach().success_counter)

    def increment_counter(self):
        self._reach().increment_counter()

    def reset_counter(self):
        self._reach().reset_counter()

    def increment_success_counter(self):
        self._reach().increment_success_counter()

    def reset_success_counter(self):
        self._reach().reset_success_counter()


def run(circuit, outcome=SUCCESS):
    circuit.settle(circuit.try_enter(CALL), outcome)


def arrived():
    for thread in threading.enumerate():
        if thread.name == "guardrails-breaker-storage":
            thread.join()


def test_calls_do_not_wait_for_it_and_its_state_arrives_later(clock):
    storage = Remote()
    one = breaker(fail_max=2, open_for=10, state_storage=storage, clock=clock)
    two = breaker(fail_max=2, open_for=10, state_storage=storage, clock=clock)
    storage.threads.clear()
    storage.up.clear()
    run(one, FAILURE)
    run(one, FAILURE)
    with pytest.raises(CircuitOpen):
        one.try_enter(CALL)
    run(two)
    storage.up.set()
    arrived()
    assert storage.threads == {"guardrails-breaker-storage"}
    assert (storage.memory.state, storage.memory.counter) == ("open", 2)
    clock.advance(1)
    with suppress(CircuitOpen):  # it may know already, or ask now
        run(two)
    arrived()
    with pytest.raises(CircuitOpen):
        two.try_enter(CALL)
    arrived()


def test_a_broken_storage_is_logged_and_the_breaker_goes_on_alone(clock, caplog):
    storage = Remote()
    circuit = breaker(fail_max=1, open_for=10, state_storage=storage, clock=clock)
    storage.broken = True
    with caplog.at_level(logging.ERROR, "guardrails.breaker"):
        run(circuit, FAILURE)
        arrived()
    assert "state storage failed" in caplog.text
    assert circuit.state == "open"


def test_what_a_broken_storage_has_missed_reaches_it_later(clock, caplog):
    storage = Remote()
    circuit = breaker(fail_max=10_000, state_storage=storage, clock=clock)
    storage.broken = True
    with caplog.at_level(logging.WARNING, "guardrails.breaker"):
        for _ in range(MOST_WRITES + 10):
            run(circuit, FAILURE)
            arrived()
        storage.broken = False
        clock.advance(1)
        run(circuit, IGNORED)
        arrived()
    assert storage.memory.counter == MOST_WRITES
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]  # not one for each call


# Out of reach


@pytest.fixture
def seen():
    with capture_events(BreakerStorageFailed, BreakerStorageRecovered) as events:
        yield events


FAILED, RECOVERED = BreakerStorageFailed("api", "ConnectionError"), BreakerStorageRecovered("api")


def test_a_breaker_is_built_while_its_storage_is_down_and_heals(clock, seen):
    storage = Remote()
    storage.broken = True
    circuit = breaker(name="api", fail_max=2, open_for=10, state_storage=storage, clock=clock)
    assert (circuit.state, seen) == ("closed", [FAILED])
    run(circuit)
    arrived()
    run(circuit, FAILURE)
    arrived()
    run(circuit, FAILURE)
    arrived()
    with pytest.raises(CircuitOpen):
        circuit.try_enter(CALL)
    storage.broken = False
    clock.advance(1)
    with pytest.raises(CircuitOpen):
        circuit.try_enter(CALL)
    arrived()
    assert seen == [FAILED, RECOVERED]
    assert (storage.memory.state, storage.memory.counter) == ("open", 2)


def test_a_breaker_is_built_while_its_storage_hangs(clock, seen):
    storage = Remote()
    storage.up.clear()
    circuit = breaker(name="api", state_storage=storage, storage_refresh=0.01, clock=clock)
    assert seen == [BreakerStorageFailed("api", "TimeoutError")]
    run(circuit)
    storage.memory.state, storage.memory.opened_at = "open", datetime.now(UTC)
    storage.up.set()
    arrived()
    assert seen[1:] == [RECOVERED]
    with pytest.raises(CircuitOpen):
        circuit.try_enter(CALL)


def test_a_storage_that_hangs_later_is_reported_once(clock, seen):
    storage = Remote()
    circuit = breaker(name="api", state_storage=storage, clock=clock)
    storage.up.clear()
    run(circuit, FAILURE)
    for _ in range(3):
        clock.advance(NO_ANSWER - 0.1)
        run(circuit)
        assert seen in ([], [BreakerStorageFailed("api", "TimeoutError")])
    assert seen
    storage.up.set()
    arrived()
    assert seen[1:] == [RECOVERED]


def test_a_storage_that_cannot_be_made_yet(clock, seen):
    made = []

    def make():
        made.append(None)
        if len(made) < 3:
            raise ConnectionError("no server")
        storage = pybreaker.CircuitMemoryStorage("open")
        storage.opened_at = datetime.now(UTC)
        return storage

    circuit = breaker(name="api", open_for=10, state_storage=make, clock=clock)
    assert seen == [FAILED]
    for _ in range(2):
        clock.advance(1)
        run(circuit)
        arrived()
    with pytest.raises(CircuitOpen):
        circuit.try_enter(CALL)
    clock.advance(1)
    with pytest.raises(CircuitOpen):
        circuit.try_enter(CALL)
    arrived()
    assert (len(made), seen) == (3, [FAILED, RECOVERED])


OPERATIONS = ["state", "counter", "success_counter", "opened_at"]


@pytest.mark.parametrize(
    "operation",
    [*OPERATIONS, "increment_counter", "reset_counter", "increment_success_counter", "reset_success_counter"],
)
@pytest.mark.parametrize("inline", [False, True])
def test_no_operation_that_fails_reaches_a_call(clock, seen, monkeypatch, operation, inline):
    class Broken(pybreaker.CircuitMemoryStorage if inline else Remote):
        pass

    def fails(*args):
        raise ConnectionError("gone")

    storage = Broken("closed") if inline else Broken()
    memory = storage if inline else storage.memory
    circuit = breaker(name="api", fail_max=2, open_for=10, state_storage=storage, clock=clock)
    monkeypatch.setattr(Broken, operation, property(fails, fails) if operation in OPERATIONS else fails)
    for outcome in (SUCCESS, FAILURE, SUCCESS, FAILURE, FAILURE):
        run(circuit, outcome)
        arrived()
    with pytest.raises(CircuitOpen):
        circuit.try_enter(CALL)
    arrived()
    clock.advance(10)
    for where in (memory, circuit._shared):  # by the clock that processes share
        if where.__dict__.get("_opened_at") is not None:
            where._opened_at -= timedelta(seconds=10)
        elif where.__dict__.get("opened_at") is not None:
            where.opened_at -= timedelta(seconds=10)
    run(circuit)
    arrived()
    assert circuit.state == "closed"
    assert seen[0] == FAILED
    monkeypatch.undo()
    clock.advance(1)
    with suppress(CircuitOpen):
        run(circuit)
    arrived()
    assert seen == [FAILED, RECOVERED]


def test_no_thread_to_be_had_is_a_storage_out_of_reach(clock, seen, monkeypatch):
    storage = Remote()
    circuit = breaker(name="api", fail_max=2, state_storage=storage, clock=clock)

    def no_thread(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        run(circuit, FAILURE)
    assert seen == [BreakerStorageFailed("api", "RuntimeError")]
    clock.advance(1)
    run(circuit, FAILURE)
    arrived()
    assert seen[1:] == [RECOVERED]
    assert (storage.memory.state, storage.memory.counter) == ("open", 2)


def test_a_process_that_was_forked_meanwhile_goes_on_by_itself(clock):
    storage = Remote()
    circuit = breaker(fail_max=1, open_for=10, state_storage=storage, clock=clock)
    storage.up.clear()
    run(circuit, FAILURE)
    shared = circuit._shared
    thread = shared._thread
    # In the child there is no such thread, and what it was to do is not done.
    gone = threading.Thread(target=len, args=("",))
    gone.start()
    gone.join()
    shared._thread = gone
    clock.advance(1)
    with pytest.raises(CircuitOpen):
        circuit.try_enter(CALL)
    assert shared._thread is not gone
    storage.up.set()
    thread.join()
    arrived()
    assert storage.memory.state == "open"


@pytest.mark.parametrize("seconds", [1, 3600])
def test_a_time_without_a_zone_is_utc(seconds):
    storage = pybreaker.CircuitMemoryStorage("open")
    storage.opened_at = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=seconds)
    circuit = breaker(fail_max=1, reset_timeout=60, state_storage=storage)
    if seconds < 60:
        with pytest.raises(CircuitOpen):
            circuit.try_enter(CALL)
    else:
        circuit.settle(circuit.try_enter(CALL), SUCCESS)
        assert circuit.state == "closed"
