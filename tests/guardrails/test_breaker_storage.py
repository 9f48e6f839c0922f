"""A storage that may block (Redis, one's own) is touched beside the calls, never by them."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

import pybreaker
import pytest

from guardrails.core.guard import Call
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.errors import CircuitOpen
from guardrails.gates.breaker import breaker
from guardrails.gates.breaker.shared_state import MOST_WRITES

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
