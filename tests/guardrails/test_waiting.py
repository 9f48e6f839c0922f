from __future__ import annotations

import asyncio
import gc
import sys
import threading

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from guardrails import admit
from guardrails.core.waiting import TaskWaiter, ThreadWaiter, Waiter, WaitingRoom, on_event_loop

# The room


def test_the_head_alone_is_offered_a_permit():
    room, offered = WaitingRoom(10), []
    for weight in (5, 1, 1):
        room.join(Waiter(weight))
    assert room.grant(offered.append) == []
    assert (offered, len(room)) == ([5], 3)


def test_a_refused_head_keeps_its_place():
    room = WaitingRoom(10)
    heavy, light = Waiter(5), Waiter(1)
    room.join(heavy)
    room.join(light)
    room.grant(lambda weight: weight < 5)
    assert room.grant(lambda weight: True) == [heavy, light]


def test_a_room_is_full_at_its_capacity():
    room = WaitingRoom(2)
    waiters = [Waiter(1), Waiter(1)]
    for waiter in waiters:
        assert not room.full
        room.join(waiter)
    assert room.full
    room.leave(waiters[0])
    room.leave(waiters[0])
    assert (room.full, len(room)) == (False, 1)
    assert WaitingRoom(0).full


STEPS = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "grant"]), st.integers(1, 5), st.integers(0, 9)), max_size=60
)


@given(STEPS)
def test_the_room_equals_a_list(steps):
    room, model, everybody = WaitingRoom(1000), [], []
    for action, weight, index in steps:
        if action == "join":
            everybody.append(Waiter(weight))
            model.append(everybody[-1])
            room.join(everybody[-1])
        elif action == "leave" and everybody:
            waiter = everybody[index % len(everybody)]
            room.leave(waiter)
            if waiter in model:
                model.remove(waiter)
        elif action == "grant":
            free, expected = [index], []
            left = index
            while model and model[0].ticket <= left:
                left -= model[0].ticket
                expected.append(model.pop(0))

            def take(weight, free=free):
                if weight > free[0]:
                    return False
                free[0] -= weight
                return True

            assert room.grant(take) == expected
            assert all(waiter.granted for waiter in expected)
        assert len(room) == len(model)
        assert not any(waiter.granted for waiter in model)


# Arrival order


@pytest.mark.anyio
async def test_calls_run_in_the_order_they_came(memory, idle):
    gate = admit(concurrency=1, queue=20, sampler=memory)
    order, turns = [], anyio.Semaphore(0)

    @gate
    async def work(name):
        order.append(name)
        await turns.acquire()

    async with anyio.create_task_group() as tasks:
        for name in range(20):
            tasks.start_soon(work, name)
            await idle()
        for _ in range(20):
            turns.release()
            await idle()
    assert order == list(range(20))


@pytest.mark.anyio
async def test_a_newcomer_does_not_pass_those_who_wait(memory, idle):
    gate = admit(memory=lambda cost: cost, sampler=memory)
    memory.use(0, 100)
    order = []

    @gate
    async def work(cost):
        order.append(cost)
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        for cost in (60, 50, 1):  # the last one would fit
            tasks.start_soon(work, cost)
            await idle()
        assert (order, gate.waiting) == ([60], 2)
        tasks.cancel_scope.cancel()
    assert (gate.in_flight, gate.reserved, gate.waiting) == (0, 0, 0)


# Cancelled at every moment


