"""Stale while revalidating: callers get the stale answer at once, and a task of its own fetches the new one."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref

import anyio
import anyio.to_thread
import pytest

from guardrails import deadline_in
from guardrails.core import background
from guardrails.core.deadline import remaining
from guardrails.errors import CircuitOpen
from guardrails.strategies.cache import cache
from guardrails.strategies.cache.signals import (
    CacheHit,
    CacheMiss,
    CacheRefreshed,
    CacheRefreshFailed,
    CacheServedError,
    CacheServedStale,
)
from guardrails.testing import FakeClock
from tests.guardrails.cached_calls import Caller, Gated, callers
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio

BACKENDS = [
    pytest.param("asyncio", {"use_uvloop": False}, id="asyncio"),
    pytest.param("asyncio", {"use_uvloop": True}, id="uvloop"),
    pytest.param("trio", {}, id="trio"),
]


@pytest.fixture
def gated():
    return Gated()


@pytest.fixture
def layer(clock):
    return cache(ttl=10, stale_while_revalidate=30, name="answers", clock=clock)


@pytest.fixture
async def work(layer, gated, clock, idle):
    """Guarded, with an entry that is stale by now."""
    guarded = layer(gated.work)
    async with anyio.create_task_group() as group:
        callers(group, guarded, 1)
        await idle()
        gated.answer(1, "old")
    clock.advance(11)
    return guarded


async def test_every_caller_gets_the_stale_answer_and_one_task_fetches_the_new_one(layer, work, gated, clock, idle):
    with decisions() as seen:
        assert [await work() for _ in range(3)] == ["old"] * 3
        await idle()
        assert gated.made == 2
        clock.advance(3)
        assert await work() == "old"
        gated.answer(2, "new")
        await idle()
        assert await work() == "new"
    assert gated.made == 2
    assert seen == [
        *[CacheServedStale("answers", 11, "revalidating")] * 3,
        CacheServedStale("answers", 14, "revalidating"),
        CacheRefreshed("answers", 3),
        CacheHit("answers"),
    ]
    snapshot = layer.snapshot()
    assert (snapshot.misses, snapshot.stale, snapshot.refreshes, snapshot.in_flight) == (1, 4, 1, 0)


async def test_a_caller_that_is_cancelled_or_has_no_time_left_does_not_end_it(work, gated, idle):
    async with anyio.create_task_group() as group:
        caller = Caller()
        group.start_soon(caller.of, work)
        await idle()
        caller.scope.cancel()
        group.cancel_scope.cancel()
    await idle()
    assert not gated.calls[1].cancelled
    gated.answer(2, "new")
    await idle()
    assert await work() == "new"


async def test_it_has_the_callers_context_without_its_deadline(clock, idle):
    tenant = contextvars.ContextVar("tenant", default="none")
    seen = []

    @cache(ttl=10, stale_while_revalidate=30, clock=clock)
    async def work():
        seen.append((tenant.get(), remaining()))
        tenant.set("changed")
        return len(seen)

    with deadline_in(5, clock=clock):
        await work()
        tenant.set("ours")
        clock.advance(11)
    with deadline_in(5, clock=clock):
        assert await work() == 1
        await idle()
        assert remaining() == 5
    assert seen == [("none", 5), ("ours", None)]
    assert tenant.get() == "ours"


async def test_what_goes_wrong_is_an_event_and_the_next_caller_has_it_tried_again(layer, work, gated, clock, idle):
    with decisions() as seen:
        for number, error in ((2, ValueError("the prompt")), (3, CircuitOpen("b"))):
            assert await work() == "old"
            await idle()
            gated.answer(number, error)
            await idle()
        assert await work() == "old"
        await idle()
        gated.answer(4, "new")
        await idle()
    assert [event for event in seen if not isinstance(event, CacheServedStale)] == [
        CacheRefreshFailed("answers", "ValueError"),
        CacheRefreshFailed("answers", "CircuitOpen"),
        CacheRefreshed("answers", 0),
    ]
    assert await work() == "new"
    assert layer.snapshot().in_flight == 0


async def test_a_result_that_can_be_used_once_is_an_event_too(clock, idle):
    results = ["old", iter(())]

    @cache(ttl=10, stale_while_revalidate=30, name="answers", clock=clock)
    async def work():
        return results.pop(0)

    await work()
    clock.advance(11)
    with decisions() as seen:
        assert await work() == "old"
        await idle()
    assert seen[1:] == [CacheRefreshFailed("answers", "TypeError")]


async def test_those_who_come_when_the_entry_is_too_old_wait_for_it(work, gated, clock, idle):
    assert await work() == "old"
    await idle()
    clock.advance(30)
    async with anyio.create_task_group() as group:
        found = callers(group, work, 2)
        await idle()
        assert not any(caller.done for caller in found)
        gated.answer(2, "new")
    assert [caller.result for caller in found] == ["new"] * 2
    assert gated.made == 2


async def test_the_window_ends_exactly_at_its_time(gated, clock, idle):
    layer = cache(ttl=10, stale_while_revalidate=30, stale_if_error=60, clock=clock)  # the entry itself stays longer
    work = layer(gated.work)
    async with anyio.create_task_group() as group:
        callers(group, work, 1)
        await idle()
        gated.answer(1, "old")
        await idle()
        clock.advance(40)
        (caller,) = callers(group, work, 1)
        await idle()
        assert not caller.done
        gated.answer(2, "new")
    assert caller.result == "new"


async def test_a_stale_answer_stands_in_until_exactly_its_time(clock, idle):
    results = ["old", ValueError(), ValueError()]

    @cache(ttl=10, stale_while_revalidate=5, stale_if_error=30, clock=clock)
    async def work():
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    await work()
    clock.advance(39.9)
    assert await work() == "old"
    clock.advance(0.1)
    with pytest.raises(ValueError):
        await work()


async def test_what_is_forgotten_meanwhile_is_not_kept(layer, work, gated, idle):
    assert await work() == "old"
    await idle()
    layer.invalidate(work)
    gated.answer(2, "of before")
    await idle()
    async with anyio.create_task_group() as group:
        (caller,) = callers(group, work, 1)
        await idle()
        gated.answer(3, "new")
    assert caller.result == "new"


async def test_an_error_that_is_remembered_holds_the_next_one_off(clock, idle):
    calls = []

    @cache(ttl=10, stale_while_revalidate=100, errors=LookupError, error_ttl=20, clock=clock)
    async def work():
        calls.append(1)
        if len(calls) == 2:
            raise LookupError
        return len(calls)

    await work()
    clock.advance(11)
    for _ in range(3):
        assert await work() == 1
        await idle()
    assert len(calls) == 2
    clock.advance(20)
    assert await work() == 1
    await idle()
    assert await work() == 3


async def test_another_loop_does_not_fetch_it_too(work, gated, idle):
    assert await work() == "old"
    await idle()
    assert await anyio.to_thread.run_sync(asyncio.run, work()) == "old"
    await idle()
    assert gated.made == 2
    gated.answer(2, "new")
    await idle()
    assert await work() == "new"


# Loops that end


@pytest.mark.parametrize(("backend", "options"), BACKENDS)
@pytest.mark.parametrize("begun", [False, True])
def test_it_ends_with_the_loop(backend, options, begun):
    clock, gated, before = FakeClock(), Gated(), dict(background._alive)
    layer = cache(ttl=10, stale_while_revalidate=30, clock=clock)
    fetch = True

    @layer
    async def work():
        return "old" if fetch else await gated.work()

    async def main():
        nonlocal fetch
        await work()
        clock.advance(11)
        fetch = False
        assert await work() == "old"
        if begun:
            await anyio.wait_all_tasks_blocked()

    anyio.run(main, backend=backend, backend_options=options)
    assert [call.cancelled for call in gated.calls] == [True] * gated.made
    assert gated.made == 1 or not begun
    assert layer.snapshot().in_flight == 0
    assert background._alive == before
    fetch = True
    assert anyio.run(work, backend=backend, backend_options=options) == "old"


def test_a_loop_that_was_closed_with_one_running_keeps_nothing_and_stops_no_other():
    clock, gated = FakeClock(), Gated()
    layer = cache(ttl=10, stale_while_revalidate=30, clock=clock)
    work = layer(gated.work)

    async def begin():
        task = asyncio.ensure_future(work())
        await asyncio.sleep(0)
        gated.answer(1, "old")
        await task
        clock.advance(11)
        assert await work() == "old"
        await asyncio.sleep(0)

    async def go_on():
        assert await work() == "old"
        await asyncio.sleep(0)
        gated.answer(3, "new")
        while layer.snapshot().refreshes < 1:
            await asyncio.sleep(0)
        return await work()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # that a task was destroyed: it is
    loop.run_until_complete(begin())
    loop.close()
    dead = weakref.ref(loop)
    assert asyncio.run(go_on()) == "new"
    assert layer.snapshot().in_flight == 0
    del loop
    gated.calls.clear()
    gc.collect()
    assert dead() is None


# Sync functions


def test_the_first_caller_of_a_sync_function_fetches_and_others_get_the_stale_answer(clock):
    layer = cache(ttl=10, stale_while_revalidate=30, name="answers", clock=clock)
    entered, go, calls = threading.Event(), threading.Event(), []

    @layer
    def work():
        calls.append(threading.get_ident())
        if len(calls) == 2:
            entered.set()
            assert go.wait(30)
        return len(calls)

    assert work() == 1
    clock.advance(11)
    got = []
    with decisions() as seen:
        thread = threading.Thread(target=lambda: got.append(work()))
        thread.start()
        try:
            assert entered.wait(30)
            assert [work(), work()] == [1, 1]
        finally:
            go.set()
            thread.join(30)
    assert got == [2]
    assert calls[1] == thread.ident
    assert [event for event in seen if not isinstance(event, CacheServedStale)] == [
        CacheMiss("answers"),
        CacheRefreshed("answers", 0),
    ]
    assert work() == 2


def test_a_fetch_of_a_sync_function_that_fails_is_an_event_and_the_stale_answer(clock):
    layer = cache(ttl=10, stale_while_revalidate=30, name="answers", clock=clock)
    results = [1, ValueError(), 3]

    @layer
    def work():
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    assert work() == 1
    clock.advance(11)
    with decisions() as seen:
        assert [work(), work()] == [1, 3]
    assert seen == [
        CacheMiss("answers"),
        CacheRefreshFailed("answers", "ValueError"),
        CacheServedStale("answers", 11, "error"),
        CacheMiss("answers"),
        CacheRefreshed("answers", 0),
    ]
    assert not any(isinstance(event, CacheServedError) for event in seen)
