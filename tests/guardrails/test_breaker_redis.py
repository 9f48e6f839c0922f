"""Breakers that share their state through a real Redis, with pybreaker's own storage for it.

The server listens on a socket in a folder of the test's own, at no port. A breaker's thread is joined where a test
needs what it has read or written; what a call itself does never waits for the server.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress

import pybreaker
import pytest

from guardrails.core.guard import Call
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.errors import CircuitOpen
from guardrails.gates.breaker import breaker
from tests.support import RedisServer

CALL = Call((), {})
FAILURE = Outcome("failure", ValueError("down"))


class Server(RedisServer):
    """With clients, and pybreaker's storages through them."""

    def __init__(self, folder):
        if importlib.util.find_spec("redis") is None:
            pytest.fail("redis is not installed, the client of these tests: pip install --group test")
        self._clients = []
        super().__init__(folder)

    def client(self):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # Without its own retries, which sleep.
        self._clients.append(redis.Redis(unix_socket_path=self.socket, retry=Retry(NoBackoff(), 0)))
        return self._clients[-1]

    def storage(self, name="api"):
        return pybreaker.CircuitRedisStorage("closed", self.client(), namespace=name)

    def close(self):
        self.stop()
        arrived()
        for client in self._clients:
            client.close()


@pytest.fixture
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.close()


@pytest.fixture
def pair(server, clock):
    """Two breakers of one dependency, as two processes would have them."""
    return [breaker(name="api", fail_max=2, open_for=10, state_storage=server.storage(), clock=clock) for _ in range(2)]


def run(circuit, outcome=SUCCESS):
    circuit.settle(circuit.try_enter(CALL), outcome)


def arrived():
    for thread in threading.enumerate():
        if thread.name == "guardrails-breaker-storage":
            thread.join()


def look(circuit, clock):
    """Have it see what the others have written."""
    clock.advance(1)
    with suppress(CircuitOpen):
        run(circuit, IGNORED)
    arrived()
    with suppress(CircuitOpen):
        run(circuit, IGNORED)


def refused(circuit):
    with pytest.raises(CircuitOpen) as caught:
        circuit.try_enter(CALL)
    return caught.value


def time_passes(server, seconds):
    """Processes agree on the wall clock, which this turns back for the opening."""
    server.client().decrby("api:pybreaker:opened_at", seconds)


def test_one_opens_and_the_other_refuses(server, pair, clock):
    one, two = pair
    run(one, FAILURE)
    run(one, FAILURE)
    assert refused(one).reason == "open"
    run(two)  # it does not know yet
    arrived()
    assert server.client().get("api:pybreaker:state") == b"open"
    look(two, clock)
    refusal = refused(two)
    assert refusal.reason == "open"
    assert 7 < refusal.retry_after <= 10  # since the other one opened it; Redis has whole seconds
    newcomer = breaker(name="api", open_for=10, state_storage=server.storage(), clock=clock)
    assert refused(newcomer).reason == "open"


def test_failures_are_counted_together(server, pair, clock):
    one, two = pair
    run(one, FAILURE)
    arrived()
    look(two, clock)
    assert two.fail_counter == 1
    run(two, FAILURE)
    assert refused(two)
    arrived()
    look(one, clock)
    assert refused(one)
    assert server.client().get("api:pybreaker:fail_counter") == b"2"


def test_a_success_of_one_ends_the_row_of_both(pair, clock):
    one, two = pair
    run(one, FAILURE)
    arrived()
    look(two, clock)
    run(two)
    arrived()
    look(one, clock)
    assert one.fail_counter == 0


def test_reset_closes_both(pair, clock):
    one, two = pair
    run(one, FAILURE)
    run(one, FAILURE)
    arrived()
    look(two, clock)
    assert two.state == "open"
    two.reset()
    arrived()
    look(one, clock)
    assert [one.state, two.state] == ["closed", "closed"]
    run(one)
    assert one.fail_counter == 0


