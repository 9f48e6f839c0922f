"""Limits that are changed while a guard is at work: a plain assignment holds at once, a bad one changes nothing."""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
import time

import anyio
import pytest

from guardrails import admit, breaker, cache, fallback, guard, hedge, keyed, limiter, retry, timeout
from guardrails.core.guard import Call, Gate, Guard, Strategy
from guardrails.core.outcome import SUCCESS, Outcome
from guardrails.errors import QueueFull, TimedOut, WaitTimeout
from guardrails.gates.admit import Learned
from guardrails.gates.bulkhead import Aimd, Gradient, bulkhead
from guardrails.gates.connections import TooManyConnections, connections
from guardrails.gates.limiter import RateLimited
from guardrails.memory.reading import Scope
from guardrails.strategies.inject import inject
from guardrails.testing import FakeClock
from tests.guardrails.conftest import GIB, FakeMemory

CALL = Call((), {})


def bulkheads(most, **options):
    return bulkhead(most, **options)


def admits(most, **options):
    return admit(concurrency=most, sampler=FakeMemory(), **options)


def ledgers(most, **options):
    return admit(concurrency=most, memory=lambda: 1, sampler=FakeMemory(), **options)


def resize(gate, most):
    setattr(gate, "concurrency" if hasattr(gate, "concurrency") else "max_concurrent", most)


BUILDS = [bulkheads, admits, ledgers]


# Calls at once


@pytest.mark.anyio
@pytest.mark.parametrize("build", BUILDS)
async def test_more_lets_in_those_that_wait_and_less_lets_those_inside_finish(build, idle):
    gate, release = build(2), anyio.Event()

    @gate  # what is decorated before sees every change
    async def work():
        await release.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(work)
        await idle()
        assert (gate.in_flight, gate.waiting, gate.limit) == (2, 6, 2)
        resize(gate, 5)
        await idle()
        assert (gate.in_flight, gate.waiting, gate.limit) == (5, 3, 5)
        resize(gate, 1)
        await idle()
        assert (gate.in_flight, gate.waiting, gate.limit) == (5, 3, 1)
        release.set()
    assert (gate.in_flight, gate.waiting) == (0, 0)
    held = gate.try_enter(CALL)
    assert gate.try_enter(CALL) is None
    gate.settle(held, SUCCESS)


@pytest.mark.parametrize("build", BUILDS)
def test_fewer_at_once_holds_from_the_next_call_on(build):
    gate = build(4)
    held = [gate.try_enter(CALL) for _ in range(4)]
    resize(gate, 2)
    for ticket in held[:2]:
        gate.settle(ticket, SUCCESS)
        assert gate.try_enter(CALL) is None
    gate.settle(held[2], SUCCESS)
    assert gate.try_enter(CALL) is not None
    assert gate.try_enter(CALL) is None
    assert gate.in_flight == 2


@pytest.mark.parametrize("build", BUILDS)
def test_a_thread_that_waits_is_let_in(build):
    gate = build(1)
    held, done = gate.try_enter(CALL), []
    threads = [threading.Thread(target=lambda: done.append(gate.enter_blocking(CALL))) for _ in range(2)]
    for thread in threads:
        thread.start()
    while gate.waiting < 2:
        time.sleep(0.001)
    resize(gate, 3)
    for thread in threads:
        thread.join(10)
    assert len(done) == 2
    for ticket in (held, *done):
        gate.settle(ticket, SUCCESS)
    assert gate.in_flight == 0


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("adaptive", [Aimd(initial=3, maximum=5), Gradient(initial=3, maximum=5)])
def test_a_fixed_limit_and_an_adaptive_one_take_each_others_place(build, adaptive):
    clock = FakeClock()
    gate = build(1, clock=clock)
    old = gate.try_enter(CALL)
    resize(gate, adaptive)
    assert gate.limit == 3
    new = [gate.try_enter(CALL) for _ in range(2)]
    assert gate.try_enter(CALL) is None
    clock.advance(1000)  # it says nothing to the new limit that the old call took so long
    gate.settle(old, Outcome("throttled"))
    assert gate.limit == 3
    gate.settle(new[0], Outcome("throttled"))
    assert "by " in gate.describe()
    resize(gate, 4)
    assert gate.limit == 4
    gate.settle(new[1], Outcome("throttled"))
    assert (gate.limit, gate.in_flight) == (4, 0)
    held = [gate.try_enter(CALL) for _ in range(4)]
    assert gate.try_enter(CALL) is None
    for ticket in held:
        gate.settle(ticket, SUCCESS)
    assert gate.in_flight == 0


