"""How many workers one request may take with it."""

from __future__ import annotations

import asyncio
import signal

import pytest

from runners.errors import PoisonedRequest
from runners.supervision.dispatch import Dispatcher
from runners.supervision.exit import Exit

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
