"""No worker outlives its parent, however that ends, and nothing is left in the parent either."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from runners import FunctionRunner
from tests.support import ROOT, take_terminal

_PARENT = """
import asyncio, sys
sys.path[:0] = [{root!r}, {importable!r}]
from runners import FunctionRunner

async def main():
    runner = FunctionRunner("calls:act", workers=2)
    {body}

asyncio.run(main())
"""
_SERVE = """async with runner:
        call = asyncio.create_task(runner({call}))
        print(*(worker.pid for worker in runner.stats().workers), flush=True)
        await call"""
_NO_CLOSE = """await runner.start()
    print(*(worker.pid for worker in runner.stats().workers), flush=True)"""


@pytest.fixture
def parent(importable):
    """Starts a script that has a runner, and gives it with the numbers of its workers."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str, **how: object) -> tuple[subprocess.Popen[str], list[int]]:
        program = _PARENT.format(root=str(ROOT), importable=str(importable), body=body)
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
        )
        started.append(process)
        assert process.stdout is not None
        return process, [int(pid) for pid in process.stdout.readline().split()]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.anyio
@pytest.mark.parametrize("call", ["'echo'", "'nap', 60", "'native_hang', {mark!r}"])
async def test_the_parent_is_killed(parent, until, alive, tmp_path, call):
    mark = tmp_path / "mark"
    call = call.format(mark=str(mark))
    body = _SERVE.format(call=call) + "\n        await asyncio.sleep(60)"
    process, workers = parent(body)
    assert len(workers) == 2
    if "native" in call:
        await until(mark.exists)
    process.kill()
    process.wait()
    await until(lambda: not any(map(alive, workers)), seconds=2)


@pytest.mark.anyio
@pytest.mark.parametrize("call", ["'echo'", "'native_hang', {mark!r}"])
async def test_the_parent_s_group_is_killed(parent, until, alive, tmp_path, call):
    mark = tmp_path / "mark"
    body = _SERVE.format(call=call.format(mark=str(mark))) + "\n        await asyncio.sleep(60)"
    process, workers = parent(body, process_group=0)
    assert len(workers) == 2
    assert not {os.getpgid(worker) for worker in workers} & {process.pid}  # theirs are their own
    if "native" in call:
        await until(mark.exists)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    await until(lambda: not any(map(alive, workers)), seconds=2)


@pytest.mark.anyio
@pytest.mark.parametrize("call", ["'echo'", "'native_hang', {mark!r}"])
async def test_the_parent_s_terminal_is_closed(parent, until, alive, tmp_path, call):
    mark = tmp_path / "mark"
    body = _SERVE.format(call=call.format(mark=str(mark))) + "\n        await asyncio.sleep(60)"
    ours, theirs = pty.openpty()
    in_terminal = {"stdin": theirs, "start_new_session": True, "preexec_fn": take_terminal}
    process, workers = parent(body, **in_terminal)
    os.close(theirs)
    if "native" in call:
        await until(mark.exists)
    os.close(ours)  # the window is gone: the kernel hangs up
    assert process.wait(timeout=2) == -signal.SIGHUP
    await until(lambda: not any(map(alive, workers)), seconds=2)


@pytest.mark.anyio
async def test_the_parent_is_interrupted(parent, until, alive):
    process, workers = parent(_SERVE.format(call="'nap', 60"))
    process.send_signal(signal.SIGINT)
    await until(lambda: process.poll() is not None, seconds=3)
    assert not any(map(alive, workers))
    assert process.stderr is not None
    assert process.stderr.read().splitlines()[-1].startswith("KeyboardInterrupt")


@pytest.mark.anyio
async def test_the_parent_ends_without_closing(parent, until, alive):
    process, workers = parent(_NO_CLOSE)
    await until(lambda: process.poll() is not None, seconds=3)
    assert process.returncode == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    await until(lambda: not any(map(alive, workers)), seconds=2)


def _descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_twenty_runners_later_nothing_is_left():
    async def one() -> None:
        async with FunctionRunner("calls:echo") as echo:
            assert await echo(1) == 1

    asyncio.run(one())  # what is loaded once
    descriptors, threads = _descriptors(), threading.active_count()

    async def many() -> None:
        for _ in range(5):
            await asyncio.gather(one(), one(), one(), one())
        assert psutil.Process().children() == []

    asyncio.run(many())
    assert _descriptors() == descriptors
    assert threading.active_count() == threads


def test_a_start_that_fails_leaves_no_descriptor():
    async def many() -> None:
        for function, python in (("calls:echo", "/nonexistent"), ("calls:echo", "/bin/false"), ("no_such:thing", None)):
            with pytest.raises(Exception):  # noqa: B017 - which one is another test's matter
                await FunctionRunner(function, python=python).start()
        for turns in range(6):
            starting = asyncio.create_task(FunctionRunner("calls:echo").start())
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait([starting])

    asyncio.run(many())
    descriptors = _descriptors()
    asyncio.run(many())
    assert _descriptors() == descriptors