@pytest.mark.parametrize("build", BUILDS)
def test_threads_may_change_it_while_others_call(build):
    gate, most, lock, inside = build(4, max_wait=60), [0], threading.Lock(), [0]

    def work():
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        with lock:
            inside[0] -= 1

    guarded = gate(work)

    def caller():
        for _ in range(200):
            guarded()

    threads = [threading.Thread(target=caller) for _ in range(6)]
    for thread in threads:
        thread.start()
    for number in range(200):
        resize(gate, 1 + number % 6)
    for thread in threads:
        thread.join(60)
    resize(gate, 2)
    assert (gate.in_flight, gate.waiting, most[0] <= 6) == (0, 0, True)
    assert [gate.try_enter(CALL) is None for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("build", BUILDS)
def test_the_queue_and_the_longest_wait_hold_for_the_next_call(build):
    clock = FakeClock(autojump=True)
    gate = build(1, queue=1, max_wait=5, clock=clock)
    held = gate.try_enter(CALL)
    gate.queue = 0
    with pytest.raises(QueueFull, match="0 calls wait already"):
        gate.enter_blocking(CALL)
    gate.queue, gate.max_wait = 2, 30
    started = clock.now()
    with pytest.raises(WaitTimeout, match="no room within 30 s"):
        gate.enter_blocking(CALL)
    assert clock.now() - started == 30
    assert "2 may wait for 30 s" in gate.describe()
    gate.settle(held, SUCCESS)


# Memory


def test_another_size_of_each_call_holds_at_once(memory):
    gate = admit(memory="1GiB", sampler=memory)  # 8.5 GiB below the mark
    held = [gate.try_enter(CALL) for _ in range(4)]
    assert (gate.memory, gate.reserved) == (GIB, 4 * GIB)
    gate.memory = "2GiB"
    assert (gate.memory, gate.reserved) == (2 * GIB, 8 * GIB)
    assert gate.try_enter(CALL) is None
    gate.memory = "1GiB"
    held += [gate.try_enter(CALL) for _ in range(4)]
    assert None not in held
    assert gate.try_enter(CALL) is None
    gate.memory = None
    assert gate.try_enter(CALL) is not None
    for bad in ("much", 0, -1, len, "learned", Learned(), math.nan, True):
        with pytest.raises((TypeError, ValueError), match="memory"):
            gate.memory = bad
    assert gate.memory == 0


def test_another_function_of_the_arguments_holds_at_once(memory):
    gate = admit(memory=len, sampler=memory)
    reserved = gate(lambda text: gate.reserved)
    assert reserved("abc") == 3
    gate.memory = lambda text: len(text) * 10
    assert reserved("abc") == 30
    with pytest.raises(TypeError, match="memory must be a function"):
        gate.memory = "1GiB"
    learned = admit(memory="learned", sampler=memory)
    assert learned.memory == Learned()
    with pytest.raises(AttributeError, match="memory is learned"):
        learned.memory = "1GiB"


@pytest.mark.anyio
async def test_less_memory_for_each_call_lets_in_those_that_wait(memory, idle):
    gate, release = admit(memory="4GiB", sampler=memory), anyio.Event()
    work = gate(release.wait)
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(work)
        await idle()
        assert (gate.in_flight, gate.waiting) == (2, 3)
        gate.memory = "2GiB"
        await idle()
        assert (gate.in_flight, gate.waiting) == (4, 1)
        release.set()
    assert (gate.in_flight, gate.waiting) == (0, 0)


# Rates


def test_other_rates_hold_at_once_and_what_was_used_stays_used(clock):
    gate = limiter(requests=10, per=10, queue=0, clock=clock)
    work = gate(lambda: None)
    for _ in range(4):
        work()
    gate.requests = 20
    assert (gate.requests, gate.available()) == (20, {"requests": 16})
    gate.per = 5
    clock.advance(0.5)
    assert gate.available() == {"requests": 18}
    gate.requests = 3
    assert gate.available() == {"requests": 1}
    work()
    with pytest.raises(RateLimited):
        work()
    gate.burst = 5
    assert (gate.burst, gate.available()) == (5, {"requests": 2})
    gate.burst = None
    assert (gate.describe(), gate.max_rate) == ("limiter 'limiter': 3 requests per 5 s, 0 may wait for 30 s", 3)


@pytest.mark.anyio
async def test_a_higher_rate_wakes_those_that_wait(clock, idle):
    gate = limiter(requests=1, per=10, clock=clock, max_wait=100)
    gate.try_acquire()
    served = []

    async def work(number):
        await gate.acquire()
        served.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(work, number)
            await idle()
        gate.requests = 10
        await idle()
        assert sorted(served) == [0, 1, 2, 3]
    gate.requests = 1
    assert gate.available() == {"requests": -4}


@pytest.mark.anyio
async def test_a_lower_rate_refuses_those_whose_turn_would_come_too_late(clock, idle):
    gate = limiter(tokens=10, per=10, clock=clock, max_wait=15)
    gate.try_acquire(10)
    reasons = []

    async def work(amount):
        with pytest.raises(RateLimited) as caught:
            await gate.acquire(amount)
        reasons.append(caught.value.reason)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, 3)
        await idle()
        tasks.start_soon(work, 9)
        await idle()
        gate.burst = 8  # less than the second can ever get
        await idle()
        assert reasons == ["amount_too_large"]
        gate.per = 100
        await idle()
        assert reasons == ["amount_too_large", "wait_timeout"]
    assert gate.waiting == 0


