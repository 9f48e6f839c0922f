"""The events and statistics of a runner's life, in order."""

from __future__ import annotations

import os
import signal

import pytest

from guardrails.testing import capture_events
from runners import FunctionRunner
from runners.supervision import events
from runners.supervision.events import RunnerStateChanged, WorkerExited, WorkerReady, WorkerReplaced

pytestmark = pytest.mark.anyio

LIFE = (RunnerStateChanged, WorkerReady, WorkerExited, WorkerReplaced, events.RequestsRedelivered)
START = [("RunnerStateChanged", "new", "starting"), ("WorkerReady", 0), ("RunnerStateChanged", "starting", "ready")]
CLOSE = [("RunnerStateChanged", "ready", "draining"), ("RunnerStateChanged", "draining", "stopped")]


def told(seen):
    """Events in short, workers by the order in which they came up."""
    numbers: dict[int, int] = {}
    short = []
    for event in seen:
        assert event.source == "act"
        if isinstance(event, RunnerStateChanged):
            short.append(("RunnerStateChanged", event.old, event.new))
        elif isinstance(event, WorkerReady):
            number = numbers.setdefault(event.pid, len(numbers))
            assert event.baseline > 1 << 20
            assert 0 < event.seconds < 10
            short.append(("WorkerReady", number))
        elif isinstance(event, WorkerExited):
            short.append(("WorkerExited", numbers[event.pid], event.reason))
        elif isinstance(event, WorkerReplaced):
            short.append(
                ("WorkerReplaced", numbers[event.old_pid], numbers[event.new_pid], event.reason, event.overlapped)
            )
        else:
            assert isinstance(event, events.RequestsRedelivered)
            short.append(("RequestsRedelivered", numbers[event.pid], event.count))
    return short


async def test_start_and_close():
    with capture_events(*LIFE) as seen:
        async with FunctionRunner("calls:act") as act:
            await act("echo")
    assert told(seen) == [*START, *CLOSE, ("WorkerExited", 0, "drained")]


async def test_a_crash(tmp_path, until):
    mark, go = tmp_path / "mark", tmp_path / "go"
    with capture_events(*LIFE) as seen:
        async with FunctionRunner("calls:act", idempotent=True) as act:
            import asyncio

            calls = [asyncio.create_task(act("hold", str(mark), str(go))) for _ in range(3)]
            await until(mark.exists)
            os.kill(act.stats().workers[0].pid, signal.SIGKILL)
            await until(lambda: len(seen) == 6)
            go.touch()
            await asyncio.gather(*calls)
    assert told(seen) == [
        *START,
        ("WorkerExited", 0, "sigkill"),
        ("RequestsRedelivered", 0, 1),  # the others wait outside of the worker
        ("WorkerReady", 1),
        *CLOSE,
        ("WorkerExited", 1, "drained"),
    ]
    exited = next(event for event in seen if isinstance(event, WorkerExited))
    assert exited.detail in (  # as far as the system tells
        "was killed by SIGKILL; by another program",
        "was killed by SIGKILL; by the kernel if memory ran out, or by another program",
    )
    assert exited.stderr.startswith("last words of")


async def test_a_replacement(until):
    with capture_events(*LIFE) as seen:
        async with FunctionRunner("calls:act", memory="40MiB", memory_hard="1GiB") as act:
            await act("leak", 60 << 20)
            await until(lambda: any(isinstance(event, WorkerReplaced) for event in seen))
    assert told(seen) == [
        *START,
        ("WorkerReady", 1),
        ("WorkerExited", 0, "drained"),
        ("WorkerReplaced", 0, 1, "soft_budget", True),
        *CLOSE,
        ("WorkerExited", 1, "drained"),
    ]


async def test_stats_of_a_quiet_runner():
    async with FunctionRunner("calls:act", name="quiet") as act:
        for _ in range(3):
            await act("echo")
        stats = act.stats()
        (worker,) = stats.workers
        assert (stats.name, stats.state, stats.submitted, stats.answered) == ("quiet", "ready", 3, 3)
        assert (worker.state, worker.in_flight, worker.answered) == ("ready", 0, 3)
        assert worker.private >= worker.baseline > 1 << 20
