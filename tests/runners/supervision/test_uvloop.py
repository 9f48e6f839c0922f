"""The same on uvloop: processes, signals and pipes take other paths there."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from runners import FunctionRunner
from runners.errors import RunnerCrashed, StartFailed, WorkerNotFound

uvloop = pytest.importorskip("uvloop")
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return ("asyncio", {"use_uvloop": True})


async def test_calls_crashes_and_output(caplog, until):
    caplog.set_level("INFO", "runners.worker")
    assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
    async with FunctionRunner("calls:act", workers=2) as act:
        assert await asyncio.gather(*(act("echo", n) for n in range(100))) == list(range(100))
        await act("say", "hello")
        await until(lambda: "hello" in caplog.text)
        with pytest.raises(RunnerCrashed, match="SIGSEGV") as caught:
            await act("segfault")
        assert "Segmentation fault" in caught.value.stderr
        for worker in act.stats().workers:
            os.kill(worker.pid, signal.SIGKILL)
        assert await asyncio.gather(*(act("echo", n) for n in range(100))) == list(range(100))


async def test_starts_that_fail():
    with pytest.raises(WorkerNotFound):
        await FunctionRunner("calls:echo", python="/nonexistent").start()
    with pytest.raises(StartFailed):
        await FunctionRunner("calls:echo", python="/bin/false").start()
    for turns in range(6):
        starting = asyncio.create_task(FunctionRunner("calls:echo").start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert psutil.Process().children() == []


def test_nothing_is_left():
    async def one() -> None:
        async with FunctionRunner("calls:echo") as echo:
            assert await echo(1) == 1

    uvloop.run(one())
    descriptors, threads = {entry.name for entry in Path("/proc/self/fd").iterdir()}, threading.active_count()

    async def many() -> None:
        for _ in range(3):
            await one()

    uvloop.run(many())
    assert {entry.name for entry in Path("/proc/self/fd").iterdir()} == descriptors
    assert threading.active_count() == threads