def test_a_drain_stays_one_whatever_the_rate_becomes(clock):
    gate = limiter(requests=5, per=10, queue=0, clock=clock)
    gate.drain(20)
    gate.requests = 500
    clock.advance(19)
    assert gate.try_acquire() is None
    clock.advance(1.1)
    assert gate.available() == pytest.approx({"requests": 5})
    gate.drain(20)
    gate.requests = 5
    clock.advance(19)
    assert gate.try_acquire() is None
    clock.advance(3)
    assert gate.available() == pytest.approx({"requests": 1})


def test_tiers_and_several_dimensions(clock):
    gate = limiter(tiers={"free": 1, "paid": 10}, tier=lambda tier: tier, clock=clock)
    work = gate(lambda tier: None)
    work("free")
    gate.tiers = {"free": 2, "paid": {"requests": 20, "burst": 5}}
    assert gate.available(tier="free") == {"requests": 1}
    assert gate.available(tier="paid") == {"requests": 5}
    assert gate.tiers == {"free": 2, "paid": {"requests": 20, "burst": 5}}
    for bad in ({"free": 1}, {"free": 1, "paid": 0}, {"free": {"tokens": 1}, "paid": {"tokens": 1}}, {}, None):
        with pytest.raises((TypeError, ValueError)):
            gate.tiers = bad
    with pytest.raises(TypeError):
        gate.tiers["free"] = 9
    for argument in ("requests", "tokens", "burst"):
        with pytest.raises(AttributeError, match="each has its own"):
            setattr(gate, argument, 1)
        with pytest.raises(AttributeError, match="each has its own"):
            getattr(gate, argument)
    both = limiter(requests=5, tokens=50, clock=clock)
    both.tokens = 100
    both.burst = {"tokens": 70}
    assert both.available() == {"requests": 5, "tokens": 70}
    with pytest.raises(ValueError, match="has no tiers"):
        both.tiers = {"free": 1}


