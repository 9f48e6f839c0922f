"""Closing: what is accepted is answered within the grace, and then it ends, whatever is stuck."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from runners import FunctionRunner
from runners.errors import RunnerClosed

pytestmark = pytest.mark.anyio


async def test_what_is_accepted_is_answered_and_nothing_more_is_accepted(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    act = await FunctionRunner("calls:act").start()
    calls = [
        asyncio.create_task(act("hold", str(mark), str(go))),
        *(asyncio.create_task(act("echo", n)) for n in range(40)),
    ]
    await until(mark.exists)
    closing = asyncio.create_task(act.close())
    await until(lambda: act.state == "draining")
    with pytest.raises(RunnerClosed, match="the runner is closed"):
        await act("echo", 99)
    go.touch()
    assert (await asyncio.gather(*calls))[1:] == list(range(40))
    await closing
    stats = act.stats()
    assert (act.state, stats.workers, stats.submitted, stats.answered, stats.restarts) == ("stopped", (), 41, 41, {})


async def test_a_stuck_call_is_given_up_after_the_grace(tmp_path, until):
    mark = tmp_path / "mark"
    act = await FunctionRunner("calls:act", grace=0.2).start()
    calls = [asyncio.create_task(act("hold", str(mark), "never")) for _ in range(20)]
    await until(mark.exists)
    began = time.monotonic()
    await act.close()
    assert 0.2 <= time.monotonic() - began < 1.2
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, RunnerClosed) for error in errors)
    assert "closed before this request was answered" in str(errors[0])
    stats = act.stats()
    assert stats.submitted == stats.failed == 20


async def test_a_block_that_failed_does_not_wait(tmp_path, until):
    mark = tmp_path / "mark"
    began = time.monotonic()
    with pytest.raises(KeyError):
        async with FunctionRunner("calls:act") as act:
            call = asyncio.create_task(act("hold", str(mark), "never"))
            await until(mark.exists)
            began = time.monotonic()
            raise KeyError
    assert time.monotonic() - began < 1
    with pytest.raises(RunnerClosed):
        await call


async def test_a_worker_that_dies_while_closing_does_not_lose_what_was_accepted(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    act = await FunctionRunner("calls:act", idempotent=True).start()
    calls = [
        asyncio.create_task(act("hold", str(mark), str(go))),
        *(asyncio.create_task(act("echo", n)) for n in range(40)),
    ]
    await until(mark.exists)
    closing = asyncio.create_task(act.close())
    await until(lambda: act.state == "draining")
    go.touch()
    os.kill(act.stats().workers[0].pid, signal.SIGKILL)
    assert (await asyncio.gather(*calls))[1:] == list(range(40))
    await closing
    assert act.state == "stopped"


async def test_closed_between_two_workers_what_waits_is_answered(until):
    act = await FunctionRunner("calls:act").start()
    os.kill(act.stats().workers[0].pid, signal.SIGKILL)
    await until(lambda: not act.stats().workers)
    calls = [asyncio.create_task(act("echo", n)) for n in range(5)]
    await asyncio.sleep(0)
    await act.close()
    assert await asyncio.gather(*calls) == list(range(5))


async def test_a_close_that_is_cancelled_ends_the_workers_at_once(tmp_path, until):
    mark = tmp_path / "mark"
    act = await FunctionRunner("calls:act").start()
    call = asyncio.create_task(act("hold", str(mark), "never"))
    await until(mark.exists)
    closing = asyncio.create_task(act.close())
    await until(lambda: act.state == "draining")
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(RunnerClosed):
        await call
    assert act.state == "stopped"


async def test_closed_by_two_at_once():
    act = await FunctionRunner("calls:act").start()
    await asyncio.gather(act.close(), act.close())
    assert act.state == "stopped"


async def test_a_stopped_worker_is_killed():
    act = await FunctionRunner("calls:act", grace=0.1).start()
    os.kill(act.stats().workers[0].pid, signal.SIGSTOP)
    await act.close()
