"""What users' functions return for one call may be anything: a bad value fails that call alone."""

from __future__ import annotations

import asyncio
import contextlib
import math

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.core.fair_queue import FairQueue
from guardrails.core.guard import Call
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.core.sizes import parse_size
from guardrails.core.waiting import FairRoom, Waiter
from guardrails.errors import Rejected
from guardrails.gates.admit import Learned, admit
from guardrails.gates.breaker import breaker
from guardrails.gates.bulkhead import bulkhead
from guardrails.gates.connections import connections
from guardrails.gates.limiter import limiter
from guardrails.gates.timeout import timeout
from guardrails.testing import FakeClock
from tests.guardrails.conftest import FakeMemory

pytestmark = pytest.mark.anyio


class Broken(Exception):
    pass


class Raises:
    """What a user's function returns in the test when it shall raise."""


class NoHash:
    __hash__ = None


class BadHash:
    def __hash__(self):
        raise TypeError("no hash today")


class Changing:
    """Hashes by what it holds."""

    def __init__(self, value):
        self.value = value

    def __hash__(self):
        return hash(self.value)

    def __eq__(self, other):
        return isinstance(other, Changing) and self.value == other.value


HUGE = 10**400


def shown(value):
    return "huge" if value == HUGE else type(value).__name__ if value is None or value == [] else str(value)[:20]


BUILDS = [
    pytest.param(bulkhead, id="bulkhead"),
    pytest.param(lambda most, **options: admit(concurrency=most, sampler=FakeMemory(), **options), id="admit"),
]
BAD_NUMBERS = [None, "5", math.nan, math.inf, -math.inf, True, [], object(), HUGE, Raises]
BAD_KEYS = [[], {}, {1}, NoHash(), BadHash(), ([],), Raises]


def out(value):
    if value is Raises:
        raise Broken
    return value


FAIL = (TypeError, ValueError, Broken)


@pytest.mark.parametrize("bad", BAD_NUMBERS, ids=shown)
@pytest.mark.parametrize("build", BUILDS)
async def test_a_bad_priority_fails_its_call_alone(build, bad, clock, idle):
    gate = build(1, priority=lambda value, who: out(value), key=lambda value, who: who, name="gate", clock=clock)
    order = []

    @gate
    async def work(value, who):
        order.append(who)
        await clock.sleep(1)

    async with anyio.create_task_group() as tasks:
        for who in "abc":
            tasks.start_soon(work, 0, who)
            await idle()
        for who in "bd":
            with pytest.raises(FAIL, match=None if bad is Raises else "^gate: priority"):
                await work(bad, who)
            assert (gate.in_flight, gate.waiting) == (1, 2)
        tasks.start_soon(work, -5, "d")
        await idle()
        for _ in range(4):
            clock.advance(1)
            await idle()
    assert order == ["a", "d", "b", "c"]
    assert (gate.in_flight, gate.waiting) == (0, 0)


@pytest.mark.parametrize("bad", BAD_KEYS, ids=lambda bad: type(bad).__name__)
@pytest.mark.parametrize("build", BUILDS)
async def test_a_bad_key_fails_its_call_alone(build, bad, clock, idle):
    gate = build(1, key=out, name="gate", clock=clock)

    @gate
    async def work(key):
        await clock.sleep(1)

    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(work, "a")
            await idle()
        with pytest.raises(
            Broken if bad is Raises else TypeError, match=None if bad is Raises else r"^gate: key\(...\)"
        ):
            await work(bad)
        assert (gate.in_flight, gate.waiting) == (1, 1)
        for _ in range(2):
            clock.advance(1)
            await idle()
    assert (gate.in_flight, gate.waiting) == (0, 0)


@pytest.mark.parametrize("build", BUILDS)
async def test_a_key_that_changes_while_its_call_waits_holds_nobody_up(build, clock, idle):
    gate = build(1, key=lambda key: key, clock=clock)

    @gate
    async def work(key):
        await clock.sleep(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, None)
        await idle()
        key = Changing(1)
        for each in (key, Changing(2)):
            tasks.start_soon(work, each)
            await idle()
        key.value = 3
        for _ in range(3):
            clock.advance(1)
            await idle()
        assert (gate.in_flight, gate.waiting) == (0, 0)