def test_a_bad_limit_changes_nothing(clock):
    gate = limiter(requests=5, per=10, cost=2, clock=clock)
    for name in ("requests", "per", "burst", "max_wait", "queue"):
        before = getattr(gate, name), gate.describe()
        for bad in (0 if name != "queue" else -1, -1, math.nan, "5", True, 10**400 if name != "queue" else 1.5, []):
            with pytest.raises((TypeError, ValueError), match=name):
                setattr(gate, name, bad)
        assert (getattr(gate, name), gate.describe()) == before
    with pytest.raises(ValueError, match="cost can never be paid"):
        gate.requests = 1
    with pytest.raises(ValueError, match="limits requests, and tokens cannot change that"):
        gate.tokens = 5
    with pytest.raises(TypeError, match="takes a limit"):
        gate.requests = None
    gate.queue, gate.max_wait, gate.drain_on_throttle = 0, 7, False
    assert "0 may wait for 7 s" in gate.describe()
    gate.settle(gate.try_enter(CALL), Outcome("throttled", None, 100))
    assert gate.available() == {"requests": 3}
    with pytest.raises(TypeError, match="drain_on_throttle"):
        gate.drain_on_throttle = 1


@pytest.mark.parametrize("build", BUILDS)
def test_a_bad_number_of_calls_changes_nothing(build):
    gate = build(2)
    before = gate.describe()
    for bad in (0, -1, 1.5, "5", True, math.nan):
        with pytest.raises((TypeError, ValueError), match="concurren"):
            resize(gate, bad)
    for name in ("queue", "max_wait"):
        for bad in (-1, "5", True, math.nan, None):
            with pytest.raises((TypeError, ValueError), match=name):
                setattr(gate, name, bad)
    assert gate.describe() == before


# Time


@pytest.mark.anyio
@pytest.mark.parametrize("real", [True, False], ids=["system clock", "fake clock"])
async def test_another_total_holds_for_the_next_call(real):
    clock = FakeClock(autojump=True)
    limit = timeout(60) if real else timeout(60, clock=clock)

    @limit
    async def work():
        await anyio.sleep_forever()

    limit.total = 0.03
    with pytest.raises(TimedOut, match=r"no answer within 0\.03 s"):
        await work()
    limit.first, limit.total = 5, None
    with anyio.move_on_after(0.1) as scope:
        await work()
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_a_running_call_keeps_its_time_and_says_so(clock, idle):
    limit = timeout(10, clock=clock)
    errors = []

    @limit
    async def work():
        await anyio.sleep_forever()

    async def caller():
        with contextlib.suppress(TimedOut):
            try:
                await work()
            except TimedOut as error:
                errors.append(error.seconds)
                raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(caller)
        await idle()
        limit.total = 50
        clock.advance(11)
        await idle()
        assert errors == [10]


@pytest.mark.anyio
async def test_the_limits_of_items_hold_for_the_next_item(clock):
    clock.autojump = True
    limit = timeout(1000, first=100, idle=100, clock=clock)

    @limit
    async def stream():
        for seconds in (1, 1, 50):
            await clock.sleep(seconds)
            yield seconds

    seen = []
    with pytest.raises(TimedOut, match="no further item within 20 s"):
        async for item in stream():
            seen.append(item)
            limit.idle = 20
    assert seen == [1, 1]
    seen.clear()
    with pytest.raises(TimedOut, match="no answer within 30 s"):
        limit.idle, limit.total = None, 30
        async for item in stream():
            seen.append(item)
            limit.total = None
    assert seen == [1, 1]


def test_a_timeout_keeps_at_least_one_limit():
    limit = timeout(5)
    for name in ("total", "first", "idle"):
        for bad in (0, -1, math.nan, math.inf, "5", True):
            with pytest.raises((TypeError, ValueError), match=name):
                setattr(limit, name, bad)
    with pytest.raises(ValueError, match="at least one of"):
        limit.total = None
    assert limit.describe() == "timeout 'timeout': total 5 s"


# Connections


