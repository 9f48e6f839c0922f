from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import random
import sys
import threading
import time
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from guardrails import deadline_in, guard
from guardrails.core.events import CallRejected
from guardrails.core.waiting import ThreadWaiter
from guardrails.errors import WaitTimeout
from guardrails.strategies.cache import cache
from guardrails.strategies.cache.flight import Flights, Landing, Leading, _led
from guardrails.strategies.cache.signals import CacheHit, CacheJoined, CacheMiss, CacheServedStale
from tests.guardrails.cached_calls import Caller, Gated, callers
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio


@pytest.fixture
def gated():
    return Gated()


async def one_by_one(group, idle, work, number):
    """Callers that come in this order; trio starts tasks in any."""
    found = []
    for _ in range(number):
        found += callers(group, work, 1)
        await idle()
    return found


async def test_calls_at_the_same_time_are_made_once(clock, idle, gated):
    layer = cache(ttl=10, name="answers", clock=clock)
    work = layer(gated.work)
    with decisions() as seen:
        async with anyio.create_task_group() as group:
            found = callers(group, work, 5, "a")
            await idle()
            assert gated.made == 1
            assert layer.snapshot().in_flight == 1
            gated.answer(1, answer := object())
    assert [caller.result for caller in found] == [answer] * 5
    assert await work("a") is answer
    snapshot = layer.snapshot()
    assert (snapshot.hits, snapshot.misses, snapshot.joined, snapshot.in_flight) == (1, 1, 4, 0)
    assert sorted(map(repr, seen)) == sorted(map(repr, [CacheMiss("answers")] + [CacheJoined("answers")] * 4))


async def test_other_arguments_do_not_wait(clock, idle, gated):
    work = cache(ttl=10, clock=clock)(gated.work)
    async with anyio.create_task_group() as group:
        (a,) = callers(group, work, 1, "a")
        await idle()
        (b,) = callers(group, work, 1, "b")
        await idle()
        assert gated.made == 2
        gated.answer(2, "b")
        await idle()
        assert b.result == "b"
        assert not a.done
        gated.answer(1, "a")


async def test_a_failure_is_everybodys(clock, idle, gated):
    layer = cache(ttl=10, clock=clock)
    work = layer(gated.work)
    error = ValueError()
    async with anyio.create_task_group() as group:
        found = callers(group, work, 5, "a")
        await idle()
        gated.answer(1, error)
    assert [caller.error for caller in found] == [error] * 5
    lengths = len(traceback.extract_tb(error.__traceback__))
    assert lengths < 12  # not five times as long
    assert layer.snapshot().in_flight == 0
    assert error.__context__ is None
    async with anyio.create_task_group() as group:
        (again,) = callers(group, work, 1, "a")
        await idle()
        gated.answer(2, "well")
    assert again.result == "well"


async def test_the_traceback_does_not_grow_with_the_followers(clock, idle):
    async def length(followers):
        gated = Gated()
        work = cache(ttl=10, clock=clock)(gated.work)
        async with anyio.create_task_group() as group:
            callers(group, work, 1 + followers)
            await idle()
            gated.answer(1, error := ValueError())
        return len(traceback.extract_tb(error.__traceback__))

    assert await length(2) == await length(50)


@pytest.mark.parametrize("window", [None, 60])
async def test_an_error_leaves_no_reference_cycle(clock, idle, window):
    class Special(Exception):
        pass

    go = anyio.Event()
    seen = []

    @cache(ttl=10, stale_if_error=window, clock=clock)
    async def work():
        await go.wait()
        error = Special()
        seen.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async def call():
        with contextlib.suppress(Special):
            await work()

    gc.collect()
    gc.disable()
    try:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(call)
            await idle()
            go.set()
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        assert [error() for error in seen] == [None]
    finally:
        gc.enable()


async def test_a_returned_failure_is_everybodys(clock, idle, gated):
    work = cache(ttl=10, clock=clock)(gated.work)
    bad = SimpleNamespace(status_code=500, headers={})
    async with anyio.create_task_group() as group:
        found = callers(group, work, 3)
        await idle()
        gated.answer(1, bad)
    assert [caller.result for caller in found] == [bad] * 3


