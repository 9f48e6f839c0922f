"""The monitor over real runners: workers by name, a leak announced before its budget, a death by the hard budget."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from guardrails.memory import MemoryMonitor
from guardrails.memory.monitor.names import named_processes
from guardrails.memory.signals import AlertRaised
from guardrails.testing import capture_events
from runners import FunctionRunner
from runners.errors import RunnerCrashed
from runners.supervision.events import WorkerReplaced
from tests.support import until

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="readings are Linux's")]

MIB = 1 << 20
#: Seconds of the monitor's in one of the test's: growth is judged over minutes.
SPEED = 240.0


@pytest.fixture
def anyio_backend():
    return ("asyncio", {"use_uvloop": False})


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "supervision" / "importable"))
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)


class FastClock:
    def now(self):
        return time.monotonic() * SPEED

    def wait_thread(self, event, seconds):
        return event.wait(None if seconds is None else seconds / SPEED)


async def test_workers_are_seen_by_the_name_of_their_runner_and_go_with_them():
    async with MemoryMonitor(interval=0.01, calls=False) as monitor:
        async with FunctionRunner("memory_calls:echo", name="words", workers=2, memory="200MiB") as words:
            pids = {worker.pid for worker in words.stats().workers}
            await until(lambda: sum(each.role == "worker" for each in monitor.sample().processes) == 2)
            workers = {each.pid: each for each in monitor.sample().processes if each.role == "worker"}
            assert set(workers) == pids == set(named_processes())
            assert {each.name for each in workers.values()} == {"words/0", "words/1"}
            for worker in words.stats().workers:
                assert workers[worker.pid].private == pytest.approx(worker.private, rel=0.2)
                assert workers[worker.pid].budget == 200 * MIB
        assert named_processes() == {}
        await until(lambda: {each.role for each in monitor.sample().processes} == {"self"})
        assert monitor.history("words/0")


async def test_a_worker_that_comes_in_place_of_another_gets_a_name_of_its_own():
    async with FunctionRunner("memory_calls:echo", name="words") as words:
        assert [each.name for each in named_processes().values()] == ["words/0"]
        await words.recycle()
        assert [each.name for each in named_processes().values()] == ["words/1"]
        await words.recycle()
        assert [each.name for each in named_processes().values()] == ["words/0"]


async def test_a_leak_is_announced_before_its_budget_is_reached_and_a_steady_one_is_not():
    with capture_events(AlertRaised, WorkerReplaced) as seen:
        async with (
            MemoryMonitor(interval=2.0, log_every=None, clock=FastClock()) as monitor,
            FunctionRunner("memory_calls:leak", name="leaky", memory="250MiB") as leaky,
            FunctionRunner("memory_calls:echo", name="steady", memory="250MiB") as steady,
        ):
            async with asyncio.timeout(60):
                while not any(isinstance(event, WorkerReplaced) or event.alert == "memory_growth" for event in seen):
                    # At most 50 MiB a second: the budget is reached after five seconds, that is 20 minutes.
                    _ = await asyncio.gather(leaky(MIB // 2, 0.0), steady(0), asyncio.sleep(0.01))
            held = {each.name: each.private for each in monitor.sample().processes}
            active = [alert for alert in monitor.alerts if alert.alert == "memory_growth"]
    first = next(event for event in seen if isinstance(event, WorkerReplaced) or event.alert == "memory_growth")
    assert isinstance(first, AlertRaised), "it reached its budget first"
    assert first.source == "leaky/0"
    assert held["leaky/0"] < 250 * MIB
    assert [alert.source for alert in active] == ["leaky/0"]
    assert first.values["limit"] == 250 * MIB
    # What it said of the time that is left was true, as far as a growth of seconds tells.
    assert 0 < first.values["reached_in_low"] <= first.values["reached_in"] < 30 * 60


async def test_a_worker_that_is_killed_at_its_hard_budget_is_a_crash_by_memory(tmp_path):
    async with (
        MemoryMonitor(interval=0.02, log_every=None) as monitor,
        FunctionRunner("memory_calls:climb", name="climber", memory="60MiB", memory_hard="90MiB") as climb,
    ):
        with pytest.raises(RunnerCrashed):
            await climb(str(tmp_path / "mark"), 90 * MIB, 400 * MIB)
        await until(lambda: any(alert.alert == "memory_crash" for alert in monitor.alerts))
        (alert,) = [alert for alert in monitor.alerts if alert.alert == "memory_crash"]
    assert (alert.source, alert.severity) == ("climber", "warning")
    assert alert.values == {"crashes": 1, "cause": "hard_budget"}
    assert "memory_hard=" in alert.action
