"""How many workers one request may take with it."""

from __future__ import annotations

import asyncio
import signal
from types import SimpleNamespace

import pytest

from runners.errors import PoisonedRequest
from runners.spec import WorkerSpec
from runners.supervision import worker as service
from runners.supervision.dispatch import Dispatcher
from runners.supervision.exit import Exit
from runners.supervision.pool import Pool
from runners.supervision.request import Request

pytestmark = pytest.mark.anyio

KILLED = Exit(-signal.SIGKILL, None, "", oom=False)
CRASHED = Exit(-signal.SIGSEGV, None, "")


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Worker:
    """A fresh one that runs what it is given."""

    state, pid, private, baseline, answered, suspects, reserved = "ready", 7, 100, 100, 0, 0, False
    recallable = False

    def __init__(self):
        self.in_flight = {}

    @property
    def room(self):
        return 1 - len(self.in_flight)

    def give(self, request, now):
        self.in_flight[request.id] = request

    def running(self):
        return frozenset(self.in_flight)

    def has_begun(self, request):
        return request.id in self.in_flight


@pytest.mark.parametrize(("exit_", "allowed"), [(KILLED, 8), (CRASHED, 2)], ids=["killed", "crashed"])
async def test_a_request_is_refused_after_so_many_deaths(exit_, allowed):
    loop = asyncio.get_running_loop()
    dispatcher = Dispatcher("r", queue=1)
    dispatcher.begin(loop)
    request = dispatcher.submit(b"", b"", now=loop.time(), deadline=None, redeliver=True)
    for deaths in range(allowed):
        assert not request.future.done(), deaths
        worker = Worker()
        dispatcher.workers = [worker]
        dispatcher.pump()
        assert list(worker.in_flight) == [request.id]
        dispatcher.workers = []
        dispatcher.take_back(worker, exit_, closed=None)
    assert request.deaths == allowed
    with pytest.raises(PoisonedRequest, match=f"{allowed} workers died"):
        await request.future


def a_suspect(dispatcher):
    """A request whose worker has died, and another one that the only worker left runs."""
    loop = asyncio.get_running_loop()
    dispatcher.begin(loop)
    dead, busy = Worker(), Worker()
    dispatcher.workers = [dead, busy]
    suspect, other = (dispatcher.submit(b"", b"", now=loop.time(), deadline=None, redeliver=True) for _ in range(2))
    assert (list(dead.in_flight), list(busy.in_flight)) == ([suspect.id], [other.id])
    busy.answered = 1
    dispatcher.workers = [busy]
    dispatcher.take_back(dead, CRASHED, closed=None)
    dispatcher.pump()
    return suspect, busy


@pytest.mark.parametrize("how", ["its caller leaves", "a fresh worker takes it"])
async def test_a_worker_that_is_reserved_for_a_suspect_is_released(how):
    dispatcher = Dispatcher("r", queue=9)
    suspect, busy = a_suspect(dispatcher)
    assert busy.reserved
    if how == "its caller leaves":
        dispatcher.withdraw(suspect)
    else:
        fresh = Worker()
        dispatcher.workers.append(fresh)
        dispatcher.pump()
        assert list(fresh.in_flight) == [suspect.id]
    assert not busy.reserved


async def test_a_suspect_gets_a_used_worker_when_the_fresh_one_fails_to_come():
    dispatcher = Dispatcher("r", queue=9, fresh_comes=lambda: pool.fresh_comes)
    supervisor = SimpleNamespace(limits=SimpleNamespace(soft=None), dispatcher=dispatcher, state="ready")
    pool = Pool(supervisor, workers=1, lazy=False, idle_unload=None, policy=None)
    coming = Worker()
    pool.coming.add(coming)
    suspect, used = a_suspect(dispatcher)
    used.in_flight.clear()
    dispatcher.pump()
    assert not used.in_flight
    pool.came(coming)
    await asyncio.sleep(0)
    assert list(used.in_flight) == [suspect.id]


async def test_a_suspect_that_is_left_while_it_is_sent_leaves_its_worker_free():
    worker = service.Worker(
        WorkerSpec(name="r", engine="function", options={}), on_answer=lambda *_: None, on_exit=lambda *_: None
    )
    worker.state = "ready"
    worker.process = SimpleNamespace(board=None, send=lambda *_, **__: False, withdraw=lambda _: True)
    future = asyncio.get_running_loop().create_future()
    request = Request(1, b"", b"", deadline=None, redeliver=True, future=future)
    request.suspect = True
    worker.give(request, 0.0)
    assert worker.room == 0
    worker.cancel(request)
    assert worker.room == 1