async def test_a_stale_answer_is_everybodys(clock, idle, gated):
    layer = cache(ttl=10, stale_if_error=60, name="answers", clock=clock)
    work = layer(gated.work)
    async with anyio.create_task_group() as group:
        callers(group, work, 1)
        await idle()
        gated.answer(1, old := object())
        await idle()
        clock.advance(11)
        found = callers(group, work, 3)
        await idle()
        with decisions() as seen:
            gated.answer(2, ValueError())
            await idle()
    assert [caller.result for caller in found] == [old] * 3
    assert seen == [CacheServedStale("answers", 11, "error")] * 3
    assert layer.snapshot().stale == 3


async def test_a_leader_that_is_cancelled_hands_over(clock, idle, gated):
    layer = cache(ttl=10, clock=clock)
    work = layer(gated.work)
    async with anyio.create_task_group() as group:
        first, second, third = await one_by_one(group, idle, work, 3)
        first.scope.cancel()
        await idle()
        assert first.done
        assert first.result is None
        assert gated.calls[0].cancelled
        assert gated.made == 2  # the second caller makes it anew
        assert not second.done
        (fourth,) = callers(group, work, 1)
        await idle()
        second.scope.cancel()
        await idle()
        assert gated.made == 3
        gated.answer(3, "well")
    assert [caller.result for caller in (first, second, third, fourth)] == [None, None, "well", "well"]
    assert layer.snapshot().in_flight == 0


async def test_a_follower_that_is_cancelled_disturbs_nobody(clock, idle, gated):
    layer = cache(ttl=10, clock=clock)
    work = layer(gated.work)
    async with anyio.create_task_group() as group:
        first, second, third = await one_by_one(group, idle, work, 3)
        second.scope.cancel()
        await idle()
        assert second.done
        assert gated.made == 1
        first.scope.cancel()
        await idle()
        assert gated.made == 2
        gated.answer(2, "well")
    assert third.result == "well"


async def test_the_last_one_who_goes_leaves_nothing(clock, idle, gated):
    layer = cache(ttl=10, clock=clock)
    work = layer(gated.work)
    async with anyio.create_task_group() as group:
        found = callers(group, work, 3)
        await idle()
        group.cancel_scope.cancel()
    assert [caller.result for caller in found] == [None] * 3
    assert layer.snapshot().in_flight == 0
    assert layer.snapshot().entries == 0


