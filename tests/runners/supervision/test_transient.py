"""Errors that pass: what supervision does when the system refuses it something for a while."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import time
from pathlib import Path

import pytest

from guardrails.testing import capture_events
from runners import Fleet, FunctionRunner
from runners.errors import SystemLimitReached
from runners.supervision import pool, scaling, watch, worker
from runners.supervision.autoscale import Autoscale
from runners.supervision.events import SupervisionFailed
from runners.supervision.limits import Limits
from runners.supervision.restart import RestartPolicy

pytestmark = pytest.mark.anyio

PATIENT = RestartPolicy(intensity=1000, backoff=0.02, max_backoff=0.05)


def pids(runner):
    return {each.pid for each in runner.stats().workers if each.state == "ready"}


def no_descriptor(*_, **__):
    raise OSError(errno.EMFILE, "Too many open files")


def failing(times, then):
    """`then`, after so many calls without a descriptor."""
    left = [times]

    def call(*args, **kwargs):
        left[0] -= 1
        return no_descriptor() if left[0] >= 0 else then(*args, **kwargs)

    return call


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
async def test_whatever_step_of_a_restart_finds_no_descriptor_it_heals_when_there_are_some(until):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with FunctionRunner("calls:echo", restart=PATIENT) as echo:
        for spare in range(14):
            (old,) = pids(echo)
            failed = echo.stats().restarts.get("start_failed", 0)
            used = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir()) + 1
            # The descriptors below the limit that are not taken are taken, so that exactly `spare` are left.
            held = [os.open(os.devnull, os.O_RDONLY) for _ in range(used)]
            top = max(held) + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
            try:
                os.kill(old, signal.SIGKILL)
                await until(lambda old=old: old not in {each.pid for each in echo.stats().workers})
                for number in held[:spare]:
                    os.close(number)
                del held[:spare]
                end = time.monotonic() + 1
                while time.monotonic() < end and not pids(echo):
                    if echo.stats().restarts.get("start_failed", 0) > failed + 1:
                        break  # this many are too few
                    await asyncio.sleep(0.005)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for number in held:
                    os.close(number)
            await until(lambda: len(pids(echo)) == 1)
            assert await echo(spare) == spare


async def test_a_restart_whose_memory_reading_fails_is_tried_again(monkeypatch, until):
    async with FunctionRunner("calls:echo", restart=PATIENT) as echo:
        (old,) = pids(echo)
        monkeypatch.setattr(worker, "private_and_proportional", failing(3, worker.private_and_proportional))
        os.kill(old, signal.SIGKILL)
        await until(lambda: pids(echo) and old not in pids(echo))
        assert await echo(1) == 1
        assert echo.stats().restarts["start_failed"] == 3


async def test_a_start_that_finds_no_descriptor_says_so(monkeypatch):
    monkeypatch.setattr(worker, "private_and_proportional", no_descriptor)
    with pytest.raises(SystemLimitReached, match="no file descriptor is left"):
        await FunctionRunner("calls:echo").start()


async def test_an_unexpected_error_of_a_restart_is_reported_and_tried_again(monkeypatch, until):
    async with FunctionRunner("calls:echo", restart=PATIENT) as echo:
        (old,) = pids(echo)
        supervisor, left = echo._supervisor, [2]
        bring_up = supervisor.bring_up

        async def broken():
            left[0] -= 1
            if left[0] >= 0:
                raise MemoryError("none")
            return await bring_up()

        monkeypatch.setattr(supervisor, "bring_up", broken)
        with capture_events(SupervisionFailed) as seen:
            os.kill(old, signal.SIGKILL)
            await until(lambda: pids(echo) and old not in pids(echo))
            assert await echo(1) == 1
    assert [(event.source, event.task, event.error) for event in seen] == [("echo", "restart", "MemoryError: none")] * 2
    assert all(0 <= event.retry_in <= 0.05 for event in seen)


async def test_autoscaling_outlives_a_reading_that_fails(monkeypatch, until):
    monkeypatch.setattr(pool, "headroom", failing(1, pool.headroom))
    monkeypatch.setattr(scaling, "_FAILED_AGAIN", 0.05)
    quick = Autoscale(1, 2, queue_delay=0.02, up_after=0.05)
    with capture_events(SupervisionFailed) as seen:
        async with FunctionRunner("calls:act", workers=quick) as act:
            calls = [asyncio.create_task(act("nap", 0.05)) for _ in range(100)]
            await until(lambda: len(pids(act)) == 2)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
    assert [event.task for event in seen] == ["scale"]


async def test_the_watch_outlives_a_check_that_fails(monkeypatch, until):
    broken = [True]
    estimate = watch.private_estimate

    def reading(pid):
        if broken[0]:
            raise ValueError("no number")
        return estimate(pid)

    monkeypatch.setattr(watch, "private_estimate", reading)
    with capture_events(SupervisionFailed) as seen:
        async with FunctionRunner("memory_calls:leak", memory="90MiB") as leak:
            (old,) = pids(leak)
            await leak(100 << 20, 0)
            await until(lambda: seen)
            broken[0] = False
            await until(lambda: pids(leak) and old not in pids(leak))
    assert {event.task for event in seen} == {"watch"}


async def test_a_task_that_fails_as_a_whole_is_started_again(monkeypatch, until):
    monkeypatch.setattr(watch, "BUSY_INTERVAL", None)
    monkeypatch.setattr(watch, "IDLE_INTERVAL", None)
    with capture_events(SupervisionFailed) as seen:
        async with FunctionRunner("memory_calls:leak", memory="90MiB") as leak:
            (old,) = pids(leak)
            await until(lambda: len(seen) >= 2)
            assert [event.retry_in for event in seen[:2]] == [0.1, 0.2]
            monkeypatch.undo()
            await leak(100 << 20, 0)
            await until(lambda: pids(leak) and old not in pids(leak))


async def test_a_replacement_that_fails_unexpectedly_is_tried_again(monkeypatch, until):
    monkeypatch.setattr("runners.supervision.replace._REPLACE_AGAIN", 0.05)
    async with FunctionRunner("memory_calls:leak", memory="90MiB") as leak:
        (old,) = pids(leak)
        monkeypatch.setattr(Limits, "term", failing(1, Limits.term))  # when the new worker is up already
        with capture_events(SupervisionFailed) as seen:
            await leak(100 << 20, 0)
            await until(lambda: pids(leak) and old not in pids(leak))
        assert [event.task for event in seen] == ["replace"]
        await until(lambda: len(leak.stats().workers) == 1)


async def test_the_keeper_of_a_fleet_outlives_an_error(monkeypatch, until):
    runners = {name: FunctionRunner("memory_calls:leak", name=name, memory="100MiB") for name in "ab"}
    async with Fleet(budget="250MiB", runners=runners) as fleet:
        await fleet["a"](90 << 20, 0)
        with capture_events(SupervisionFailed) as seen:
            for _ in range(2):
                count = len(seen)
                with monkeypatch.context() as patch:
                    patch.setattr(fleet, "used", no_descriptor)
                    await until(lambda count=count: len(seen) > count)
        assert {event.task for event in seen} == {"budget"}


# Side by side


async def test_workers_that_died_together_are_restored_side_by_side(until):
    async with FunctionRunner("loads:pid", workers=4, environment={"LOAD": "1"}) as pid:
        old = pids(pid)
        assert len(old) == 4
        for each in old:
            os.kill(each, signal.SIGKILL)
        began = time.monotonic()
        await until(lambda: len(pids(pid) - old) == 4)
        # One after the other they take 4 s and four starts.
        assert time.monotonic() - began < 3.5
        assert pid.state == "ready"


async def test_no_more_of_them_load_at_once_than_fit(monkeypatch, until):
    async with FunctionRunner("loads:pid", workers=3, environment={"LOAD": "0.1"}) as pid:
        old = pids(pid)
        baseline = max(each.baseline for each in pid.stats().workers)
        monkeypatch.setattr(pool, "headroom", lambda: int(baseline * 1.5))  # for one more only
        most = 0
        for each in old:
            os.kill(each, signal.SIGKILL)
        end = time.monotonic() + 20
        while len(pids(pid) - old) < 3:
            assert time.monotonic() < end
            most = max(most, len(pid._supervisor.pool.coming))
            await asyncio.sleep(0.002)
        assert most == 1


async def test_the_intensity_is_that_of_each_worker(until):
    policy = RestartPolicy(intensity=1, backoff=0.01, probe_interval=60)
    async with FunctionRunner("calls:act", workers=4, restart=policy) as act:
        for _ in range(4):
            with pytest.raises(Exception, match="exited with status 3"):
                await act("leave", 3)
            await until(lambda: len(pids(act)) == 4)
        assert act.state == "ready"


# Kills from outside


async def test_kills_from_outside_do_not_make_a_runner_fail(until):
    policy = RestartPolicy(intensity=1, backoff=0.01, probe_interval=60)
    async with FunctionRunner("calls:echo", restart=policy) as echo:
        for number in range(6):
            (old,) = pids(echo)
            assert await echo(number) == number
            os.kill(old, signal.SIGKILL)
            await until(lambda old=old: pids(echo) and old not in pids(echo))
        assert echo.state == "ready"
        assert echo.stats().restarts == {"sigkill": 6}


async def test_a_worker_that_is_killed_as_soon_as_it_is_up_still_makes_it_fail(until):
    policy = RestartPolicy(intensity=2, backoff=0.01, probe_interval=60)
    async with FunctionRunner("calls:echo", restart=policy) as echo:
        killed = set()

        def failed():
            for each in pids(echo) - killed:
                killed.add(each)
                os.kill(each, signal.SIGKILL)
            return echo.state == "failed"

        await until(failed)