@pytest.mark.parametrize("bad", BAD_NUMBERS[:-1], ids=shown)
@pytest.mark.parametrize("option", ["priority", "aging"])
def test_a_bad_constant_is_refused_when_the_guard_is_built(option, bad):
    for build in (lambda **options: bulkhead(1, **options), lambda **options: admit(sampler=FakeMemory(), **options)):
        with pytest.raises((TypeError, ValueError), match=option):
            build(**{option: bad})


def test_a_push_is_whole_or_not_at_all():
    queue = FairQueue(10)
    for priority, key in ((None, "a"), ("5", "a"), (math.nan, "a"), (math.inf, "a"), (1e308, "a"), (0, [])):
        with pytest.raises((TypeError, ValueError)):
            queue.push("x", now=0, priority=priority, key=key)
        assert (len(queue), queue.head(0)) == (0, None)
    queue.push("y", now=0, priority=0, key="b")
    assert queue.head(0) == "y"
    room = FairRoom(3)
    with pytest.raises(TypeError):
        room.join(Waiter(0), priority=None, key="k")
    assert (len(room), room.grant(lambda ticket: True)) == (0, [])


@pytest.mark.parametrize("bad", [bad for bad in BAD_NUMBERS if bad != "5"] + [-1, "much"], ids=shown)
def test_a_bad_memory_cost_fails_its_call_alone(memory, bad):
    gate = admit(memory=out, sampler=memory)
    with pytest.raises(FAIL):
        gate(lambda cost: 7)(bad)
    assert (gate.in_flight, gate.waiting, gate.reserved) == (0, 0, 0)
    assert gate(lambda cost: gate.reserved)("1KiB") == 1024


@pytest.mark.parametrize("bad", BAD_NUMBERS, ids=shown)
def test_a_bad_size_of_a_learned_cost_fails_its_call_alone(memory, bad):
    gate = admit(memory=Learned(size=out), name="gate", sampler=memory)
    with pytest.raises(FAIL, match=None if bad is Raises else r"^gate: size\(\.\.\.\) must be"):
        gate(lambda size: 7)(bad)
    assert (gate.in_flight, gate.waiting, gate.reserved) == (0, 0, 0)
    assert gate(lambda size: 7)(100) == 7


@pytest.mark.parametrize("bad", [*BAD_NUMBERS, -1, {"tokens": None}, {"calls": 1}], ids=shown)
def test_a_bad_cost_of_a_limiter_fails_its_call_alone(clock, bad):
    gate = limiter(tokens=100, per=1, cost=out, name="gate", clock=clock)
    with pytest.raises(FAIL, match=None if bad is Raises else "^gate"):
        gate(lambda cost: 7)(bad)
    assert gate.available() == {"tokens": 100}
    assert gate(lambda cost: 7)(100) == 7
    with pytest.raises((TypeError, ValueError, Rejected)):
        gate.acquire_blocking(bad if bad is not None else "0")


@pytest.mark.parametrize("bad", BAD_KEYS, ids=lambda bad: type(bad).__name__)
def test_a_bad_key_or_tier_of_a_limiter_fails_its_call_alone(clock, bad):
    keyed = limiter(requests=1, per=1, key=out, name="gate", clock=clock)
    tiered = limiter(tiers={"free": 1}, tier=out, default_tier="free", name="gate", clock=clock)
    for gate in (keyed, tiered):
        with pytest.raises(Broken if bad is Raises else TypeError, match=None if bad is Raises else "^gate"):
            gate(lambda who: 7)(bad)
        assert gate(lambda who: 7)("free") == 7
    if bad is not Raises:
        for look in (keyed.available, keyed.share, keyed.has_capacity, keyed.drain, keyed.reset):
            with pytest.raises(TypeError, match="gate: key must be hashable"):
                look(*([1] if look == keyed.drain else []), key=bad)
    assert keyed.keys == 1