async def test_a_heir_that_is_cancelled_with_the_leader_passes_it_on(clock, idle, gated):
    work = cache(ttl=10, clock=clock)(gated.work)
    async with anyio.create_task_group() as group:
        first, second, third = await one_by_one(group, idle, work, 3)
        first.scope.cancel()
        second.scope.cancel()
        await idle()
        gated.answer(gated.made, "well")
    assert [caller.result for caller in (first, second, third)] == [None, None, "well"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_heir_that_is_cancelled_before_it_runs_passes_it_on(clock, gated):
    work = cache(ttl=10, clock=clock)(gated.work)
    tasks = [asyncio.create_task(work()) for _ in range(3)]
    await anyio.wait_all_tasks_blocked()
    tasks[0].cancel()
    while not tasks[0].done():
        await asyncio.sleep(0)
    # The second was just promoted; whether it has run already or not, it goes away.
    tasks[1].cancel()
    await anyio.wait_all_tasks_blocked()
    gated.answer(gated.made, "well")
    assert await tasks[2] == "well"
    assert tasks[1].cancelled()


async def test_a_cancelled_error_of_the_call_itself_is_the_leaders(clock, idle, gated):
    # Somebody cancelled what the call waits for, and nobody the callers.
    work = cache(ttl=10, clock=clock)(gated.work)
    ends = []

    async def call():
        try:
            ends.append(await work())
        except asyncio.CancelledError:
            ends.append("cancelled")

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        group.start_soon(call)
        await idle()
        gated.answer(1, asyncio.CancelledError())
        await idle()
        gated.answer(2, "well")
    assert ends == ["cancelled", "well"]


async def test_an_interrupt_is_the_leaders_alone(clock, gated):
    class Interrupt(BaseException):
        pass

    layer = cache(ttl=10, clock=clock)

    @layer
    async def work():
        raise Interrupt

    with pytest.raises(Interrupt):
        await work()
    assert layer.snapshot().in_flight == 0


# Forgetting, with calls in flight


@pytest.mark.parametrize("how", ["invalidate", "clear"])
async def test_what_was_in_flight_when_told_to_forget_is_not_kept(clock, idle, gated, how):
    layer = cache(ttl=10, clock=clock)
    work = layer(gated.work)
    async with anyio.create_task_group() as group:
        before = callers(group, work, 2, "a")
        await idle()
        if how == "clear":
            layer.clear()
        else:
            layer.invalidate(work, "b")
            layer.invalidate(work, "a")
        after = callers(group, work, 2, "a")
        await idle()
        assert gated.made == 2
        gated.answer(2, "new")
        await idle()
        gated.answer(1, "old")
    assert [caller.result for caller in before] == ["old"] * 2
    assert [caller.result for caller in after] == ["new"] * 2
    assert await work("a") == "new"
    assert layer.snapshot().in_flight == 0


async def test_forgetting_one_call_leaves_the_others_in_flight(clock, idle, gated):
    layer = cache(ttl=10, clock=clock)
    work = layer(gated.work)
    async with anyio.create_task_group() as group:
        found = callers(group, work, 1, "a")
        await idle()
        layer.invalidate(work, "b")
        found += callers(group, work, 1, "a")
        await idle()
        gated.answer(1, "well")
    assert [caller.result for caller in found] == ["well"] * 2
    assert await work("a") == "well"


async def test_forgetting_does_not_strand_a_flight_that_is_handed_over(clock, idle, gated):
    layer = cache(ttl=10, clock=clock)
    work = layer(gated.work)
    async with anyio.create_task_group() as group:
        first, second = await one_by_one(group, idle, work, 2)
        layer.clear()
        first.scope.cancel()
        await idle()
        gated.answer(2, "well")
    assert second.result == "well"
    assert layer.snapshot().entries == 0


# Deadlines of those who wait


def in_thread(work, seconds, clock, got):
    def call():
        with deadline_in(seconds, clock=clock):
            try:
                got.append(work())
            except Exception as error:
                got.append(error.with_traceback(None))

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("stale", [False, True])
def test_a_thread_that_waits_leaves_at_its_deadline(clock, stale):
    layer = cache(ttl=10, stale_if_error=100 if stale else None, name="answers", clock=clock)
    entered, go, first, got = threading.Event(), threading.Event(), [], []
    results = ["old"] if stale else []

    @layer
    def work():
        if results:
            return results.pop()
        entered.set()
        assert go.wait(30)
        return "new"

    if stale:
        work()
        clock.advance(11)
    leader = in_thread(work, 1000, clock, first)
    try:
        assert entered.wait(30)
        with decisions() as seen:
            follower = in_thread(work, 5, clock, got)
            while clock.due is None and follower.is_alive():
                time.sleep(0.001)
            clock.advance(5)
            follower.join(30)
            assert not follower.is_alive()
        if stale:
            assert got == ["old"]
            assert seen == [CacheJoined("answers"), CacheServedStale("answers", 16, "error")]
        else:
            assert (type(got[0]), got[0].guard, got[0].reason) == (WaitTimeout, "answers", "wait_timeout")
            assert seen == [CacheJoined("answers"), CallRejected("answers", "wait_timeout", None)]
        assert layer.snapshot().in_flight == 1
    finally:
        go.set()
        leader.join(30)
    assert first == ["new"]
    assert work() == "new"


def test_a_thread_without_time_left_does_not_wait_at_all(clock):
    layer = cache(ttl=10, clock=clock)
    entered, go, first, got = threading.Event(), threading.Event(), [], []

    @layer
    def work():
        entered.set()
        assert go.wait(30)
        return "new"

    leader = in_thread(work, 1000, clock, first)
    try:
        assert entered.wait(30)
        in_thread(work, 0, clock, got).join(30)
        assert [type(each) for each in got] == [WaitTimeout]
    finally:
        go.set()
        leader.join(30)


async def test_a_task_that_waits_leaves_at_its_deadline(clock, idle, gated):
    layer = cache(ttl=10, name="answers", clock=clock)
    work = layer(gated.work)

    async def hurried():
        with deadline_in(5, clock=clock):
            return await work()

    async with anyio.create_task_group() as group:
        leader, patient = await one_by_one(group, idle, work, 2)
        (follower,) = callers(group, hurried, 1)
        await idle()
        clock.advance(4.9)
        await idle()
        assert not follower.done
        clock.advance(0.1)
        await idle()
        assert isinstance(follower.error, WaitTimeout)
        gated.answer(1, "new")
    assert (leader.result, patient.result, gated.made) == ("new", "new", 1)


async def test_one_whose_deadline_comes_as_the_flight_is_handed_to_it_leads_it(clock, idle, gated):
    layer = cache(ttl=10, clock=clock)
    work = layer(gated.work)

    async def hurried():
        with deadline_in(5, clock=clock):
            return await work()

    async with anyio.create_task_group() as group:
        leader = Caller()
        group.start_soon(leader.of, work)
        await idle()
        (follower,) = callers(group, hurried, 1)
        await idle()
        leader.scope.cancel()
        clock.advance(5)
        await idle()
        if follower.done:
            assert isinstance(follower.error, WaitTimeout)
        else:
            assert gated.made == 2
            gated.answer(2, "new")
    assert layer.snapshot().in_flight == 0


# Calls within calls


async def test_a_function_that_calls_itself_does_not_wait_for_itself(clock):
    layer = cache(ttl=10, clock=clock)
    depth = 0

    @layer
    async def work(name):
        nonlocal depth
        depth += 1
        return "end" if depth == 3 else [await work(name)]

    with anyio.fail_after(5):
        assert await work("a") == [["end"]]
    assert await work("a") == [["end"]]
    assert layer.snapshot().in_flight == 0
    assert layer.snapshot().misses == 3


def test_a_sync_function_that_calls_itself_does_not_wait_for_itself(clock):
    depth = 0

    @cache(ttl=10, clock=clock)
    def work(name):
        nonlocal depth
        depth += 1
        return "end" if depth == 3 else [work(name)]

    assert work("a") == [["end"]]


async def test_a_task_within_the_call_does_not_wait_for_it(clock):
    inner = []

    @cache(ttl=10, clock=clock)
    async def work(name):
        if not inner:
            inner.append(1)

            async def again():
                inner.append(await work(name))

            async with anyio.create_task_group() as group:
                group.start_soon(again)
        return name

    with anyio.fail_after(5):
        assert await work("a") == "a"
    assert inner == [1, "a"]


async def test_two_calls_that_want_each_other_do_not_wait_for_ever(clock, idle):
    started = anyio.Event()
    one = cache(ttl=10, clock=clock)
    two = cache(ttl=10, clock=clock)  # caches need not be the same for that
    made = []

    @one
    async def a():
        made.append("a")
        if made.count("a") == 1:
            await started.wait()
            return ["a", await b()]
        return ["a again"]

    @two
    async def b():
        made.append("b")
        if made.count("b") == 1:
            await started.wait()
            return ["b", await a()]
        return ["b again"]

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            (first,), (second,) = callers(group, a, 1), callers(group, b, 1)
            await idle()
            started.set()
    # Whoever came second to the other one made his own call of it, and the first got what came of that.
    assert sorted([str(first.result), str(second.result)]) in (
        sorted(["['a', ['b', ['a again']]]", "['b', ['a again']]"]),
        sorted(["['b', ['a', ['b again']]]", "['a', ['b again']]"]),
    )
    assert one.snapshot().in_flight == two.snapshot().in_flight == 0


async def test_a_circle_of_three(clock, idle):
    layer = cache(ttl=10, clock=clock)
    begun = set()
    go = anyio.Event()

    @layer
    async def ring(number):
        if number in begun:
            return f"{number} alone"
        begun.add(number)
        await go.wait()
        return f"{number}, {await ring((number + 1) % 3)}"

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            found = [callers(group, ring, 1, number)[0] for number in range(3)]
            await idle()
            go.set()
    # One of them closes the circle, and makes a call of its own; the others wait in a line.
    assert sorted(caller.result.count(",") for caller in found) == [1, 2, 3]
    assert all(caller.result.endswith("alone") for caller in found)
    assert layer.snapshot().in_flight == 0


def test_a_flight_lands_once():
    flight = Flights().start("key", None)
    seat = ThreadWaiter(None)
    following = flight.join(seat)
    flight.land(first := Landing("first"))
    flight.land(Landing("second"))
    flight.hand_over()
    assert following.take() is first


def test_a_wait_that_is_over_is_forgotten():
    flights = Flights()
    outer, inner = flights.start("outer", None), flights.start("inner", None)
    with Leading(outer):
        following = inner.join(ThreadWaiter(None))
        with Leading(inner):
            assert outer.would_wait_for_itself()
        with following:
            inner.land(Landing("well"))
    with Leading(inner):
        assert not outer.would_wait_for_itself()


async def test_the_flights_of_a_context_end_with_the_call(clock):
    @cache(ttl=10, clock=clock)
    async def work():
        assert len(_led.get()) == 1

    await work()
    assert _led.get() == ()


async def test_a_coroutine_that_is_dropped_in_the_middle_hands_over(clock, gated):
    layer = cache(ttl=10, clock=clock)

    class Pause:
        def __await__(self):
            yield self

    @layer
    async def work():
        await Pause()

    def start():
        call = work()
        call.send(None)
        return call

    call = contextvars.copy_context().run(start)
    assert layer.snapshot().in_flight == 1
    call.close()  # in another context than it began in
    assert layer.snapshot().in_flight == 0


# Threads


def test_threads_make_one_call(clock):
    layer = cache(ttl=10, clock=clock)
    made = []
    go = threading.Event()

    @layer
    def work(name):
        made.append(name)
        go.wait(10)
        return object()

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(work, "a") for _ in range(8)]
        while layer.snapshot().joined < 7:
            assert not any(future.done() for future in futures)
        go.set()
        assert len({id(future.result(10)) for future in futures}) == 1
    assert made == ["a"]
    assert layer.snapshot().in_flight == 0


