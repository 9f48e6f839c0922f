"""Why a worker ended, as it is told of real workers."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import sys
import time

import psutil
import pytest

from guardrails.telemetry.logs import log_events
from guardrails.testing import capture_events
from runners import FunctionRunner
from runners.errors import RunnerCrashed, StartFailed
from runners.supervision import oom, process
from runners.supervision.events import WorkerExited
from runners.supervision.exit import Exit

pytestmark = pytest.mark.anyio
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts OOM kills")


@pytest.fixture
def vmstat(tmp_path, monkeypatch):
    """The file in which the kernel counts its OOM kills, in our hands."""
    monkeypatch.setattr(process, "OomWatch", functools.partial(oom.OomWatch, proc=tmp_path))
    file = tmp_path / "vmstat"
    file.write_text("oom_kill 3\n")
    return file


async def end_of(runner, until, *, before=lambda: None, number=signal.SIGKILL) -> WorkerExited:
    pid = runner.stats().workers[0].pid
    with capture_events(WorkerExited) as seen:
        before()
        os.kill(pid, number)
        await until(lambda: any(event.pid == pid for event in seen))
    return next(event for event in seen if event.pid == pid)


@linux
async def test_a_kill_from_outside_is_told_from_one_of_the_kernel_s(until):
    async with FunctionRunner("calls:act") as act:
        event = await end_of(act, until)
        assert (event.reason, event.detail) == ("sigkill", "was killed by SIGKILL; by another program")


async def test_the_end_of_a_worker_is_logged_once(until, caplog):
    caplog.set_level(logging.INFO)
    with log_events():
        async with FunctionRunner("calls:act") as act:
            event = await end_of(act, until)
    (line,) = (line for line in caplog.messages if f"worker {event.pid} " in line and "ready" not in line)
    assert "event=runner.worker_exited" in line


async def test_an_oom_kill_has_a_name_of_its_own(vmstat, until):
    async with FunctionRunner("calls:act", workers=2) as act:
        event = await end_of(act, until, before=lambda: vmstat.write_text("oom_kill 4\n"))
        assert event.reason == "oom_kill"
        assert "by the kernel because memory ran out" in event.detail
        await until(lambda: len(act.stats().workers) == 2)
        event = await end_of(act, until)  # of the other, which was there too: that kill is explained
        assert event.reason == "sigkill"
        assert act.stats().restarts == {"oom_kill": 1, "sigkill": 1}


async def test_where_nothing_is_counted_both_are_possible(vmstat, until):
    vmstat.unlink()
    async with FunctionRunner("calls:act") as act:
        event = await end_of(act, until)
        assert event.reason == "sigkill"
        assert event.detail.endswith("by the kernel if memory ran out, or by another program")


async def test_an_oom_kill_while_loading_says_so(vmstat, tmp_path, until):
    mark = tmp_path / "mark"
    runner = FunctionRunner("slow_to_import:echo", environment={"MARK": str(mark)})
    starting = asyncio.create_task(runner.start())
    await until(mark.exists)
    vmstat.write_text("oom_kill 4\n")
    os.kill(_only_child(), signal.SIGKILL)
    with pytest.raises(StartFailed, match=r"killed by the kernel because memory ran out .* while it was loading"):
        await starting


def _only_child() -> int:
    (child,) = psutil.Process().children()
    return child.pid


async def test_what_we_end_ourselves_is_no_oom_kill(vmstat, limit):
    async with FunctionRunner("calls:act", heartbeat=0.2) as act:
        vmstat.write_text("oom_kill 4\n")
        with pytest.raises(RunnerCrashed, match="stuck_no_progress"):
            await act("nap", 20)


@pytest.mark.parametrize(
    ("number", "reason", "words"),
    [
        (signal.SIGQUIT, "sigquit", "was killed by SIGQUIT"),
        (signal.SIGABRT, "sigabrt", "was killed by SIGABRT; native code gave up"),
        (signal.SIGBUS, "sigbus", "was killed by SIGBUS"),
    ],
)
async def test_other_signals_have_their_names(until, number, reason, words):
    async with FunctionRunner("calls:act") as act:
        event = await end_of(act, until, number=number)
        assert (event.reason, event.detail) == (reason, words)


async def test_the_look_before_is_renewed_and_ends_with_the_worker(vmstat, until, monkeypatch):
    monkeypatch.setattr(process, "LOOK_EVERY", 0.05)
    async with FunctionRunner("calls:act") as act:
        vmstat.write_text("oom_kill 4\n")  # of some other program
        looks = time.monotonic() + 0.3
        await until(lambda: time.monotonic() > looks)
        assert (await end_of(act, until)).reason == "sigkill"


def test_outside_is_what_is_known_to_be_nobody_s_fault():
    assert Exit(-signal.SIGKILL, None, "", oom=False).from_outside
    assert not Exit(-signal.SIGKILL, None, "", oom=True).from_outside
    assert not Exit(-signal.SIGKILL, None, "").from_outside
    assert not Exit(-signal.SIGSEGV, None, "").from_outside