@pytest.mark.parametrize("bad", BAD_KEYS[:-1], ids=lambda bad: type(bad).__name__)
async def test_a_bad_key_of_a_connection_fails_it_alone(bad):
    gate = connections(per_key=1, name="gate", key=lambda who: who)
    with pytest.raises(TypeError, match="gate: key must be hashable"):
        gate.open(bad)
    with pytest.raises(TypeError, match="gate: key must be hashable"):
        gate.count(bad)
    assert gate.total == 0
    key = Changing(1)
    connection = gate.open(key)
    key.value = 2
    connection.release()
    assert gate.total == 0
    async with gate.connection("a"):
        assert gate.total == 1


def test_a_size_too_large_for_a_float_is_no_size():
    with pytest.raises(ValueError, match="below 8 EiB"):
        parse_size(HUGE, "memory")


VALUES = st.one_of(
    st.integers(0, 3), st.floats(-3, 3), st.sampled_from([*BAD_NUMBERS, *BAD_KEYS, 1e308, -1, 2**70, "much"])
)
CALLS = st.lists(st.tuples(VALUES, st.one_of(st.sampled_from("ab"), VALUES), VALUES, st.integers(0, 2)), max_size=12)


def gates(clock, memory):
    def first(value, key, cost):
        return out(value)

    def second(value, key, cost):
        return out(key)

    def third(value, key, cost):
        return out(cost)

    turns = {"priority": first, "key": second, "clock": clock, "max_wait": 5}
    return [
        bulkhead(1, **turns),
        admit(concurrency=1, sampler=memory, **turns),
        admit(concurrency=2, memory=third, sampler=memory, **turns),
        admit(concurrency=1, memory=Learned(size=third), sampler=memory, **turns),
        limiter(tokens=2, per=1, cost=third, key=second, max_wait=5, clock=clock),
        connections(per_key=2, key=second, clock=clock),
    ]


@given(CALLS)
def test_after_bad_calls_among_good_ones_every_count_is_zero_and_a_good_call_passes(calls):
    async def scenario(number):
        clock = FakeClock(autojump=True)
        gate = gates(clock, FakeMemory())[number]

        @gate
        async def work(value, key, cost):
            await clock.sleep(1)
            return "done"

        async def caller(after, *arguments):
            await clock.sleep(after)
            with contextlib.suppress(*FAIL, Rejected):
                await work(*arguments)

        await asyncio.gather(*(caller(after, *arguments) for *arguments, after in calls))
        for counter in ("in_flight", "waiting", "reserved", "total"):
            assert getattr(gate, counter, 0) == 0
        await clock.sleep(100)
        assert await asyncio.wait_for(work(0, "a", 1), 30) == "done"

    for number in range(6):
        asyncio.run(scenario(number))


def test_a_refused_rank_is_no_outcome_of_the_dependency(clock):
    gate = bulkhead(1, priority=lambda value: value, clock=clock)
    held = gate.try_enter(Call((1,), {}))
    with pytest.raises(TypeError):
        gate.enter_blocking(Call((None,), {}))
    gate.settle(held, IGNORED)
    assert (gate.in_flight, gate.waiting) == (0, 0)


def test_a_time_too_large_for_a_float_is_refused_where_it_enters(clock):
    for build in (
        lambda: breaker(open_for=HUGE),
        lambda: timeout(HUGE),
        lambda: timeout(first=HUGE),
        lambda: bulkhead(1, max_wait=HUGE),
    ):
        with pytest.raises(ValueError, match="must be a number that a float can hold"):
            build()


@pytest.mark.parametrize("bad", [*BAD_NUMBERS[:2], math.nan, HUGE, True, Raises], ids=shown)
def test_a_bad_break_of_one_outcome_leaves_a_breaker_that_works(clock, bad):
    circuit = breaker(fail_max=1, open_for=lambda outcome: out(bad), clock=clock)
    circuit.settle(circuit.try_enter(Call((), {})), Outcome("failure", ValueError()))
    assert (circuit.state, circuit.snapshot().retry_after) == ("open", 60)
    clock.advance(60)
    circuit.settle(circuit.try_enter(Call((), {})), SUCCESS)
    assert circuit.state == "closed"