@pytest.mark.anyio
async def test_the_limits_of_connections():
    gate = connections(per_key=1)
    first = gate.open("a")
    with pytest.raises(TooManyConnections):
        gate.open("a")
    gate.per_key = 2
    second = gate.open("a")
    gate.max_total = 2
    with pytest.raises(TooManyConnections):
        gate.open("b")
    gate.max_total = None
    gate.when_full = "close_oldest"
    third = gate.open("a")
    assert first.closed == "replaced"
    for name in ("per_key", "max_total", "idle_timeout", "when_full"):
        before = getattr(gate, name)
        for bad in (0, -1, "5", True, math.nan):
            with pytest.raises((TypeError, ValueError), match=name):
                setattr(gate, name, bad)
        assert getattr(gate, name) == before
    for connection in (second, third):
        connection.release()
    assert gate.total == 0


# Everything else is read-only

GUARDS = {
    "breaker": breaker,
    "hedge": lambda: hedge(1),
    "pipeline": lambda: guard(retry()),
    "limiter": lambda: limiter(requests=1),
    "bulkhead": lambda: bulkhead(1),
    "admit": lambda: admits(1),
    "timeout": lambda: timeout(1),
    "retry": retry,
    "cache": lambda: cache(ttl=1),
    "fallback": lambda: fallback(1),
    "keyed": lambda: keyed(lambda key: breaker(), key=str),
    "inject": lambda: inject(error=ValueError),
    "connections": lambda: connections(per_key=1),
}
#: The name, which errors and events show at once; and what a pipeline reads of a guard when it is put around a
#: function, which is the contract between the two and no setting.
CONTRACT = {"name"} | {
    each
    for base in (Guard, Gate, Strategy)
    for each in (*vars(base), *base.__annotations__)
    if not isinstance(getattr(base, each, None), property)
}


@pytest.mark.parametrize("name", GUARDS)
def test_no_attribute_can_be_set_without_effect(name):
    built = GUARDS[name]()
    found = {each for each in dir(built) if not each.startswith("_")} - CONTRACT
    settable = set()
    for each in found:
        kind = getattr(type(built), each, None)
        if callable(kind):
            continue
        if isinstance(kind, property) and kind.fset is not None:
            settable.add(each)
            continue
        with pytest.raises(AttributeError):
            setattr(built, each, 7)
    assert settable == {
        "breaker": {"fail_max", "reset_timeout", "state", "success_threshold"},
        "limiter": {"burst", "drain_on_throttle", "max_wait", "per", "queue", "requests", "tiers", "tokens"},
        "bulkhead": {"max_concurrent", "max_wait", "queue"},
        "admit": {"concurrency", "max_wait", "memory", "queue"},
        "timeout": {"first", "idle", "total"},
        "keyed": {"max_keys"},
        "connections": {"idle_timeout", "max_total", "per_key", "when_full"},
    }.get(name, set())


FACTORIES = {
    "breaker": breaker,
    "hedge": hedge,
    "pipeline": guard,
    "limiter": limiter,
    "bulkhead": bulkhead,
    "admit": admit,
    "timeout": timeout,
    "retry": retry,
    "cache": cache,
    "fallback": fallback,
    "keyed": keyed,
    "inject": inject,
    "connections": connections,
}


@pytest.mark.parametrize("name", GUARDS)
def test_no_argument_can_be_set_without_effect(name):
    built = GUARDS[name]()
    parameters = inspect.signature(FACTORIES[name]).parameters.values()
    for each in parameters:
        kind = getattr(type(built), each.name, None)
        decorated = each.name in {"fn", "bare"} or each.kind is each.VAR_POSITIONAL
        if decorated or each.name in CONTRACT or (isinstance(kind, property) and kind.fset is not None):
            continue
        with pytest.raises(AttributeError, match=each.name):
            setattr(built, each.name, 7)


def test_a_fixed_argument_says_whose_it_is_and_what_to_do():
    quota = limiter(requests=1, name="quota")
    with pytest.raises(AttributeError, match="quota: cost cannot be changed: build another guard"):
        quota.cost = 3
    assert not hasattr(quota, "cost")


def test_a_limit_on_the_process_tree_is_that_of_each_guard():
    memory = FakeMemory()
    small, large = admit(limit="1GiB", sampler=memory), admit(limit="9GiB", sampler=memory)
    memory.read([Scope("host", 0, 10 * GIB), Scope("processes", GIB, 1 << 60)])
    assert (small.level, large.level) == ("critical", "normal")
