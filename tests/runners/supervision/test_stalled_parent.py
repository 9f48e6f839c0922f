"""A parent whose event loop is blocked: its workers are not to blame."""

from __future__ import annotations

import asyncio
import time

import pytest

from runners import FunctionRunner

pytestmark = pytest.mark.anyio


def pids(runner):
    return {each.pid for each in runner.stats().workers}


async def test_a_large_call_that_could_not_be_sent_meanwhile_is_not_the_worker_s_fault(limit):
    async with FunctionRunner("calls:act") as act:
        before = pids(act)
        limit(act, cancel_grace=0.5)
        data = b"x" * (5 << 20)  # more than a socket takes at once
        call = asyncio.create_task(act("echo", data))
        await asyncio.sleep(0)
        time.sleep(1.5)
        assert await call == data
        assert pids(act) == before
        assert act.stats().restarts == {}


async def test_a_heartbeat_counts_the_time_in_which_it_could_be_heard(limit):
    async with FunctionRunner("calls:act", heartbeat=0.6) as act:
        before = pids(act)
        limit(act, cancel_grace=0.3)
        data = b"x" * (5 << 20)
        call = asyncio.create_task(act("echo", data))
        await asyncio.sleep(0)
        time.sleep(1.5)
        assert await call == data
        assert pids(act) == before


async def test_a_call_whose_caller_has_left_has_its_grace_without_the_stall(until, limit, tmp_path):
    mark = tmp_path / "mark"
    async with FunctionRunner("calls:act") as act:
        before = pids(act)
        limit(act, cancel_grace=1.0)
        call = asyncio.create_task(act("hold", str(mark), str(tmp_path / "go")))
        await until(mark.exists)
        call.cancel()
        await asyncio.wait([call])
        time.sleep(1.5)
        await asyncio.sleep(0.2)  # some looks
        (tmp_path / "go").touch()
        assert await act("echo", 1) == 1
        assert pids(act) == before


async def test_a_worker_that_is_stuck_is_still_found(until):
    async with FunctionRunner("calls:act", heartbeat=0.3) as act:
        stuck = asyncio.create_task(act("nap", 20))
        await asyncio.sleep(0.05)
        time.sleep(0.5)
        await until(lambda: act.stats().restarts.get("stuck_no_progress"), seconds=5)
        stuck.cancel()


async def test_a_start_is_not_cut_short_by_a_stall():
    runner = FunctionRunner("calls:echo", start_timeout=2)
    starting = asyncio.create_task(runner.start())
    while not any(each.pid for each in runner._supervisor.pool.coming):
        await asyncio.sleep(0)
    time.sleep(2.5)
    await starting
    await runner.close()