def test_threads_share_a_failure_and_its_traceback_does_not_grow(clock):
    layer = cache(ttl=10, clock=clock)
    go = threading.Event()
    error = ValueError()

    @layer
    def work():
        go.wait(10)
        raise error

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(work) for _ in range(8)]
        while layer.snapshot().joined < 7:
            pass
        go.set()
        assert [future.exception(10) for future in futures] == [error] * 8
    assert len(traceback.extract_tb(error.__traceback__)) < 12


def test_a_leading_thread_that_is_interrupted_hands_over(clock):
    layer = cache(ttl=10, clock=clock)
    go = threading.Event()
    made = []

    @layer
    def work():
        made.append(1)
        if len(made) == 1:
            go.wait(10)
            raise KeyboardInterrupt
        return "well"

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(work) for _ in range(2)]
        while layer.snapshot().joined < 1:
            pass
        go.set()
        ends = [future.exception(10) or future.result() for future in futures]
    assert "well" in ends
    assert any(isinstance(end, KeyboardInterrupt) for end in ends)


async def test_a_sync_function_on_an_event_loop_does_not_stop_the_loop_to_wait(clock):
    layer = cache(ttl=10, clock=clock)
    go = threading.Event()
    made = []

    @layer
    def work():
        made.append(threading.get_ident())
        if len(made) == 1:
            go.wait(10)
        return len(made)

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, work)
        while not made:
            await anyio.lowlevel.checkpoint()
        assert work() == 2  # made here, since the other one cannot be waited for
        go.set()
    assert len(set(made)) == 2
    assert work() in (1, 2)


