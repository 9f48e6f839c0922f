"""Ends that we cause: drains wait for their requests, and no request is blamed for them."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from guardrails.testing import capture_events
from runners import FunctionRunner
from runners.errors import PoisonedRequest, RunnerCrashed
from runners.supervision import worker
from runners.supervision.events import WorkerExited, WorkerReplaced
from runners.supervision.exit import Exit
from runners.supervision.request import Request
from runners.supervision.restart import RestartPolicy

pytestmark = pytest.mark.anyio

MIB = 1 << 20
PATIENT = RestartPolicy(intensity=100, backoff=0.01)


def pids(runner):
    return {each.pid for each in runner.stats().workers if each.state == "ready"}


async def test_a_replaced_worker_has_as_long_as_its_requests(tmp_path, until, monkeypatch):
    mark, go = tmp_path / "mark", tmp_path / "go"
    monkeypatch.setattr(worker, "_TO_EXIT", 0.02)  # what a worker with nothing left to answer has
    async with FunctionRunner("calls:act") as act:
        (old,) = pids(act)
        held = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        recycling = asyncio.create_task(act.recycle())
        await until(lambda: pids(act) and old not in pids(act))
        assert await act("echo", 1) == 1
        await asyncio.sleep(0.2)
        assert not recycling.done()
        go.touch()
        assert await held == old
        await recycling


async def test_there_is_no_cap_unless_one_is_given():
    assert FunctionRunner("calls:echo")._supervisor.drain_timeout is None
    with pytest.raises(ValueError, match="drain_timeout takes a number of seconds above 0"):
        FunctionRunner("calls:echo", drain_timeout=0)


async def test_a_cap_ends_it(tmp_path, until):
    mark = tmp_path / "mark"
    async with FunctionRunner("calls:act", drain_timeout=0.05) as act:
        held = asyncio.create_task(act("hold", str(mark), str(tmp_path / "go")))
        await until(mark.exists)
        await act.recycle()
        with pytest.raises(RunnerCrashed, match=r"ended by the runner \(drain_timeout\)"):
            await held
        assert act.stats().restarts == {"drain_timeout": 1, "recycle": 1}


async def test_the_next_replacement_does_not_wait_for_a_long_drain(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act", workers=2) as act:
        before = pids(act)
        held = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        recycling = asyncio.create_task(act.recycle())
        await until(lambda: len(pids(act) - before) == 2)
        go.touch()
        assert await held in before
        await recycling


async def test_drains_are_no_strikes(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act", idempotent=True, drain_timeout=0.02) as act:
        held = asyncio.create_task(act("hold", str(mark), str(go)))
        for runs in range(1, 5):
            await until(lambda runs=runs: mark.exists() and len(mark.read_text().splitlines()) == runs)
            if runs < 4:
                await act.recycle()
        go.touch()
        assert await held in pids(act)


# Suspects


async def test_a_suspect_runs_next_on_a_fresh_worker(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act", workers=2, idempotent=True, restart=PATIENT) as act:
        before = pids(act)
        for _ in range(4):  # both have answered something
            await asyncio.gather(act("nap", 0.02), act("nap", 0.02))
        held = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        (first,) = {each.pid for each in act.stats().workers if each.in_flight}
        os.kill(first, signal.SIGSEGV)
        await until(lambda: len(mark.read_text().splitlines()) == 2)
        go.touch()
        assert await held not in before


async def test_a_call_on_two_workers_that_others_had_filled_is_no_poison(until):
    async with FunctionRunner("calls:act", workers=2, memory_hard="100MiB", idempotent=True, restart=PATIENT) as act:
        # Both are nearly full, by the work of others.
        while min(each.private for each in act.stats().workers) < 70 * MIB:
            await asyncio.gather(act("leak", 15 * MIB, 0.05), act("leak", 15 * MIB, 0.05))
            await asyncio.sleep(0.06)
        before = pids(act)
        assert await act("leak", 40 * MIB, 0.5) not in before


async def test_what_fills_fresh_workers_by_itself_is_poison():
    async with FunctionRunner("calls:act", memory_hard="100MiB", idempotent=True, restart=PATIENT) as act:
        await act("echo", 1)
        with capture_events(WorkerExited) as seen, pytest.raises(PoisonedRequest):
            await act("leak", 200 * MIB, 10)
        # The first one had answered others; the second one it had to itself.
        assert [event.reason for event in seen] == ["hard_budget"] * 2


async def test_a_suspect_does_not_wait_for_a_fresh_worker_that_does_not_come(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    async with FunctionRunner("calls:act", workers=2, idempotent=True) as act:
        await asyncio.gather(act("nap", 0.05), act("nap", 0.05))
        held = asyncio.create_task(act("hold", str(mark), str(go)))
        await until(mark.exists)
        (first,) = (each for each in act._supervisor.workers if each.in_flight)
        first.drain()  # so that none comes in its place
        first.process.kill("gone")
        await until(lambda: len(mark.read_text().splitlines()) == 2)
        go.touch()
        assert await held in pids(act)


def test_what_proves_that_a_request_is_the_cause():
    loop = asyncio.new_event_loop()
    request = Request(1, b"", b"", deadline=None, redeliver=True, future=loop.create_future())
    loop.close()
    full, crash = Exit(-9, "hard_budget", ""), Exit(-11, None, "")
    for exit, by_itself, proven in (  # noqa: A001 - the word for it
        (full, False, False),
        (full, False, False),
        (full, True, True),
        (Exit(-9, None, "", oom=True), False, False),
        (crash, False, True),
    ):
        request.outlived(exit, by_itself=by_itself)
        assert request.proven == proven
    assert (request.deaths, request.strikes, request.suspect) == (5, 5, True)


@pytest.mark.parametrize("reason", ["drained", "drain_timeout", "stopped"])
def test_what_is_planned(reason):
    assert Exit(-9, reason, "").planned
    assert not Exit(-9, "hard_budget", "").planned
    assert not Exit(-11, None, "").planned


async def test_replacements_are_still_reported(until):
    with capture_events(WorkerReplaced) as seen:
        async with FunctionRunner("calls:echo") as echo:
            await echo.recycle()
            assert [event.reason for event in seen] == ["recycle"]
