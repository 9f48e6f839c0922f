"""The queue of a limiter: order, bounds, timers, cancellation, threads."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
from functools import partial

import anyio
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails import deadline_in
from guardrails.core.outcome import SUCCESS, Outcome
from guardrails.gates.limiter import RateLimited, limiter
from guardrails.testing import FakeClock


@pytest.fixture
def gate(clock):
    """Ten at once, then one a second; emptied."""
    gate = limiter(name="gate", requests=10, per=10, max_wait=60, clock=clock)
    gate.try_acquire(10)
    return gate


class Crowd:
    """Calls that wait, and the order and the time in which they were let in or refused."""

    def __init__(self, gate, clock, tasks):
        self.gate, self.clock, self.tasks = gate, clock, tasks
        self.started = clock.now()
        self.served: list[tuple[object, float]] = []
        self.refused: list[tuple[object, str, float | None]] = []
        self.scopes: dict[object, anyio.CancelScope] = {}

    async def call(self, name, amount):
        with anyio.CancelScope() as self.scopes[name]:
            try:
                await self.gate.acquire(amount)
                self.served.append((name, round(self.clock.now() - self.started, 6)))
            except RateLimited as refusal:
                self.refused.append((name, refusal.reason, refusal.retry_after))

    async def add(self, idle, **amounts):
        for name, amount in amounts.items():
            self.tasks.start_soon(self.call, name, amount)
            await idle()


# Order


@pytest.mark.anyio
async def test_a_heavy_call_is_served_in_its_turn_under_light_traffic(gate, clock, idle):
    # aiolimiter serves the lowest amount first: there the heavy one waits as long as light ones come.
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, heavy=8)
        for number in range(12):
            await crowd.add(idle, **{f"light{number}": 1})
            clock.advance(1)
            await idle()
        for _ in range(12):
            clock.advance(1)
            await idle()
    assert crowd.served[0] == ("heavy", 8)
    assert [name for name, _ in crowd.served[1:]] == [f"light{number}" for number in range(12)]


@pytest.mark.anyio
async def test_each_is_let_in_at_the_moment_when_its_tokens_are_there(gate, clock, idle):
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=3, b=1, c=5)
        for _ in range(10):
            clock.advance(0.999)
            await idle()
            clock.advance(0.001)
            await idle()
    assert crowd.served == [("a", 3), ("b", 4), ("c", 9)]


@pytest.mark.anyio
async def test_who_comes_does_not_overtake_who_waits(gate, clock, idle):
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, heavy=8)
        clock.advance(5)
        assert gate.available() == {"requests": 5}
        assert gate.try_acquire(1) is None
        assert not gate.has_capacity(1)
        clock.advance(3)
    assert crowd.served == [("heavy", 8)]


@pytest.mark.anyio
async def test_who_comes_lets_in_those_whose_turn_it_is(gate, clock, idle):
    """The first one's own loop may be busy: here it has not run since its time came."""
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=3, b=1)
        clock.advance(5)
        assert gate.try_acquire(1) is not None
        assert (gate.waiting, gate.available()) == (0, {"requests": 0})
        await idle()
    assert sorted(name for name, _ in crowd.served) == ["a", "b"]


@pytest.mark.anyio
async def test_so_does_one_that_has_to_wait_itself(gate, clock, idle):
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=3)
        clock.advance(3)
        tasks.start_soon(gate._wait, (2.0,), (None, None))
        await idle()
        assert ([name for name, _ in crowd.served], gate.waiting) == (["a"], 1)
        clock.advance(2)


@pytest.mark.anyio
async def test_only_the_first_sets_a_timer(gate, clock, idle):
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, **{f"call{number}": 1 for number in range(20)})
        for number in range(20):
            assert len(clock._scopes) == 1
            assert len(crowd.served) == number
            clock.advance(1)
            await idle()
    assert len(crowd.served) == 20


@pytest.mark.anyio
async def test_a_loop_that_stood_still_lets_in_no_more_than_the_burst_at_once(gate, clock, idle):
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, **{f"call{number}": 1 for number in range(20)})
        clock.advance(20)
        await idle()
        assert len(crowd.served) == 10
        clock.advance(1)
        await idle()
        assert len(crowd.served) == 11
        clock.advance(9)


