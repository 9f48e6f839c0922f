"""What scaling does with what was decided: whom it drains, and how long it holds a size that it could not reach."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from runners.errors import StartFailed
from runners.supervision import scaling

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Worker:
    def __init__(self, name, state="ready", busy=False):
        self.name = name
        self.state = state
        self.in_flight = {1: None} if busy else {}

    def drain(self):
        assert not self.in_flight
        self.state = "draining"


class Pool:
    """As much of one as scaling needs."""

    name = "r"
    expected = 100
    settled = True

    def __init__(self, *workers, free=1000, error=None):
        self.workers = workers
        self.size = SimpleNamespace(floor=1)
        self.target = len(workers)
        self.free = free
        self.error = error
        self.served = []
        self.retired = []
        self.counted = []
        self.supervisor = SimpleNamespace(
            state="ready",
            spawn=lambda coroutine: coroutine.close(),
            bring_up=self.bring_up,
            put_in_service=self.served.append,
            count_replacement=self.counted.append,
        )

    @property
    def serving(self):
        return sum(worker.state == "ready" for worker in self.workers)

    async def free_memory(self):
        return self.free

    async def bring_up(self):
        if self.error is not None:
            raise self.error
        return "worker"

    async def retire(self, worker):
        self.retired.append(worker)


class Held:
    def __init__(self):
        self.until = []

    def hold(self, until):
        self.until.append(until)


def test_only_a_worker_with_nothing_to_do_is_drained_the_newest_of_them():
    workers = [Worker("a"), Worker("b"), Worker("c", busy=True), Worker("d", "draining"), Worker("e", "starting")]
    pool = Pool(*workers)
    scaling._drain_one(pool)
    assert [worker.name for worker in workers if worker.state == "draining"] == ["b", "d"]
    assert pool.target == 4


def test_if_all_are_busy_none_is_drained():
    workers = [Worker("a", busy=True), Worker("b", busy=True)]
    pool = Pool(*workers)
    scaling._drain_one(pool)
    assert [worker.state for worker in workers] == ["ready"] * 2
    assert pool.target == 2


@pytest.mark.parametrize(
    ("given", "pause"),
    [({"free": 119}, 1.0), ({"error": StartFailed("no")}, 5.0), ({"error": OSError("no")}, 5.0)],
    ids=["no_room", "start_failed", "error"],
)
async def test_a_size_that_was_not_reached_is_left_alone_for_a_while(given, pause):
    pool, held, loop = Pool(Worker("a"), **given), Held(), asyncio.get_running_loop()
    before = loop.time()
    await scaling._try_one(pool, held)
    after = loop.time()
    (until,) = held.until
    assert before + pause <= until <= after + pause
    assert (pool.target, pool.served) == (1, [])


async def test_one_that_fits_is_started_and_serves():
    pool, held = Pool(Worker("a"), free=120), Held()
    await scaling._try_one(pool, held)
    assert (pool.target, pool.served, held.until) == (2, ["worker"], [])