@pytest.mark.parametrize("outcome", [SUCCESS, FAILURE])
def test_one_probes_for_both(server, pair, clock, outcome):
    one, two = pair
    run(one, FAILURE)
    run(one, FAILURE)
    arrived()
    look(two, clock)
    time_passes(server, 10)
    look(one, clock)
    assert one.state == "half-open"
    arrived()
    look(two, clock)
    assert two.state == "half-open"
    run(one, outcome)
    arrived()
    look(two, clock)
    state = "closed" if outcome is SUCCESS else "open"
    assert [one.state, two.state] == [state, state]
    if outcome is FAILURE:
        assert 7 < refused(two).retry_after <= 10


def test_pybreakers_own_breaker_shares_it_too(server, clock):
    ours = breaker(name="api", fail_max=2, open_for=10, state_storage=server.storage(), clock=clock)
    theirs = pybreaker.CircuitBreaker(fail_max=2, reset_timeout=10, state_storage=server.storage())
    run(ours, FAILURE)
    run(ours, FAILURE)
    arrived()
    assert theirs.current_state == "open"
    with pytest.raises(pybreaker.CircuitBreakerError):
        theirs.call(len, "x")
    theirs.close()
    look(ours, clock)
    assert ours.state == "closed"


def test_another_process_shares_it(server, clock):
    script = textwrap.dedent("""
        import sys, threading, redis, pybreaker
        from guardrails import breaker

        client = redis.Redis(unix_socket_path=sys.argv[1])
        api = breaker(fail_max=1, open_for=10, state_storage=pybreaker.CircuitRedisStorage("closed", client, "api"))
        try:
            api(lambda: 1 / 0)()
        except ZeroDivisionError:
            print(api.state)
        for thread in threading.enumerate():
            if thread.name == "guardrails-breaker-storage":
                thread.join()
        client.close()
    """)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, server.socket]
    here = breaker(name="api", open_for=10, state_storage=server.storage(), clock=clock)
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout.strip() == "open"
    look(here, clock)
    assert refused(here).reason == "open"


def test_calls_do_not_wait_for_a_server_that_hangs(server, pair, clock):
    one, two = pair
    server.freeze()  # a call that waited for it would wait until the time limit of the test
    run(one)
    run(one, FAILURE)
    run(one, FAILURE)
    assert refused(one).reason == "open"
    clock.advance(5)
    run(two)
    assert one.describe()
    assert [one.state, two.state, one.fail_counter] == ["open", "closed", 2]
    assert any(thread.name == "guardrails-breaker-storage" for thread in threading.enumerate())
    server.thaw()
    arrived()
    look(two, clock)
    assert refused(two).reason == "open"


def test_without_a_server_what_was_known_holds(server, pair, clock, caplog):
    one, _ = pair
    run(one, FAILURE)
    run(one, FAILURE)
    arrived()
    server.stop()
    with caplog.at_level(logging.ERROR, "guardrails.breaker"):
        for _ in range(3):
            look(one, clock)
    assert [record.message for record in caplog.records if record.name == "guardrails.breaker"] == [
        "a breaker's state storage failed; the breaker goes on by itself"
    ]
    assert refused(one).reason == "open"


def test_without_a_server_each_counts_and_opens_alone(server, pair, clock):
    one, two = pair
    server.stop()
    for _ in range(2):
        run(two, FAILURE)
        arrived()
    look(two, clock)
    assert refused(two).reason == "open"
    look(one, clock)
    run(one)


def test_what_happened_meanwhile_reaches_a_server_that_comes_back(server, pair, clock, caplog):
    one, two = pair
    server.stop()
    for _ in range(2):
        run(one, FAILURE)
        arrived()
    server.start()
    with caplog.at_level(logging.WARNING, "guardrails.breaker"):
        look(one, clock)
    assert "state storage is back" in caplog.text
    assert refused(one).reason == "open"
    look(two, clock)
    assert refused(two).reason == "open"


def test_a_server_that_comes_back_is_used_again(server, pair, clock):
    one, two = pair
    server.stop()
    look(one, clock)
    server.start()
    run(one, FAILURE)
    run(one, FAILURE)
    arrived()
    look(two, clock)
    assert refused(two).reason == "open"