@pytest.mark.anyio
async def test_dimensions_wait_for_the_slower_one_and_take_nothing_before(clock, idle):
    gate = limiter(requests=10, tokens=100, per=10, clock=clock)
    gate.try_acquire(requests=10, tokens=100)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(gate.acquire, tokens=50))
        await idle()
        clock.advance(4)
        await idle()
        assert gate.available() == {"requests": 4, "tokens": 40}
        clock.advance(1)
        await idle()
        assert gate.available() == {"requests": 4, "tokens": 0}


# Bounds


@pytest.mark.anyio
async def test_a_full_queue_refuses_with_a_true_retry_after(clock, idle):
    gate = limiter(name="gate", requests=10, per=10, queue=2, clock=clock)
    gate.try_acquire(10)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=3, b=1)
        with pytest.raises(RateLimited, match="gate: 2 calls wait already") as caught:
            await gate.acquire(2)
        assert (caught.value.reason, caught.value.retry_after) == ("queue_full", 6)
        clock.advance(5.9)
        await idle()
        assert gate.try_acquire(2) is None
        clock.advance(0.1)
        assert gate.try_acquire(2) is not None


@pytest.mark.anyio
async def test_one_whose_turn_comes_too_late_is_refused_at_once(clock, idle):
    gate = limiter(name="gate", requests=10, per=10, max_wait=5, clock=clock)
    gate.try_acquire(10)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=3, b=3, c=2)
        assert crowd.refused == [("b", "rate_limited", 6)]
        assert gate.waiting == 2
        clock.advance(5)
    assert sorted(crowd.served) == [("a", 5), ("c", 5)]


@pytest.mark.anyio
async def test_one_whose_turn_comes_after_its_deadline_is_refused_at_once(gate, clock, idle):
    with deadline_in(2, clock=clock):
        async with anyio.create_task_group() as tasks:
            crowd = Crowd(gate, clock, tasks)
            await crowd.add(idle, soon=2, late=1)
            assert crowd.refused == [("late", "rate_limited", 3.0)]
            clock.advance(2)
    assert crowd.served == [("soon", 2.0)]


@pytest.mark.anyio
async def test_a_drain_refuses_one_whose_deadline_is_nearer_now(gate, clock, idle):
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        with deadline_in(2, clock=clock):
            await crowd.add(idle, hurried=2)
            gate.drain(3)
            await idle()
            assert crowd.refused == [("hurried", "wait_timeout", 5.0)]
        await crowd.add(idle, patient=2)
        clock.advance(5)
    assert crowd.served == [("patient", 5.0)]


@pytest.mark.anyio
async def test_max_wait_may_be_endless(clock, idle):
    gate = limiter(requests=1, per=1e6, max_wait=math.inf, clock=clock)
    gate.try_acquire()
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=1)
        clock.advance(1e6)
    assert len(crowd.served) == 1


# What changes everybody's turn


@pytest.mark.anyio
async def test_a_drain_refuses_those_whose_turn_comes_too_late_now(clock, idle):
    gate = limiter(name="gate", requests=10, per=10, max_wait=20, clock=clock)
    gate.try_acquire(10)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=2, b=9, c=1)
        clock.advance(1)
        gate.drain(16)
        await idle()
        assert crowd.refused == [("b", "wait_timeout", 27)]
        clock.advance(17.9)
        await idle()
        assert crowd.served == []
        for _ in range(2):
            clock.advance(0.1 if not crowd.served else 1)
            await idle()
    assert crowd.served == [("a", 19), ("c", 20)]


@pytest.mark.anyio
async def test_a_drain_may_refuse_everybody(gate, clock, idle):
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=2, b=9)
        gate.drain(1000)
    assert sorted(crowd.refused) == [("a", "wait_timeout", 1002), ("b", "wait_timeout", 1009)]
    assert gate.waiting == 0


@pytest.mark.anyio
async def test_a_drain_that_refuses_the_first_has_the_next_set_the_timer(clock, idle):
    gate = limiter(requests=10, per=10, max_wait=20, clock=clock)
    gate.try_acquire(10)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=9, b=1)
        gate.drain(15)
        await idle()
        clock.advance(16)
    assert ([name for name, *_ in crowd.refused], crowd.served) == (["a"], [("b", 16)])


@pytest.mark.anyio
async def test_a_refund_lets_in_sooner(gate, clock, idle):
    gate.reset()
    reservation = gate.try_acquire(10)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=8, b=1)
        clock.advance(1)
        reservation.correct(6)
        await idle()
        clock.advance(3)
        await idle()
        assert crowd.served == [("a", 4)]
        clock.advance(1)
    assert crowd.served == [("a", 4), ("b", 5)]


