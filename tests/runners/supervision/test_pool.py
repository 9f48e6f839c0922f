"""The number of workers: with the load between bounds, none before the first request, none when idle for long."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import pytest

from guardrails.testing import capture_events
from runners import FunctionRunner
from runners.errors import FunctionNotFound, RequestTimeout, RunnerClosed, RunnerUnavailable
from runners.supervision import pool
from runners.supervision.autoscale import Autoscale
from runners.supervision.events import RunnerScaled, RunnerStateChanged, RunnerUnloaded, ScaleUpHeld, WorkerExited
from runners.supervision.restart import RestartPolicy

pytestmark = pytest.mark.anyio

QUICK = Autoscale(1, 3, queue_delay=0.05, up_after=0.1, down_after=0.4)


class Callers:
    """Callers that call one after the other until they are told to stop."""

    def __init__(self, runner, count, *call):
        self.answers, self.going = [], True
        self._task = asyncio.gather(*(self._run(runner, call) for _ in range(count)))

    async def _run(self, runner, call):
        while self.going:
            self.answers.append(await runner(*call))

    async def stop(self):
        self.going = False
        await self._task


def pids(runner):
    return {worker.pid for worker in runner.stats().workers if worker.state == "ready"}


def nothing_was_lost(runner, answers):
    stats = runner.stats()
    assert stats.submitted == stats.answered == len(answers)
    assert (stats.failed, stats.expired, stats.queued) == (0, 0, 0)


# Between bounds


async def test_more_workers_under_load_fewer_without_and_nothing_is_lost(until):
    with capture_events() as seen:
        async with FunctionRunner("calls:act", workers=QUICK) as act:
            assert len(pids(act)) == 1
            callers = Callers(act, 12, "nap", 0.02)
            await until(lambda: len(pids(act)) == 3)
            await until(lambda: set(callers.answers[-24:]) == pids(act))  # all of them get something to do
            await callers.stop()
            await until(lambda: len(act.stats().workers) == 1)
            assert await act("echo", 1) == 1
            nothing_was_lost(act, [*callers.answers, 1])
            assert act.stats().restarts == {}
    assert [(e.old, e.new) for e in seen if isinstance(e, RunnerScaled)] == [(1, 2), (2, 3), (3, 2), (2, 1)]
    assert {e.reason for e in seen if isinstance(e, WorkerExited)} == {"drained"}


async def test_a_light_load_stays_with_one_worker():
    with capture_events() as seen:
        async with FunctionRunner("calls:act", workers=QUICK) as act:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                await act("nap", 0.01)
    assert not [event for event in seen if isinstance(event, RunnerScaled)]


async def test_no_worker_is_started_that_would_not_fit(monkeypatch, until):
    monkeypatch.setattr(pool, "headroom", lambda: 1 << 20)
    with capture_events() as seen:
        async with FunctionRunner("calls:act", workers=QUICK) as act:
            callers = Callers(act, 12, "nap", 0.02)
            await until(lambda: any(isinstance(event, ScaleUpHeld) for event in seen))
            assert len(act.stats().workers) == 1
            baseline = act.stats().workers[0].baseline
            monkeypatch.setattr(pool, "headroom", lambda: int(baseline * 1.3))
            await until(lambda: len(pids(act)) == 2)
            await callers.stop()
    held = next(event for event in seen if isinstance(event, ScaleUpHeld))
    assert (held.workers, held.expected, held.free) == (1, baseline, 1 << 20)


async def test_nothing_changes_while_a_worker_is_being_replaced(until):
    async with FunctionRunner("calls:act", workers=QUICK) as act:
        act._supervisor.replacing = True
        callers = Callers(act, 12, "nap", 0.02)
        await asyncio.sleep(0.4)
        assert len(act.stats().workers) == 1
        act._supervisor.replacing = False
        await until(lambda: len(pids(act)) > 1)
        await callers.stop()


async def test_workers_that_crash_while_scaled_up_are_replaced_and_nothing_is_lost(until):
    policy = RestartPolicy(intensity=10, backoff=0.01)
    async with FunctionRunner("calls:act", workers=QUICK, idempotent=True, restart=policy) as act:
        callers = Callers(act, 12, "nap", 0.02)
        await until(lambda: len(pids(act)) == 3)
        old = pids(act)
        for pid in list(old)[:2]:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(pids(act)) == 3 and len(pids(act) & old) == 1)
        await callers.stop()
        nothing_was_lost(act, callers.answers)
        assert act.stats().restarts == {"sigkill": 2}
        await until(lambda: len(act.stats().workers) == 1)


async def test_one_more_that_cannot_start_changes_nothing(tmp_path, until):
    flag = tmp_path / "flag"
    flag.touch()
    size = Autoscale(1, 2, queue_delay=0.001, up_after=0)
    async with FunctionRunner("while_file:nap", workers=size, environment={"FLAG": str(flag)}) as nap:
        flag.unlink()
        callers = Callers(nap, 12)
        await until(lambda: nap.stats().restarts.get("start_failed"))
        await callers.stop()
        assert (nap.state, len(nap.stats().workers), nap._supervisor.pool.missing) == ("ready", 1, 0)
        nothing_was_lost(nap, callers.answers)


async def test_closed_while_one_more_is_starting(tmp_path, until):
    flag = tmp_path / "flag"
    flag.touch()
    size = Autoscale(1, 2, queue_delay=0.001, up_after=0)
    async with FunctionRunner("while_file:nap", workers=size, environment={"FLAG": str(flag), "LOAD": "0.4"}) as nap:
        callers = Callers(nap, 12)
        await until(lambda: nap._supervisor.pool.coming)
        await callers.stop()
    assert nap.stats().workers == ()


# Loaded when first asked


async def test_nothing_is_loaded_before_the_first_request_and_that_one_waits(until):
    with capture_events() as seen:
        async with FunctionRunner("calls:act", lazy=True, workers=2) as act:
            assert (act.state, act.stats().workers) == ("idle", ())
            assert await asyncio.gather(*(act("echo", n) for n in range(40))) == list(range(40))
            await until(lambda: act.state == "ready")  # it answers with the first worker, and is ready with the last
            assert len(pids(act)) == 2
    changes = [(e.old, e.new) for e in seen if isinstance(e, RunnerStateChanged)]
    assert changes[:3] == [("new", "idle"), ("idle", "starting"), ("starting", "ready")]


async def test_never_asked_never_loaded():
    began = time.monotonic()
    async with FunctionRunner("no_such_module:echo", lazy=True) as echo:
        assert echo.state == "idle"
    assert echo.state == "stopped"
    assert time.monotonic() - began < 0.2


async def test_the_load_counts_in_the_requests_time(tmp_path, until):
    mark = tmp_path / "mark"
    environment = {"MARK": str(mark)}
    async with FunctionRunner("slow_to_import:echo", lazy=True, timeout=0.5, grace=0, environment=environment) as echo:
        began = time.monotonic()
        with pytest.raises(RequestTimeout):
            await echo(1)
        assert 0.4 < time.monotonic() - began < 0.8
        assert mark.exists()
        assert echo.state == "starting"


async def test_callers_that_leave_during_the_load(until):
    async with FunctionRunner("calls:act", lazy=True) as act:
        leaving = [asyncio.create_task(act("echo", n)) for n in range(5)]
        staying = asyncio.create_task(act("echo", "here"))
        await until(lambda: act.state == "starting")
        for task in leaving:
            task.cancel()
        assert await staying == "here"
        assert (act.stats().cancelled, act.stats().answered) == (5, 1)


async def test_closed_during_the_load_what_waits_is_answered(until):
    act = await FunctionRunner("calls:act", lazy=True).start()
    calls = [asyncio.create_task(act("echo", n)) for n in range(5)]
    await until(lambda: act.state == "starting")
    await act.close()
    assert await asyncio.gather(*calls) == list(range(5))
    assert act.state == "stopped"


async def test_closed_at_once_during_the_load(tmp_path, until):
    mark = tmp_path / "mark"
    runner = FunctionRunner("slow_to_import:echo", lazy=True, grace=0, environment={"MARK": str(mark)})
    echo = await runner.start()
    call = asyncio.create_task(echo(1))
    await until(mark.exists)
    await echo.close()
    with pytest.raises(RunnerClosed):
        await call


async def test_a_load_that_fails_tells_everybody_and_is_tried_again_when_asked(tmp_path, until):
    flag = tmp_path / "flag"
    policy = RestartPolicy(intensity=2, backoff=0.2, probe_interval=0.6)
    async with FunctionRunner("while_file:pid", lazy=True, environment={"FLAG": str(flag)}, restart=policy) as pid:
        errors = await asyncio.gather(*(pid() for _ in range(5)), return_exceptions=True)
        assert len({id(error) for error in errors}) == 5
        assert all(isinstance(error, FunctionNotFound) for error in errors)
        assert "the cause of all failures" in str(errors[0])
        assert (pid.state, pid.stats().workers) == ("idle", ())

        with pytest.raises(FunctionNotFound):  # the first restart is at once
            await pid()
        with pytest.raises(RunnerUnavailable, match="the first request after this time tries again") as caught:
            await pid()
        assert 0.05 < caught.value.retry_after <= 0.2
        await asyncio.sleep(caught.value.retry_after)
        with pytest.raises(FunctionNotFound):
            await pid()
        assert pid.state == "failed"
        with pytest.raises(RunnerUnavailable) as caught:
            await pid()
        assert 0.2 < caught.value.retry_after <= 0.6
        assert pid.stats().restarts == {"start_failed": 3}

        flag.touch()
        await asyncio.sleep(caught.value.retry_after)
        assert {await pid()} == pids(pid)
        assert pid.state == "ready"
        # The failures are forgiven: a crash is answered by a restart at once, and not by `failed`.
        os.kill(await pid(), signal.SIGKILL)
        await until(lambda: not pids(pid))
        assert {await pid()} == pids(pid)


# Unloaded when idle


async def test_unloaded_when_idle_and_loaded_again(until):
    with capture_events() as seen:
        async with FunctionRunner("calls:act", workers=2, idle_unload=0.3) as act:
            first = pids(act)
            assert len(first) == 2
            held = act.stats().workers[0].private
            await until(lambda: act.state == "idle")
            await until(lambda: not act.stats().workers)
            assert await act("nap", 0) not in first
            await until(lambda: len(pids(act)) == 2)
            await act("nap", 0.5)  # what runs is no idleness
            assert act.state == "ready"
            assert act.stats().restarts == {}
    unloaded = next(event for event in seen if isinstance(event, RunnerUnloaded))
    assert unloaded.reason == "idle"
    assert unloaded.freed >= held


async def test_requests_that_come_just_then_are_not_lost():
    rng = random.Random(7)
    with capture_events() as seen:
        async with FunctionRunner("calls:act", workers=(0, 2), idle_unload=0.05) as act:
            answers = []
            for number in range(10):
                answers += await asyncio.gather(*(act("echo", number) for _ in range(3)))
                await asyncio.sleep(0.08 + 0.16 * rng.random())  # a look comes every 0.1 s, the second one unloads
            nothing_was_lost(act, answers)
            assert answers == [number for number in range(10) for _ in range(3)]
    assert sum(isinstance(event, RunnerUnloaded) for event in seen) >= 2


async def test_a_request_in_the_same_turn_as_the_unloading(until):
    async with FunctionRunner("calls:act") as act:
        old = pids(act)
        assert act._supervisor.pool.unload("idle")
        assert not act._supervisor.pool.unload("idle")
        call = asyncio.create_task(act("nap", 0))
        await until(lambda: act._supervisor.pool.coming)
        assert not act.stats().workers  # the memory of the old one is free before the new one takes its own
        assert await call not in old
        await until(lambda: len(act.stats().workers) == 1)


async def test_a_minimum_of_0_scales_and_goes_to_none(until):
    size = Autoscale(0, 2, queue_delay=0.05, up_after=0.1, down_after=0.2)
    async with FunctionRunner("calls:act", workers=size, idle_unload=0.5) as act:
        assert act.state == "idle"
        callers = Callers(act, 12, "nap", 0.02)
        await until(lambda: len(pids(act)) == 2)
        await callers.stop()
        await until(lambda: act.state == "idle")
        nothing_was_lost(act, callers.answers)


def test_a_minimum_of_0_is_lazy_and_unloads_by_default():
    made = FunctionRunner("calls:act", workers=(0, 2))._supervisor.pool
    assert (made.lazy, made.idle_unload) == (True, 60)
    made = FunctionRunner("calls:act", workers=(1, 2))._supervisor.pool
    assert (made.lazy, made.idle_unload) == (False, None)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"idle_unload": 0}, "idle_unload takes a number of seconds above 0, not 0"),
        ({"lazy": True, "queue": 0}, "queue=0 does not go with lazy, idle_unload or a minimum of 0"),
        ({"workers": (0, 1), "queue": 0}, "queue=0 does not go with"),
        ({"workers": (2, 1)}, "workers: the maximum, 1, must be"),
    ],
)
def test_wrong_arguments_are_named(keywords, words):
    with pytest.raises(ValueError, match=words):
        FunctionRunner("calls:echo", **keywords)
