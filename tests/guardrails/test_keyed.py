from __future__ import annotations

import threading

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.core.guard import Call, Gate, Position
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.errors import CircuitOpen
from guardrails.gates.admit import admit
from guardrails.gates.breaker import breaker
from guardrails.gates.keyed import keyed
from guardrails.gates.timeout import timeout

FAILURE = Outcome("failure", ValueError("down"))


def call(host):
    return Call((host,), {})


def hosts(max_keys=2, **options):
    return keyed(lambda host: breaker(name=host, fail_max=1, **options), key=lambda host: host, max_keys=max_keys)


def run(guards, host, outcome=SUCCESS):
    guards.settle(guards.try_enter(call(host)), outcome)


def test_each_key_has_a_guard_of_its_own(clock):
    guards = hosts(clock=clock)
    run(guards, "a", FAILURE)
    run(guards, "b")
    with pytest.raises(CircuitOpen) as caught:
        guards.try_enter(call("a"))
    assert caught.value.guard == "a"
    assert (guards.guard_of("a").state, guards.guard_of("b").state, len(guards)) == ("open", "closed", 2)
    assert "a" in guards
    assert guards.guard_of("a") is guards.guard_of("a")


def test_the_least_recently_used_goes_first():
    guards = hosts()
    for host in ("a", "b", "a", "c"):
        run(guards, host)
    assert guards.keys() == ["a", "c"]


def test_an_open_one_goes_after_all_closed_ones():
    guards = hosts(max_keys=3)
    run(guards, "sick", FAILURE)
    for host in ("a", "b", "c", "d"):
        run(guards, host)
    assert guards.keys() == ["sick", "c", "d"]
    for host in ("c", "d", "e"):
        run(guards, host, FAILURE)
    assert guards.keys() == ["c", "d", "e"]


def test_one_with_calls_in_flight_stays_and_goes_when_they_have_ended():
    guards = hosts(max_keys=1)
    first, second = guards.try_enter(call("a")), guards.try_enter(call("b"))
    assert guards.keys() == ["a", "b"]
    held = guards.guard_of("a")
    guards.settle(second, SUCCESS)
    assert guards.keys() == ["a"]
    assert guards.guard_of("a") is held
    guards.settle(first, SUCCESS)
    assert guards.keys() == ["a"]
    run(guards, "b")
    assert guards.keys() == ["b"]


def test_a_refusal_leaves_no_call_behind():
    guards = hosts(max_keys=1)
    run(guards, "a", FAILURE)
    with pytest.raises(CircuitOpen):
        guards.try_enter(call("a"))
    run(guards, "b")
    assert guards.keys() == ["b"]


@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=60))
def test_it_never_holds_more_than_its_keys_and_those_in_use(max_keys, steps):
    guards = hosts(max_keys)
    running = []
    for number, enters in steps:
        if enters or not running:
            guards_before = {host: guards.guard_of(host) for _, host in running}
            running.append((guards.try_enter(call(number)), number))
            assert all(guards.guard_of(host) is guard for host, guard in guards_before.items())
        else:
            ticket, _ = running.pop(number % len(running))
            guards.settle(ticket, IGNORED)
        assert len(guards) <= max(max_keys, len({host for _, host in running}) + 1)
    for ticket, _ in running:
        guards.settle(ticket, SUCCESS)
    assert len(guards) <= max_keys
    assert all(entry.calls == 0 for entry in guards._entries.values())


def test_one_guard_a_key_for_many_threads():
    made, start = [], threading.Barrier(8)

    def factory(key):
        made.append(key)
        return breaker(name=key)

    guards = keyed(factory, key=lambda host: host)

    def caller():
        start.wait()
        for _ in range(50):
            run(guards, "a")

    threads = [threading.Thread(target=caller) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["a"]


@pytest.mark.anyio
async def test_a_waiting_call_keeps_its_guard_and_a_cancelled_one_gives_it_back(clock, idle, memory):
    guards = keyed(
        lambda host: admit(concurrency=1, name=host, clock=clock, sampler=memory), key=lambda host: host, max_keys=1
    )

    @guards
    async def hang(host):
        await anyio.sleep_forever()

    @guards
    async def work(host):
        return host

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hang, "a")
        await idle()
        tasks.start_soon(work, "a")
        await idle()
        assert guards.guard_of("a").waiting == 1
        assert await work("b") == "b"
        assert guards.keys() == ["a"]
        tasks.cancel_scope.cancel()
    assert guards._entries["a"].calls == 0
    assert await work("a") == "a"
    assert (guards.guard_of("a").in_flight, guards.guard_of("a").waiting) == (0, 0)


def test_a_thread_waits_for_its_turn(memory):
    guards = keyed(lambda host: admit(concurrency=1, sampler=memory), key=lambda host, wait: host)
    inside, go_on, done = threading.Event(), threading.Event(), []

    @guards
    def work(host, wait):
        if wait:
            inside.set()
            go_on.wait()
        done.append(wait)

    first = threading.Thread(target=work, args=("a", True))
    first.start()
    inside.wait()
    second = threading.Thread(target=work, args=("a", False))
    second.start()
    go_on.set()
    first.join()
    second.join()
    assert done == [True, False]


class Never(Gate):
    """A gate in which every call would have to wait, and waiting fails."""

    name = "never"

    def try_enter(self, call):
        return None

    def enter_blocking(self, call):
        raise RuntimeError("never")

    def settle(self, ticket, outcome):
        raise AssertionError

    def describe(self):
        return "never"


def test_a_failed_wait_leaves_no_call_behind():
    guards = keyed(lambda key: Never(), key=lambda host: host)
    with pytest.raises(RuntimeError, match="never"):
        guards(lambda host: None)("a")
    assert guards._entries["a"].calls == 0


# Misuse


@pytest.mark.parametrize(
    ("args", "options", "error", "named"),
    [
        ((5,), {"key": str}, TypeError, "factory"),
        ((breaker(),), {"key": str}, TypeError, "factory"),
        ((breaker,), {"key": "host"}, TypeError, "key"),
        ((breaker,), {"key": str, "max_keys": 0}, ValueError, "max_keys"),
        ((breaker,), {"key": str, "max_keys": True}, ValueError, "max_keys"),
    ],
)
def test_misuse_names_the_argument(args, options, error, named):
    with pytest.raises(error, match=named):
        keyed(*args, **options)


def test_a_block_has_no_key():
    guards = hosts()
    with pytest.raises(TypeError, match="a block has none"), guards:
        pass
    with guards.guard_of("a"):
        pass


def test_a_key_must_be_hashable():
    guards = keyed(lambda key: breaker(), key=lambda host: [host])
    with pytest.raises(TypeError, match="list, which is not hashable"):
        guards.try_enter(call("a"))


@pytest.mark.parametrize("made", [lambda key: "no gate", lambda key: timeout(1)])
def test_the_factory_makes_gates(made):
    guards = keyed(made, key=lambda host: host)
    with pytest.raises(TypeError, match="factory must return a gate"):
        guards.try_enter(call("a"))
    assert len(guards) == 0


def test_it_describes_itself():
    guards = keyed(lambda key: breaker(), key=str, name="hosts", positions=[Position.BREAKER])
    assert guards.describe() == "keyed 'hosts': a guard for each key, 1000 keys at most"
    assert repr(guards) == "<keyed 'hosts' 0 of 1000 keys>"
    assert guards.positions == (Position.BREAKER,)