@pytest.mark.anyio
async def test_a_refund_may_let_in_at_once(gate, clock, idle):
    gate.reset()
    reservation = gate.try_acquire(10)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=4, b=5, c=6)
        reservation.refund()
        await idle()
        assert (sorted(name for name, _ in crowd.served), gate.waiting) == (["a", "b"], 1)
        clock.advance(5)
    assert crowd.served[2] == ("c", 5)


@pytest.mark.anyio
async def test_more_use_than_was_reserved_lets_in_later_and_refuses_the_too_late(clock, idle):
    gate = limiter(requests=10, per=10, max_wait=20, clock=clock)
    reservation = gate.try_acquire(10)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=1, b=9)
        reservation.correct(25)
        await idle()
        assert [name for name, *_ in crowd.refused] == ["b"]
        clock.advance(15.9)
        await idle()
        assert crowd.served == []
        clock.advance(0.1)
    assert crowd.served == [("a", 16)]


@pytest.mark.anyio
async def test_reset_lets_in_at_once(gate, clock, idle):
    gate.drain(10)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=8, b=2)
        gate.reset()
    assert sorted(name for name, _ in crowd.served) == ["a", "b"]


# Cancellation


@pytest.mark.anyio
@pytest.mark.parametrize("victim", ["a", "b", "c"])
async def test_a_cancelled_call_leaves_the_queue_and_the_others_move_up(gate, clock, idle, victim):
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=2, b=3, c=4)
        crowd.scopes[victim].cancel()
        await idle()
        assert gate.waiting == 2
        for _ in range(9):
            clock.advance(1)
            await idle()
    expected = {"a": [("b", 3), ("c", 7)], "b": [("a", 2), ("c", 6)], "c": [("a", 2), ("b", 5)]}
    assert crowd.served == expected[victim]


@pytest.mark.anyio
async def test_when_the_first_leaves_lighter_ones_behind_it_may_go_at_once(gate, clock, idle):
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, heavy=8, light=2)
        clock.advance(3)
        await idle()
        crowd.scopes["heavy"].cancel()
    assert crowd.served == [("light", 3)]


@pytest.mark.anyio
async def test_who_is_cancelled_when_let_in_gives_everything_back(gate, clock, idle):
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=2, b=1)
        clock.advance(2)
        assert gate.try_acquire(0) is None  # it lets in a, whose task has not run yet, and does not overtake b
        assert gate.waiting == 1
        crowd.scopes["a"].cancel()
        await idle()
    assert crowd.served == [("b", 2)]
    assert gate.available() == {"requests": 1}


@pytest.mark.parametrize("cancel_at", range(12))
@pytest.mark.anyio
async def test_a_cancellation_at_every_step_leaves_the_books_balanced(clock, idle, cancel_at):
    gate = limiter(requests=10, tokens=100, per=10, max_wait=1000, clock=clock)
    gate.try_acquire(requests=10, tokens=0)
    served = []
    scope = anyio.CancelScope()

    async def victim():
        with scope:
            async with gate:
                served.append("victim")

    async def other():
        await gate.acquire(requests=2, tokens=5)
        served.append("other")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(victim)
        tasks.start_soon(other)
        for step in range(12):
            if step == cancel_at:
                scope.cancel()
            if step in (5, 8):
                clock.advance(1)
            await anyio.lowlevel.checkpoint()
        clock.advance(1)
        await idle()
        clock.advance(1)
    assert "other" in served
    assert gate.waiting == 0
    taken = 2 + ("victim" in served)
    assert gate.available()["requests"] == pytest.approx(4 - taken)


# Threads


def in_thread(work, *arguments):
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    return thread


def until(condition):
    nothing = threading.Event()
    while not condition():
        nothing.wait(0.0005)


def test_threads_wait_in_their_turn(gate, clock):
    served = []

    def call(name, amount):
        gate.acquire_blocking(amount)
        served.append((name, clock.now() - 1000))

    threads = []
    for name, amount in (("a", 2), ("b", 3)):
        threads.append(in_thread(call, name, amount))
        until(lambda: gate.waiting == len(threads))
    until(lambda: clock._threads)
    clock.advance(2)
    threads[0].join(10)
    until(lambda: any(at > clock.now() for at, *_ in clock._threads))
    clock.advance(3)
    threads[1].join(10)
    assert served == [("a", 2), ("b", 5)]


