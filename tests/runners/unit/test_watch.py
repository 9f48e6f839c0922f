"""What the watch looks at, on workers that are none: which of them, on whose behalf they are stuck, and how often."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace

import pytest

from runners.supervision import watch

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Worker:
    pid = 7
    answered = 0
    last_progress = 0.0

    def __init__(self, state, in_flight=(), running=()):
        self.state = state
        self.in_flight = {number: SimpleNamespace(abandoned_at=left) for number, left in in_flight}
        self.memory = SimpleNamespace(reading=False, exact_at=0.0, exact_from=0.0, pss=0)
        self.process = SimpleNamespace(exited=False, kill=self.kill)
        self.private = 0
        self.killed = asyncio.get_running_loop().create_future()
        self._running = running

    def kill(self, reason):
        if not self.killed.done():
            self.killed.set_result(reason)

    def running(self):
        return frozenset(self._running)

    def excuse(self, seconds, now):
        pass

    def note_progress(self, now):
        pass

    def busy_for(self):
        return 0.0


def supervised(*workers, **limits):
    return SimpleNamespace(
        workers=workers,
        limits=SimpleNamespace(**limits),
        spec=SimpleNamespace(name="r"),
        report_from=float("inf"),
        replacing=False,
        asked_at=0.0,
    )


@pytest.mark.parametrize("state", ["ready", "draining"])
async def test_a_worker_that_drains_is_held_to_its_hard_budget_too(state, monkeypatch):
    monkeypatch.setattr(watch, "private_estimate", lambda pid: 100)
    worker, leaving = Worker(state), Worker("exited")
    task = asyncio.create_task(
        watch.watch(supervised(leaving, worker, judge_estimate=lambda private: "kill" if private == 100 else "fine"))
    )
    try:
        assert await asyncio.wait_for(worker.killed, 30) == "hard_budget"
        assert not leaving.killed.done()
    finally:
        task.cancel()


@pytest.mark.parametrize(
    ("abandoned", "running", "expected"),
    [
        ({1: 5.0}, {1}, 95.0),
        ({1: 5.0, 2: 40.0}, {1, 2}, 60.0),  # the last one that left: as long as one waited, it was of use
        ({1: 5.0, 2: None}, {1, 2}, None),  # one still waits for its answer
        ({1: 5.0, 2: None}, {1}, 95.0),  # what waits in the worker is not what it is busy with
        ({1: None}, {1}, None),
        ({}, set(), None),
    ],
)
async def test_a_worker_is_given_up_after_the_last_caller_of_what_it_runs_has_left(abandoned, running, expected):
    asked = []
    worker = Worker("ready", abandoned.items(), running)
    watch._check_progress(supervised(stuck=lambda **facts: asked.append(facts)), worker, 100.0)
    assert [facts["abandoned_for"] for facts in asked] == [expected]
    assert not worker.killed.done()


async def test_exact_readings_take_at_most_a_tenth_of_the_time(monkeypatch):
    async def slow(read):
        now = loop.time()
        while loop.time() < now + 0.01:
            await asyncio.sleep(0)
        return 50, 60

    loop, judged = asyncio.get_running_loop(), deque()
    monkeypatch.setattr(watch, "in_thread", slow)
    worker = Worker("ready")
    worker.memory.reading = True
    await watch._look_closer(supervised(judge=judged.append), worker)
    memory = worker.memory
    assert (worker.private, memory.pss, memory.reading, list(judged)) == (50, 60, False, [50])
    assert memory.exact_from - memory.exact_at >= 0.1 - 1e-9
