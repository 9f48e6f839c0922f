"""No worker outlives its parent, however that ends, and nothing is left in the parent either."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from runners import Fleet, FunctionRunner
from runners.errors import RunnerClosed, RunnerCrashed, StartFailed
from tests.support import ROOT, take_terminal

_PARENT = """
import asyncio, sys
sys.path[:0] = [{root!r}, {importable!r}]
from runners import Fleet, FunctionRunner

async def main():
    runner = FunctionRunner("{module}:act", workers=2)
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

    def start(body: str, *, module: str = "calls", **how: object) -> tuple[subprocess.Popen[str], list[int]]:
        program = _PARENT.format(root=str(ROOT), importable=str(importable), body=body, module=module)
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


# What workers have started

_HOLDS = """async with runner:
        print(*(worker.pid for worker in runner.stats().workers), flush=True)
        await runner({call})
        await asyncio.sleep(60)"""
STARTED = ["'child', {path!r}", "'child', {path!r}, session=True", "'grandchild', {path!r}", "'forked', {path!r}"]


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="sessions of their own are found in /proc")
@pytest.mark.parametrize("call", STARTED)
async def test_what_a_worker_started_ends_when_the_parent_is_killed(parent, until, alive, tmp_path, call):
    path = tmp_path / "started"
    body = _HOLDS.format(call=call.format(path=str(path)))
    process, workers = parent(body, module="starts")
    await until(path.exists)
    started = int(path.read_text())
    assert alive(started)
    process.kill()
    process.wait()
    await until(lambda: not any(map(alive, (*workers, started))), seconds=10)


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="sessions of their own are found in /proc")
@pytest.mark.parametrize("end", ["killed", "recycled", "closed"])
@pytest.mark.parametrize("session", [False, True])
async def test_what_a_worker_started_ends_with_it(until, alive, tmp_path, session, end):
    path = tmp_path / "started"
    async with FunctionRunner("starts:act") as act:
        started = await act("child", str(path), session=session)
        assert alive(started)
        (worker,) = act.stats().workers
        if end == "killed":
            os.kill(worker.pid, signal.SIGKILL)
        elif end == "recycled":
            await act.recycle()
        if end != "closed":
            await until(lambda: not alive(started))
    await until(lambda: not alive(started))


@pytest.mark.anyio
async def test_a_worker_has_no_child_that_it_did_not_start(until, alive):
    async with FunctionRunner("starts:act") as act:
        with pytest.raises(ChildProcessError):
            await act("wait_for_any")


def _guards() -> set[int]:
    mark = b"RUNNERS_WORKER="
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_no_guard_outlives_its_worker(until):
    before = _guards()
    async with FunctionRunner("calls:echo", workers=2) as echo:
        mine = _guards() - before
        assert len(mine) >= 4  # two workers, and a guard of each
        assert await echo(1) == 1
    await until(lambda: not _guards() & mine, seconds=10)


# Without the loop

_AFTER_THE_LOOP = """
import asyncio, sys, threading
sys.path[:0] = [{root!r}, {importable!r}]
from runners import Fleet, FunctionRunner

kept = []

async def main():
    runner = FunctionRunner("calls:act", workers=2)
    await runner.start()
    kept.append(runner)
    return [worker.pid for worker in runner.stats().workers]

print(*asyncio.run(main()), flush=True)
sys.stdin.readline()
{end}
print("done", kept[0].state if kept else "dropped", flush=True)
sys.stdin.readline()
"""