async def test_sync_code_within_a_flight_knows_of_it_in_its_thread(clock):
    layer = cache(ttl=10, clock=clock)
    depth = []

    @layer
    def work():
        depth.append(1)
        if len(depth) == 1:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(contextvars.copy_context().run, work).result(5)
        return "inner"

    assert await anyio.to_thread.run_sync(work) == "inner"


def test_callers_on_other_loops_make_their_own_call(clock):
    layer = cache(ttl=10, clock=clock)
    made = []
    both = threading.Barrier(2, timeout=10)

    @layer
    async def work():
        made.append(1)
        both.wait()  # only if both are in the call at once does this end
        return len(made)

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(lambda: asyncio.run(work())) for _ in range(2)]
        assert [future.result(10) for future in futures] == [2, 2]
    assert layer.snapshot().in_flight == 0


def test_a_loop_that_died_with_a_call_in_flight_is_no_obstacle(clock):
    layer = cache(ttl=10, clock=clock)
    stuck = True

    @layer
    async def work():
        if stuck:
            await asyncio.get_running_loop().create_future()
        return "well"

    loop = asyncio.new_event_loop()
    coroutine = work()

    async def begin():
        task.append(asyncio.ensure_future(coroutine))
        await asyncio.sleep(0)

    task = []
    loop.run_until_complete(begin())
    loop.close()
    assert layer.snapshot().in_flight == 1
    stuck = False
    assert asyncio.run(asyncio.wait_for(work(), 5)) == "well"
    task.pop()._log_destroy_pending = False
    coroutine.close()
    gc.collect()
    assert layer.snapshot().in_flight == 0


