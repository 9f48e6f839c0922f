"""The harness of `interleave` keeps its word, and finds what it is there to find."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from tests.guardrails.interleave import Stuck, explore, run, sweep
from tests.guardrails.places import places


def test_a_seed_decides_the_order_and_the_time():
    def scenario(trace):
        async def walk(world, number):
            for step in range(4):
                trace.append((number, step, world.clock.now()))
                if step == 2:
                    await world.clock.sleep(number)
                await asyncio.sleep(0)

        async def walks(world):
            for number in range(3):
                world.spawn(walk(world, number))
            await world.join()

        return walks

    traces = []
    for seed in (1, 1, 2, 3, 4):
        traces.append([])
        run(scenario(traces[-1]), seed)
    assert traces[0] == traces[1]
    assert len({tuple(trace) for trace in traces}) > 2
    for trace in traces:
        assert sorted(trace[-1:]) == [(2, 3, 1002.0)]
        for number in range(3):
            assert [step for walker, step, _ in trace if walker == number] == [0, 1, 2, 3]


def test_time_stands_still_while_somebody_can_go_on():
    async def scenario(world):
        times = []

        async def busy():
            for _ in range(50):
                await asyncio.sleep(0)
            times.append(world.clock.now())

        async def sleeper(sleep):
            await sleep(1)
            times.append(world.clock.now())

        world.spawn(busy())
        world.spawn(sleeper(world.clock.sleep))
        world.spawn(sleeper(asyncio.sleep))
        await world.join()
        assert times == [1000, 1001, 1001]

    run(scenario, 0)
    with pytest.raises(AssertionError) as failure:
        explore(scenario, early=0.5)
    assert "early" in failure.value.__notes__[0]


def test_who_waits_for_ever_is_found():
    async def scenario(world):
        world.spawn(asyncio.Event().wait())
        await world.join()

    with pytest.raises(Stuck, match="task 0") as failure:
        run(scenario, 3)
    assert failure.value.__notes__ == ["again: run(scenario, seed=3, **{})"]


def test_a_task_left_behind_is_found():
    async def scenario(world):
        world.loop.create_task(asyncio.sleep(5))

    with pytest.raises(AssertionError, match="left behind"):
        run(scenario, 0)


def test_every_await_point_is_cancelled():
    cut = set()

    async def scenario(world):
        async def walk():
            for step in range(5):
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    cut.add(step)
                    raise

        world.spawn(walk())
        await world.join()

    runs = sweep(scenario, 0)
    assert cut == set(range(5))
    assert runs < 20


class Toy:
    """A correct semaphore with a queue, in the way of `asyncio.Semaphore`; each defect is a known one."""

    def __init__(self, size, defect=None):
        self.size = size
        self.defect = defect
        self.in_flight = 0
        self.queue = deque()

    @property
    def waiting(self):
        return len(self.queue)

    def try_enter(self, call):
        if self.in_flight < self.size and (not self.queue or self.defect == "overtakes"):
            self.in_flight += 1
            return "in"
        return None

    async def enter(self, call):
        future = asyncio.get_running_loop().create_future()
        self.queue.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future in self.queue:
                self.queue.remove(future)
            elif not future.cancelled() and self.defect != "loses a permit":  # granted, and cancelled before it ran
                self.in_flight -= 1
                self.wake()
            raise
        if self.defect == "lets in too many":
            self.in_flight += 1
        return "in"

    def settle(self, ticket, outcome):
        self.in_flight -= 1
        if self.defect == "forgets" and self.in_flight:
            return
        self.wake()

    def wake(self):
        while self.queue and self.in_flight < self.size:
            future = self.queue.pop() if self.defect == "overtakes" else self.queue.popleft()
            if future.done():
                continue
            if self.defect != "lets in too many":
                self.in_flight += 1
            future.set_result(None)


def toy(defect=None):
    def build(clock, rng, max_wait):
        size = rng.choice((1, 2))
        return Toy(size, defect), size

    return places(build)


def test_a_correct_toy_passes():
    explore(toy())
    explore(toy(), early=0.1, kill=0.1)
    sweep(toy(), 0)


@pytest.mark.parametrize("defect", ["overtakes", "lets in too many", "forgets"])
def test_a_defect_is_found(defect):
    with pytest.raises(AssertionError) as failure:
        explore(toy(defect))
    assert "seed=" in failure.value.__notes__[-1]


def test_a_permit_lost_between_the_wake_up_and_the_next_step_is_found():
    explore(toy("loses a permit"))  # nothing to see without a cancellation
    with pytest.raises(AssertionError):
        sweep(toy("loses a permit"), 0)
    with pytest.raises(AssertionError):
        explore(toy("loses a permit"), kill=0.1)