@pytest.mark.anyio
async def test_a_waiter_that_is_granted_and_cancelled_at_once_passes_its_permit_on(memory, idle):
    gate = admit(concurrency=1, sampler=memory)
    done = []

    async def unlucky(scope):
        with scope:
            await gate(anyio.sleep_forever)()

    @gate
    async def lucky():
        done.append(True)

    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()
        async with gate:
            tasks.start_soon(unlucky, scope)
            await idle()
            tasks.start_soon(lucky)
            await idle()
            assert gate.waiting == 2
        scope.cancel()  # granted by the end of the block, and not yet run
        await idle()
        assert done == [True]
    assert (gate.in_flight, gate.waiting) == (0, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("order", ["grant first", "time first"])
async def test_a_grant_and_the_end_of_the_wait_in_one_moment(memory, clock, idle, order):
    gate = admit(concurrency=1, max_wait=5, sampler=memory, clock=clock)
    outcomes = []

    async def work():
        try:
            async with gate:
                outcomes.append("ran")
        except Exception as error:
            outcomes.append(type(error).__name__)

    async with anyio.create_task_group() as tasks:
        if order == "grant first":
            async with gate:
                tasks.start_soon(work)
                await idle()
            clock.advance(5)
        else:
            async with gate:
                tasks.start_soon(work)
                await idle()
                clock.advance(5)
    assert outcomes in (["ran"], ["WaitTimeout"])
    assert (outcomes == ["ran"]) or order == "time first"
    assert (gate.in_flight, gate.waiting) == (0, 0)


# Threads and loops


def test_on_event_loop_knows_where_it_is():
    async def here():
        in_thread = await anyio.to_thread.run_sync(on_event_loop)
        return on_event_loop(), in_thread

    assert not on_event_loop()
    assert anyio.run(here, backend="asyncio") == (True, False)
    assert anyio.run(here, backend="trio") == (True, False)
    assert not on_event_loop()


def test_a_thread_is_woken_once_and_for_all():
    from guardrails.core.clock import SYSTEM_CLOCK

    waiter = ThreadWaiter(1)
    waiter.wake()
    assert waiter.wait(SYSTEM_CLOCK, None) is True
    assert ThreadWaiter(1).wait(SYSTEM_CLOCK, 0.001) is False


@pytest.mark.anyio
async def test_a_task_is_woken_from_another_thread(idle):
    waiters = []

    async def wait():
        waiters.append(TaskWaiter(1))
        await waiters[0].wait()
        waiters.append("woken")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await idle()
        await anyio.to_thread.run_sync(waiters[0].wake)
    assert waiters[1] == "woken"


@pytest.mark.parametrize("run", [asyncio.run, lambda coroutine: trio.run(lambda: coroutine)], ids=["asyncio", "trio"])
def test_a_wake_up_for_a_loop_that_is_gone_is_no_error(run):
    waiters = []

    async def build():
        waiters.append(TaskWaiter(1))

    run(build())
    thread = threading.Thread(target=waiters[0].wake)
    errors = []
    hook, threading.excepthook = threading.excepthook, errors.append
    try:
        thread.start()
        thread.join()
    finally:
        threading.excepthook = hook
    assert errors == []


def test_a_wake_up_of_a_cancelled_task_is_no_error():
    async def main():
        waiter = TaskWaiter(1)
        waiter._wait.cancel()
        waiter.wake()

    asyncio.run(main())


def test_a_task_that_dies_with_its_loop_gives_its_place_back(memory):
    gate = admit(concurrency=1, sampler=memory)
    loop = asyncio.new_event_loop()

    async def work():
        async with gate:
            await asyncio.sleep(30)

    async def start():
        return [loop.create_task(work()) for _ in range(2)]

    tasks = loop.run_until_complete(start())
    loop.run_until_complete(asyncio.sleep(0))
    assert (gate.in_flight, gate.waiting) == (1, 1)
    for task in tasks:
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
    loop.close()
    gc.collect()
    assert (gate.in_flight, gate.waiting) == (0, 0)


def test_waiting_on_asyncio_does_not_need_trio(memory):
    # In a process of its own: here, trio is loaded.
    import subprocess

    script = """
import asyncio, sys
sys.modules["trio"] = None
from guardrails.core.waiting import TaskWaiter, on_event_loop
async def main():
    waiter = TaskWaiter(1)
    asyncio.get_running_loop().call_soon(waiter.wake)
    await waiter.wait()
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