def test_a_sync_function_waits_in_its_thread_and_may_be_refused_there(clock):
    gate = limiter(name="gate", requests=1, per=10, max_wait=15, clock=clock)
    outcomes = []

    @gate
    def call():
        outcomes.append("ran")

    def late():
        try:
            call()
        except RateLimited as refusal:
            outcomes.append(refusal.reason)

    call()
    with pytest.raises(RateLimited) as caught:
        gate.acquire_blocking(1.5)
    assert caught.value.reason == "amount_too_large"
    thread = in_thread(late)
    until(lambda: clock._threads)
    gate.drain(20)
    thread.join(10)
    assert outcomes == ["ran", "wait_timeout"]


@pytest.mark.anyio
async def test_a_sync_call_on_the_loops_thread_is_refused_rather_than_stop_the_loop(gate):
    with pytest.raises(RateLimited, match="a sync call on the event loop's thread must not wait") as caught:
        gate(lambda: None)()
    assert (caught.value.reason, caught.value.retry_after) == ("would_block", 1)


def test_a_thread_that_is_interrupted_while_it_waits_leaves_the_queue(gate, monkeypatch):
    def interrupted(event, seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(gate._clock, "wait_thread", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gate.acquire_blocking()
    assert (gate.waiting, gate.available()) == (0, {"requests": 0})


@pytest.mark.anyio
async def test_a_thread_wakes_a_task(gate, idle, clock):
    gate.reset()
    reservation = gate.try_acquire(10)
    async with anyio.create_task_group() as tasks:
        crowd = Crowd(gate, clock, tasks)
        await crowd.add(idle, a=3, b=3)
        await anyio.to_thread.run_sync(reservation.refund)
        with anyio.fail_after(10):
            while len(crowd.served) < 2:
                await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
@pytest.mark.many
async def test_threads_and_tasks_share_a_limiter_and_no_wake_up_is_lost():
    gate = limiter(requests=2000, per=1, burst=3, queue=10_000, max_wait=60)
    done = [0]
    lock = threading.Lock()

    def count():
        with lock:
            done[0] += 1

    work, async_work = gate(count), gate(partial(anyio.lowlevel.checkpoint))

    def thread():
        for _ in range(40):
            work()

    async def task():
        for _ in range(20):
            await async_work()
            count()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(anyio.to_thread.run_sync, thread)
            for _ in range(10):
                tasks.start_soon(task)
    assert (done[0], gate.waiting) == (5 * 40 + 10 * 20, 0)


def test_loops_of_two_kinds_in_two_threads_share_a_limiter():
    gate = limiter(requests=2000, per=1, burst=1, max_wait=60)
    done = []

    @gate
    async def work(kind):
        await anyio.lowlevel.checkpoint()
        done.append(kind)

    async def many(kind):
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(work, kind)

    threads = [in_thread(asyncio.run, many("asyncio")), in_thread(trio.run, many, "trio")]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a wake-up was lost"
    assert (done.count("asyncio"), done.count("trio"), gate.waiting) == (50, 50, 0)


# For all


async def settled():
    for _ in range(12):
        await asyncio.sleep(0)


class World:
    """A limiter of two dimensions with callers that come, leave, correct and are throttled, on a fake clock."""

    def __init__(self, burst, rate, max_wait):
        self.clock = FakeClock()
        self.limits = {"requests": float(burst), "tokens": 4.0 * burst}
        self.rates = {"requests": rate, "tokens": 4.0 * rate}
        self.gate = limiter(
            requests=rate, tokens=4 * rate, per=1, burst=self.limits, max_wait=max_wait, queue=8, clock=self.clock
        )
        self.max_wait = max_wait
        self.tasks: list[asyncio.Task] = []
        self.arrived: list[int] = []
        self.let_in: list[tuple[int, float, float, float]] = []
        self.held: dict[int, object] = {}
        self.drains: list[tuple[float, float]] = []  # when each began, and until when it holds

    async def call(self, number, requests, tokens):
        came = self.clock.now()
        begun = len(self.drains)
        try:
            reservation = await self.gate.acquire(requests=requests, tokens=tokens)
        except RateLimited as refused:
            refusal = refused
        else:
            refusal = None
        if refusal is not None:
            assert refusal.reason in {"rate_limited", "queue_full", "wait_timeout"}
            waited = self.clock.now() - came
            expired = refusal.reason == "wait_timeout" and waited >= self.max_wait - 1e-6  # those before it were late
            least = 0 if refusal.reason == "queue_full" else self.max_wait * 0.2 - 1
            assert refusal.retry_after >= 0 if expired else refusal.retry_after > least
            return
        assert reservation.taken - came == reservation.waited
        for number_of_drain, (at, until) in enumerate(self.drains):
            # One that begins after the call was let in, in the same moment or later, does not concern it.
            if (requests or tokens) and (number_of_drain < begun or at < reservation.taken):
                assert reservation.taken >= until
        self.let_in.append((number, reservation.taken, requests, tokens))
        self.held[number] = reservation

    async def play(self, kind, value, which):
        if kind == "call":
            requests = value % (self.limits["requests"] + 0.5)
            self.tasks.append(
                asyncio.ensure_future(self.call(len(self.tasks), requests, min(which / 2, self.limits["tokens"])))
            )
        elif kind == "cancel" and self.tasks:
            self.tasks[which % len(self.tasks)].cancel()
        elif kind == "advance":
            self.clock.advance(value / 3)
        elif kind == "correct" and self.held:
            number = sorted(self.held)[which % len(self.held)]
            reservation = self.held[number]
            reservation.correct(requests=min(value, reservation.requests), tokens=min(value, reservation.tokens))
        elif kind == "drain":
            self.gate.drain(value / 2)
            self.drains.append((self.clock.now(), self.clock.now() + value / 2))

    def check(self):
        times = [taken for _, taken, _, _ in sorted(self.let_in)]
        assert times == sorted(times), "somebody was overtaken"
        first = self.gate._lane.first
        assert (first is None) == (self.gate.waiting == 0)
        if first is not None:
            fits = [
                bucket.fits(amount, self.clock.now())
                for bucket, amount in zip(self.gate._lane.buckets, first.amounts, strict=True)
            ]
            assert not all(fits), "somebody sleeps whose turn it is"
        for place, name in ((2, "requests"), (3, "tokens")):
            for start in range(len(self.let_in)):
                total = 0.0
                for entry in self.let_in[start:]:
                    reservation = self.held[entry[0]]
                    total += getattr(reservation, name)
                    window = entry[1] - self.let_in[start][1]
                    assert total <= self.limits[name] + self.rates[name] * window + 1e-6, place


steps = st.lists(
    st.tuples(
        st.sampled_from(["call", "call", "call", "advance", "advance", "cancel", "correct", "drain"]),
        st.integers(0, 12),
        st.integers(0, 24),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(st.integers(1, 6), st.sampled_from([0.5, 1, 3]), st.sampled_from([2, 10, 100]), steps, st.randoms())
def test_in_every_story_the_queue_is_fair_the_rate_holds_and_nobody_is_forgotten(burst, rate, max_wait, story, chance):
    async def tell():
        world = World(burst, rate, max_wait)
        for step in story:
            await world.play(*step)
            if chance.random() < 0.7:  # else the next thing happens while tasks are still on their way
                await settled()
                world.check()
        await settled()
        world.check()
        for _ in range(30):
            world.clock.advance(max_wait / 4)
            await settled()
            world.check()
        assert all(task.done() for task in world.tasks), "somebody waits for ever"
        assert world.gate.waiting == 0
        for task in world.tasks:
            if not task.cancelled():
                task.result()

    asyncio.run(tell(), debug=False)


@pytest.mark.anyio
@pytest.mark.many
async def test_a_thousand_calls_with_random_cancellation(clock):
    chance = random.Random(20_240_607)
    gate = limiter(requests=20, tokens=200, per=1, queue=60, max_wait=5, adaptive=True, clock=clock)
    seen = dict.fromkeys(("ran", "refused", "cancelled"), 0)
    outcomes = [SUCCESS, SUCCESS, SUCCESS, Outcome("throttled", None, 0.5), Outcome("throttled")]

    async def one():
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            with contextlib.suppress(RateLimited):
                reservation = await gate.acquire(tokens=chance.randrange(40))
                await anyio.lowlevel.checkpoint()
                reservation.correct(tokens=chance.randrange(60))
                gate._learn(reservation, chance.choice(outcomes))
                seen["ran"] += 1
                return
            seen["refused"] += 1
        seen["cancelled"] += scope.cancelled_caught

    for _ in range(10):
        scopes: list[anyio.CancelScope] = []
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(one)
            while len(scopes) < 100 or gate.waiting:
                await anyio.lowlevel.checkpoint()
                if scopes and chance.random() < 0.5:
                    chance.choice(scopes).cancel()
                clock.advance(chance.random() / 10)
        assert gate.waiting == 0
    assert sum(seen.values()) == 1000
    assert all(count > 50 for count in seen.values()), seen