@pytest.mark.anyio
@pytest.mark.parametrize(
    "end",
    [
        "kept[0].kill(); kept[0].kill()",
        "thread = threading.Thread(target=kept[0].kill); thread.start(); thread.join()",
        "kept.clear(); import gc; gc.collect()",
    ],
)
async def test_workers_end_by_kill_when_the_loop_has_ended(importable, until, alive, end):
    program = _AFTER_THE_LOOP.format(root=str(ROOT), importable=str(importable), end=end)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(alive, workers))
        process.stdin.write("\n")
        process.stdin.flush()
        assert await asyncio.to_thread(process.stdout.readline) in ("done stopped\n", "done dropped\n")
        await until(lambda: not any(map(psutil.pid_exists, workers)), seconds=5)  # and no zombie is left
        _, errors = process.communicate("\n")
        assert "Traceback" not in errors


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["here", "thread"])
async def test_kill_while_the_loop_runs_fails_what_was_accepted(until, alive, tmp_path, where):
    mark = tmp_path / "mark"
    act = await FunctionRunner("calls:act", workers=2).start()
    workers = [worker.pid for worker in act.stats().workers]
    held = asyncio.create_task(act("hold", str(mark), str(tmp_path / "go")))
    await until(mark.exists)
    if where == "here":
        act.kill()
    else:
        await asyncio.to_thread(act.kill)
    with pytest.raises(RunnerClosed):
        await held
    assert act.state == "stopped"
    act.kill()
    with pytest.raises(RunnerClosed):
        await act("echo", 1)
    await act.close()
    assert not any(map(alive, workers))


@pytest.mark.anyio
async def test_kill_while_it_starts(until, alive):
    runner = FunctionRunner("slow_to_import:echo", environment={"MARK": os.devnull})
    starting = asyncio.create_task(runner.start())
    await until(lambda: any(worker.pid for worker in runner._supervisor.pool.coming))
    (coming,) = runner._supervisor.pool.coming
    runner.kill()
    with pytest.raises((RunnerClosed, StartFailed)):
        await starting
    await until(lambda: not alive(coming.pid))


@pytest.mark.anyio
async def test_kill_before_the_start_and_after_the_close_does_nothing():
    never = FunctionRunner("calls:echo")
    never.kill()
    assert never.state == "stopped"
    async with FunctionRunner("calls:echo") as echo:
        pass
    echo.kill()
    assert echo.state == "stopped"


@pytest.mark.anyio
async def test_a_fork_of_the_application_does_not_end_the_workers():
    async with FunctionRunner("calls:echo") as echo:
        child = os.fork()
        if child == 0:
            echo.kill()
            os._exit(0)
        os.waitpid(child, 0)
        assert await echo(1) == 1


# Without a pidfd, and without SIGCHLD


@pytest.mark.anyio
async def test_without_pidfd_no_thread_of_the_executor_is_taken(monkeypatch, until):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(2))
    async with FunctionRunner("calls:act", workers=3) as act:
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 10) == 1
        with pytest.raises(RunnerCrashed, match="exited with status 3"):
            await act("leave", 3)
        await until(lambda: len(act.stats().workers) == 3)
        assert await act("echo", 1) == 1
    await until(lambda: not [each for each in threading.enumerate() if each.name == "runners-exit"])


@pytest.mark.anyio
@pytest.mark.parametrize("pidfd", [True, False])
async def test_an_application_that_ignores_sigchld(monkeypatch, until, pidfd):
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        async with FunctionRunner("calls:act") as act:
            with pytest.raises(RunnerCrashed, match="how is not known"):
                await act("leave", 3)
            await until(lambda: act.stats().workers)
            assert await act("echo", 1) == 1
            assert act.stats().restarts == {"exit_unknown": 1}
            await act.recycle()
            assert act.stats().restarts == {"exit_unknown": 1, "recycle": 1}
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.anyio
async def test_a_fleet_can_be_killed(until, alive):
    runners = {name: FunctionRunner("calls:echo", name=name, memory="100MiB") for name in "ab"}
    fleet = await Fleet(budget="250MiB", runners=runners).start()
    assert [await fleet[name](name) for name in "ab"] == ["a", "b"]
    workers = [worker.pid for name in "ab" for worker in fleet[name].stats().workers]
    fleet.kill()
    await fleet.close()
    assert not any(map(alive, workers))
