"""Callers that leave, deadlines, full queues, and workers that get stuck."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import pytest

from runners import FunctionRunner
from runners.errors import QueueFull, RequestTimeout, RunnerCrashed

pytestmark = pytest.mark.anyio


def at_zero(runner):
    stats = runner.stats()
    return stats.queued == 0 and not any(worker.in_flight for worker in stats.workers)


def adds_up(stats):
    return stats.submitted == stats.answered + stats.failed + stats.expired + stats.cancelled


async def test_the_queued_work_of_a_caller_that_left_never_runs(tmp_path, until):
    mark, go, ran = tmp_path / "mark", tmp_path / "go", tmp_path / "ran"
    async with FunctionRunner("calls:act") as act:
        running = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        leaving = [asyncio.create_task(act("mark", str(ran), n)) for n in range(40)]
        await until(lambda: act.stats().queued == 40)
        for call in leaving:
            call.cancel()
        await asyncio.wait(leaving)
        go.touch()
        await running
        assert await act("echo", 1) == 1
        await until(lambda: at_zero(act))
        assert not ran.exists()
        assert act.stats().cancelled == 40
        assert adds_up(act.stats())


async def test_a_deadline_that_passes_in_the_queue_is_reported_in_time_and_the_call_never_runs(tmp_path, until):
    mark, go, ran = tmp_path / "mark", tmp_path / "go", tmp_path / "ran"
    async with FunctionRunner("calls:act") as act:
        running = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        act.timeout = 0.1
        began = time.monotonic()
        late = await asyncio.gather(*(act("mark", str(ran)) for _ in range(20)), return_exceptions=True)
        assert time.monotonic() - began < 1
        assert all(isinstance(error, RequestTimeout) and isinstance(error, TimeoutError) for error in late)
        go.touch()
        await running
        await until(lambda: at_zero(act))
        assert not ran.exists()
        assert act.stats().expired == 20
        assert adds_up(act.stats())


async def test_a_running_call_past_its_deadline_fails_at_once_and_its_worker_is_replaced(tmp_path, until, limit):
    mark, order = tmp_path / "mark", tmp_path / "order"
    async with FunctionRunner("calls:act", timeout=0.3) as act:
        limit(act, cancel_grace=0.3)
        old = act.stats().workers[0].pid
        began = time.monotonic()
        stuck = asyncio.create_task(act("hold", str(mark), str(tmp_path / "never")))
        await until(mark.exists)
        act.timeout = None
        neighbours = [asyncio.create_task(act("mark", str(order), n)) for n in range(5)]
        with pytest.raises(RequestTimeout, match="no answer within the request's timeout"):
            await stuck
        assert time.monotonic() - began < 1
        assert old not in await asyncio.gather(*neighbours)
        assert order.read_text() == "0\n1\n2\n3\n4\n"
        assert act.stats().restarts == {"stuck_abandoned": 1}
        assert adds_up(act.stats())


async def test_a_running_call_whose_caller_left_may_finish_within_the_grace(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act") as act:
        old = act.stats().workers[0].pid
        running = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        go.touch()
        assert await act("nap", 0) == old
        assert act.stats().restarts == {}


async def test_a_thousand_callers_that_leave_at_random(until):
    chance = random.Random(11)
    loop = asyncio.get_running_loop()
    async with FunctionRunner("calls:act", queue=2000) as act:
        timers = sum(not handle.cancelled() for handle in loop._scheduled)
        tasks = []
        answered = 0

        async def caller(number: int) -> None:
            nonlocal answered
            assert await act("echo", number) == number
            answered += 1

        for number in range(1000):
            tasks.append(asyncio.create_task(caller(number)))
            if chance.random() < 0.3:
                await asyncio.sleep(0)
            if chance.random() < 0.6:
                tasks[chance.randrange(len(tasks))].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: at_zero(act))
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
        stats = act.stats()
        assert 100 < answered <= stats.answered
        assert adds_up(stats)
        assert act.stats().queued == 0
        # Two: the watch's own, and one that an implementation may keep for all deadlines.
        await until(lambda: sum(not handle.cancelled() for handle in loop._scheduled) <= timers + 2)


async def test_the_queue_is_bounded(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act", queue=2) as act:
        running = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        waiting = [asyncio.create_task(act("echo", n)) for n in range(2)]
        await until(lambda: act.stats().queued == 2)
        with pytest.raises(QueueFull, match="2 requests wait already") as caught:
            await act("echo", 99)
        assert caught.value.reason == "queue_full"
        go.touch()
        assert await asyncio.gather(*waiting) == list(range(2))
        await running


async def test_a_queue_of_nothing_takes_what_a_worker_can_take_at_once(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act", queue=0) as act:
        assert await act("echo", 1) == 1
        for _ in range(50):
            await act("echo", 1)  # however short calls are, none is given ahead: it would wait
        call = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        with pytest.raises(QueueFull):
            await act("echo", 2)
        go.touch()
        await call


# Stuck


async def test_a_worker_stopped_while_idle_is_noticed_and_replaced(limit):
    async with FunctionRunner("calls:act") as act:
        limit(act, cancel_grace=0.3)
        old = act.stats().workers[0].pid
        os.kill(old, signal.SIGSTOP)
        assert await asyncio.gather(*(act("echo", n) for n in range(20))) == list(range(20))
        assert act.stats().restarts == {"stuck_not_responding": 1}


async def test_a_worker_stopped_while_busy_is_noticed_by_its_heartbeat(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act", idempotent=True, heartbeat=0.4) as act:
        old = act.stats().workers[0].pid
        call = asyncio.create_task(act("hold", str(mark), str(go)))
        others = [asyncio.create_task(act("echo", n)) for n in range(20)]
        await until(mark.exists)
        os.kill(old, signal.SIGSTOP)
        go.touch()
        assert await call != old
        assert await asyncio.gather(*others) == list(range(20))
        assert act.stats().restarts == {"stuck_no_progress": 1}


async def test_a_worker_stuck_in_native_code_is_killed(tmp_path):
    async with FunctionRunner("calls:act", heartbeat=0.3) as act:
        began = time.monotonic()
        with pytest.raises(RunnerCrashed, match="stuck_no_progress"):
            await act("native_hang", str(tmp_path / "mark"))
        assert time.monotonic() - began < 2
        assert await act("echo", 1) == 1


async def test_steps_that_finish_in_time_are_no_hang():
    async with FunctionRunner("calls:nap", heartbeat=0.3) as nap:
        await asyncio.gather(*(nap(0.1) for _ in range(8)))
        assert nap.stats().restarts == {}


async def test_an_event_loop_that_was_blocked_kills_no_worker(limit):
    async with FunctionRunner("calls:act", heartbeat=0.3) as act:
        limit(act, cancel_grace=0.2)
        calls = [asyncio.create_task(act("large", 1 << 20)) for _ in range(16)]
        await asyncio.sleep(0.01)
        time.sleep(0.7)  # somebody's blocking code
        await asyncio.gather(*calls)
        assert act.stats().restarts == {}