def test_a_loop_that_died_with_followers_too_leaves_nothing(clock):
    layer = cache(ttl=10, clock=clock)

    @layer
    async def work():
        await asyncio.get_running_loop().create_future()

    loop = asyncio.new_event_loop()
    tasks = []

    async def begin():
        tasks.extend(asyncio.ensure_future(work()) for _ in range(3))
        for _ in range(3):
            await asyncio.sleep(0)

    loop.run_until_complete(begin())
    loop.close()
    assert layer.snapshot().joined == 2
    coroutines = [task.get_coro() for task in tasks]
    for task in tasks:
        task._log_destroy_pending = False
    for coroutine in coroutines:  # what the garbage collector does in the end
        coroutine.close()
    assert layer.snapshot().in_flight == 0


def test_a_coroutine_needs_no_event_loop(clock):
    @cache(ttl=10, clock=clock)
    async def work():
        return "made"

    with pytest.raises(StopIteration) as end:
        work().send(None)
    assert end.value.value == "made"


def test_an_entry_that_came_between_the_look_and_the_arrival_is_a_hit(clock):
    layer = cache(ttl=10, name="answers", clock=clock)
    work = layer(lambda: "made")
    assert work() == "made"
    # A look that came too early: nothing was found, though it is there now.
    layer._look, look = lambda key: None, layer._look
    try:
        with decisions() as seen:
            assert work() == "made"
    finally:
        layer._look = look
    assert seen == [CacheHit("answers")]
    assert layer.snapshot().hits == 1


def test_an_entry_that_goes_between_the_look_and_the_touch_is_still_a_hit(clock):
    layer = cache(ttl=10, clock=clock)
    made = []

    async def count():
        made.append(1)
        return "made"

    for work in (layer(lambda: made.append(1) or "made"), layer(count)):

        def call(work=work):
            found = work()
            return asyncio.run(found) if asyncio.iscoroutine(found) else found

        del made[:]
        call()

        def touch(key):
            raise KeyError(key)

        layer._touch, real = touch, layer._touch
        try:
            assert call() == "made"
        finally:
            layer._touch = real
        assert made == [1]


# Under stress


class Overlap(Exception):
    pass


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.many
async def test_each_caller_gets_a_value_or_his_own_cancellation(clock, seed):
    chance = random.Random(seed)
    layer = cache(ttl=3, max_bytes="16KiB", clock=clock)
    running = {}
    ends = []

    async def inner(key):
        if running.get(key):
            raise Overlap
        running[key] = True
        try:
            for _ in range(chance.randrange(12)):
                await anyio.lowlevel.checkpoint()
            if chance.random() < 0.2:
                raise ValueError(key)
            return f"value of {key}"
        finally:
            running[key] = False

    work = guard(layer)(inner)

    async def caller(key, scope):
        cancelled = True
        with scope:
            try:
                result = await work(key)
            except ValueError as error:
                result = error.args[0]
                assert result == key
                cancelled = False
            else:
                assert result == f"value of {key}"
                cancelled = False
        ends.append((cancelled, scope.cancel_called))

    started = 0
    async with anyio.create_task_group() as group:
        scopes = []
        for _ in range(300):
            for _ in range(chance.randrange(4)):
                scopes.append(anyio.CancelScope())
                group.start_soon(caller, chance.randrange(4), scopes[-1])
                started += 1
            if scopes and chance.random() < 0.6:
                chance.choice(scopes[-6:]).cancel()
            if chance.random() < 0.1:
                clock.advance(1)
            for _ in range(chance.randrange(3)):
                await anyio.lowlevel.checkpoint()
    assert len(ends) == started
    assert all(was_asked for cancelled, was_asked in ends if cancelled)
    assert sum(cancelled for cancelled, _ in ends) > 10
    assert layer.snapshot().in_flight == 0
    assert layer.snapshot().hits > 10
    assert layer.snapshot().joined > 10


def test_threads_under_stress_never_overlap(clock):
    layer = cache(ttl=1000, max_bytes="8KiB", clock=clock)
    running = [0] * 12
    wrong = []

    @layer
    def work(key):
        running[key] += 1
        if running[key] > 1:
            wrong.append(key)
        value = ("x" * 1000, key)
        running[key] -= 1
        return value

    def call(seed):
        chance = random.Random(seed)
        for _ in range(800):
            key = chance.randrange(12)
            if work(key)[1] != key:
                wrong.append(key)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(call, seed) for seed in range(4)]:
                future.result(60)
    finally:
        sys.setswitchinterval(before)
    snapshot = layer.snapshot()
    assert wrong == []
    assert snapshot.in_flight == 0
    assert snapshot.bytes <= 8192
    assert snapshot.hits + snapshot.misses + snapshot.joined == 3200
    assert snapshot.evicted > 0
