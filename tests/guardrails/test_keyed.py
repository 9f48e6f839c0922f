from __future__ import annotations

import gc
import threading
import time
import weakref

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import fallback, guard, limiter, retry
from guardrails.core.guard import Call, Gate, Position
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.errors import CircuitOpen, QueueFull
from guardrails.gates.admit import admit
from guardrails.gates.breaker import Breaker, breaker
from guardrails.gates.bulkhead import bulkhead
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
    with pytest.raises(TypeError, match="keyed: key must be hashable, and this list is not"):
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


# What is in use by hand


def crowd_out(guards, number=20):
    for other in range(number):
        run(guards, f"other {other}")


def test_a_guard_in_use_by_hand_stays_the_guard_of_its_key():
    guards = keyed(lambda key: bulkhead(1, queue=0, name=key), key=lambda key: key, max_keys=2)
    with guards.guard_of("a"):
        crowd_out(guards)
        assert "a" not in guards
        with pytest.raises(QueueFull):
            guards.try_enter(call("a")) or guards.enter_blocking(call("a"))
        with pytest.raises(QueueFull), guards.guard_of("a"):
            pass
        crowd_out(guards)
    run(guards, "a")
    assert len(guards) == 2


@pytest.mark.anyio
async def test_a_guard_in_which_a_call_waits_by_hand_stays_the_guard_of_its_key(idle):
    guards = keyed(lambda key: bulkhead(1, name=key), key=lambda key: key, max_keys=1)
    order = []

    async def work(number):
        async with guards.guard_of("a"):
            order.append(number)
            await anyio.lowlevel.checkpoint()

    held = guards.guard_of("a").try_enter(call("a"))
    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(work, number)
            await idle()
            crowd_out(guards)
        assert (order, guards.guard_of("a").waiting) == ([], 3)
        guards.guard_of("a").settle(held, SUCCESS)
    assert order == [0, 1, 2]


def test_an_open_guard_that_is_held_stays_the_guard_of_its_key(clock):
    guards = hosts(max_keys=1, clock=clock)
    held = guards.guard_of("sick")
    run(guards, "sick", FAILURE)
    for number in range(20):
        run(guards, f"also sick {number}", FAILURE)
    with pytest.raises(CircuitOpen):
        guards.try_enter(call("sick"))
    assert guards.guard_of("sick") is held


def test_one_that_nobody_holds_any_more_is_forgotten():
    guards = hosts(max_keys=1)
    first = weakref.ref(guards.guard_of("a"))
    crowd_out(guards)
    gc.collect()
    assert first() is None
    assert not guards._evicted


def test_a_key_that_changes_while_it_is_kept_can_be_evicted():
    class Changing:
        def __hash__(self):
            return self.value

    guards, keys = hosts(max_keys=2), []
    for number in range(6):
        key = Changing()
        key.value = number
        run(guards, key)
        key.value = -1
        keys.append(key)
    assert guards.keys() == keys[-2:]


# The number of keys


@pytest.mark.parametrize("state", [SUCCESS, FAILURE], ids=["closed", "open"])
def test_to_evict_takes_the_same_time_however_many_keys_there_are(state):
    looks = [0]

    class Looked(Never):
        def try_enter(self, call):
            return 1

        def settle(self, ticket, outcome):
            pass

        @property
        def state(self):
            looks[0] += 1
            return "closed" if state is SUCCESS else "open"

    guards = keyed(lambda key: Looked(), key=lambda key: key, max_keys=10_000)
    for number in range(10_000):
        run(guards, number)
    looks[0] = 0
    for number in range(10_000, 10_100):
        run(guards, number)
    # Each is looked at once for each use; where all of them remember something, so many of them for one that does not.
    assert looks[0] <= (100 if state is SUCCESS else 10_100 + 100 * 33)
    assert len(guards) == 10_000


def test_a_closed_one_goes_before_those_that_are_open_however_many(clock):
    guards = hosts(max_keys=200, clock=clock)
    for number in range(199):
        run(guards, f"sick {number}", FAILURE)
    run(guards, "well")
    run(guards, "sick", FAILURE)
    assert "well" not in guards
    assert len(guards) == 200
    assert guards.keys()[0] == "sick 0"


def test_the_number_of_keys_can_be_changed():
    guards = hosts(max_keys=10)
    for number in range(10):
        run(guards, number)
    guards.max_keys = 3
    assert (guards.keys(), guards.max_keys) == ([7, 8, 9], 3)
    for bad in (0, 1.5, None, True):
        with pytest.raises((TypeError, ValueError), match="max_keys"):
            guards.max_keys = bad
    assert guards.max_keys == 3


# Its place


def typed(host: str) -> Breaker:
    return breaker(name=host)


@pytest.mark.parametrize("factory", [lambda host: breaker(name=host), typed])
def test_a_keyed_breaker_outside_a_retry_is_refused_like_a_breaker(factory):
    guards = keyed(factory, key=lambda host: host, name="hosts")
    with pytest.raises(ValueError, match="hosts is outside retry: a call would count once however many attempts"):
        guard(guards, retry())
    with pytest.raises(ValueError, match="hosts is outside fallback"):
        guards(fallback(1)(lambda host: host))
    with pytest.raises(ValueError, match="timeout stands between hosts and bulkhead"):
        guard(guards, timeout(1), bulkhead(1))
    guard(timeout(9), retry(), guards, limiter(requests=1), bulkhead(1), timeout(1))
    guard(guards, retry(), check_order=False)
    guard(keyed(factory, key=lambda host: host, positions=()), retry())


def test_what_a_factory_says_or_makes_places_it_exactly():
    breakers = keyed(typed, key=lambda host: host)
    bulkheads = keyed(lambda host: bulkhead(1), key=lambda host: host)
    assert breakers.positions == (Position.BREAKER,)
    assert len(bulkheads.positions) == 3
    guard(bulkheads, breaker())  # it may be a breaker, as far as can be seen
    run(bulkheads, "a")
    assert bulkheads.positions == (Position.ADMISSION,)
    with pytest.raises(ValueError, match="would first wait for a permit"):
        guard(bulkheads, breaker())
    with pytest.raises(ValueError, match="limiter is outside keyed: calls that an open breaker refuses"):
        guard(limiter(requests=1), breakers)


# Threads of its guards


def test_learned_costs_of_many_keys_are_sampled_by_one_thread():
    def samplers():
        return [thread for thread in threading.enumerate() if thread.name == "guardrails-memory"]

    before = len(samplers())
    guards = keyed(lambda key: admit(memory="learned", limit="64GiB"), key=lambda key: key, max_keys=50)
    for number in range(50):
        run(guards, number)
    assert len(samplers()) <= before + 1
    del guards
    gc.collect()
    deadline = time.monotonic() + 20
    while len(samplers()) > before and time.monotonic() < deadline:
        time.sleep(0.02)
