"""What a runner says when it cannot start, and that nothing is left running then."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from runners import FunctionRunner
from runners.errors import FunctionNotFound, RunnerClosed, StartFailed, WorkerNotFound, WrongEventLoop
from runners.supervision import worker as worker_module

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("no_such_module:echo", "there is no module 'no_such_module'"),
        ("calls.inner:echo", "there is no module 'calls.inner'"),
        ("needs_missing:echo", "it needs 'no_such_module_anywhere', which is not installed in the worker"),
        ("breaks_on_import:echo", r"importing 'breaks_on_import' failed: ValueError: half a \udc80 letter"),
        ("leaves_on_import:echo", "importing 'leaves_on_import' failed: SystemExit: this is a script"),
        ("calls:no_such", "module 'calls' has no 'no_such'; write it as 'module:function'"),
        ("calls:NOT_CALLABLE", "is a int and cannot be called"),
    ],
)
async def test_a_function_that_cannot_be_imported(function, words):
    runner = FunctionRunner(function)
    with pytest.raises(FunctionNotFound) as caught:
        await runner.start()
    assert words in str(caught.value)
    assert isinstance(caught.value, ImportError)
    assert runner.state == "stopped"


@pytest.mark.parametrize("function", ["calls", "calls:", ":echo", "a b:c", "calls:echo()", "calls.echo", ""])
def test_a_name_that_is_not_of_the_form(function):
    with pytest.raises(FunctionNotFound, match="not of the form 'module:function'"):
        FunctionRunner(function)


def test_a_function_itself_is_refused_with_the_reason():
    with pytest.raises(
        TypeError, match=r"takes the name 'module:function', not function: the worker imports it afresh"
    ):
        FunctionRunner(lambda: 1)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"workers": 0}, "workers takes a whole number of at least 1, not 0"),
        ({"workers": True}, "workers takes a whole number"),
        ({"queue": -1}, "queue takes a whole number of at least 0, not -1"),
        ({"timeout": 0}, "timeout takes a number of seconds above 0, not 0"),
        ({"heartbeat": -1}, "heartbeat takes"),
        ({"start_timeout": float("nan")}, "start_timeout takes"),
        ({"memory": "2GiB", "memory_hard": "1GiB"}, "memory_hard='1GiB' must be above memory='2GiB'"),
    ],
)
def test_wrong_arguments_are_named(keywords, words):
    with pytest.raises(ValueError, match=words):
        FunctionRunner("calls:echo", **keywords)


@pytest.mark.parametrize("environment", [{"A=B": "x"}, {"A": "nul \0 inside"}, {"A": 1}])
async def test_variables_that_no_environment_can_have(environment):
    with pytest.raises(WorkerNotFound):
        await FunctionRunner("calls:echo", environment=environment).start()


async def test_the_worker_program_is_missing():
    with pytest.raises(WorkerNotFound, match=r"'/nonexistent/python' cannot be run: .*No such file"):
        await FunctionRunner("calls:echo", python="/nonexistent/python").start()


@pytest.mark.parametrize(("program", "how"), [("true", "status 0 without having been asked to"), ("false", "status 1")])
async def test_a_program_that_exits_at_once(program, how):
    with pytest.raises(StartFailed, match=f"exited with {how} while it was loading"):
        await FunctionRunner("calls:echo", python=f"/bin/{program}").start()


async def test_a_program_that_speaks_something_else_is_killed(tmp_path):
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        "os.write(int(sys.argv[sys.argv.index('--socket') + 1]), b'HTTP/1.1 400 Bad Request')\ntime.sleep(30)\n"
    )
    program.chmod(0o755)
    with pytest.raises(StartFailed, match=r"ended by the runner \(protocol\) while it was loading"):
        await FunctionRunner("calls:echo", python=str(program)).start()


async def test_a_worker_that_is_not_ready_in_time(tmp_path):
    environment = {"MARK": str(tmp_path / "mark")}
    with pytest.raises(StartFailed, match=r"not ready within 0\.4 s; if it is large, raise start_timeout"):
        await FunctionRunner("slow_to_import:echo", start_timeout=0.4, environment=environment).start()


@pytest.mark.parametrize("workers", [1, 2])
async def test_cancelled_while_starting(tmp_path, until, workers):
    mark = tmp_path / "mark"
    runner = FunctionRunner("slow_to_import:echo", environment={"MARK": str(mark)}, workers=workers)
    starting = asyncio.create_task(runner.start())
    await until(mark.exists)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert runner.state == "stopped"
    assert psutil.Process().children() == []


async def test_cancelled_at_any_moment_of_the_start():
    # The start takes a few turns of the loop before the process speaks: cancelled in each of them, nothing is left.
    for turns in range(8):
        runner = FunctionRunner("calls:echo")
        starting = asyncio.create_task(runner.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert psutil.Process().children() == []


async def test_cancelled_when_one_of_two_is_ready(tmp_path, until):
    once = tmp_path / "once"
    runner = FunctionRunner(
        "once:echo", workers=2, environment={"ONCE": str(once), "LOAD": "0"}, python=_python(tmp_path)
    )
    starting = asyncio.create_task(runner.start())
    await until(lambda: any(worker.state == "ready" for worker in runner.stats().workers))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert psutil.Process().children() == []


def _python(folder: Path) -> str:
    """An interpreter that is quick the first time, and hangs the second time."""
    program = folder / "python"
    program.write_text(
        f'#!/bin/sh\nif mkdir {folder}/first 2>/dev/null; then exec {sys.executable} "$@"; fi\nexec sleep 30\n'
    )
    program.chmod(0o755)
    return str(program)


async def test_one_of_two_workers_cannot_start(tmp_path):
    runner = FunctionRunner("once:echo", workers=2, environment={"ONCE": str(tmp_path / "once"), "LOAD": "0.3"})
    with pytest.raises(FunctionNotFound, match="not the first"):
        await runner.start()
    assert psutil.Process().children() == []


async def test_a_worker_that_dies_as_soon_as_it_is_ready(monkeypatch):
    def killed_meanwhile(pid: int) -> tuple[int, int]:
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 5
        while psutil.pid_exists(pid) and time.monotonic() < end:  # until its exit has been seen
            time.sleep(0.002)
        time.sleep(0.05)
        return 10 << 20, 10 << 20

    monkeypatch.setattr(worker_module, "private_and_proportional", killed_meanwhile)
    with pytest.raises(StartFailed, match="SIGKILL"):
        await FunctionRunner("calls:echo").start()


# The life of a runner


async def test_used_before_start():
    runner = FunctionRunner("calls:echo")
    with pytest.raises(RunnerClosed, match="echo: the runner is not started; use 'async with runner:'"):
        await runner(1)
    assert runner.state == "new"


async def test_used_after_close_and_closed_twice():
    runner = FunctionRunner("calls:echo")
    async with runner:
        assert runner.state == "ready"
    assert runner.state == "stopped"
    await runner.close()
    with pytest.raises(RunnerClosed, match="the runner is closed; make a new one"):
        await runner(1)


async def test_started_twice():
    async with FunctionRunner("calls:echo") as runner:
        with pytest.raises(RunnerClosed, match="starts once; it is ready"):
            await runner.start()
        assert await runner(1) == 1
    with pytest.raises(RunnerClosed, match="starts once; it is stopped"):
        await runner.start()


async def test_closed_before_start():
    runner = FunctionRunner("calls:echo")
    await runner.close()
    with pytest.raises(RunnerClosed, match="starts once"):
        await runner.start()


async def test_closed_while_starting(tmp_path, until):
    mark = tmp_path / "mark"
    runner = FunctionRunner("slow_to_import:echo", environment={"MARK": str(mark)})
    starting = asyncio.create_task(runner.start())
    await until(mark.exists)
    await runner.close()
    with pytest.raises(RunnerClosed, match="closed while it was starting"):
        await starting
    assert runner.state == "stopped"


async def test_the_block_s_own_error_comes_through():
    with pytest.raises(ZeroDivisionError):
        async with FunctionRunner("calls:echo"):
            1 / 0  # noqa: B018


async def test_the_repr_says_name_and_state():
    assert repr(FunctionRunner("calls:echo", name="mine")) == "<FunctionRunner 'mine' new>"


def test_used_and_closed_from_another_event_loop():
    runner = FunctionRunner("calls:echo")
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(runner.start())
        with pytest.raises(WrongEventLoop, match="belongs to the event loop it was started in"):
            second.run(runner(1))
        with pytest.raises(WrongEventLoop, match="close it there"):
            second.run(runner.close())
        assert first.run(runner(1)) == 1
        first.run(runner.close())
