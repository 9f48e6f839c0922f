"""Retry among other guards: gates settle once for each attempt, whatever happens."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from guardrails import admit, breaker, guard, timeout
from guardrails.core.guard import Gate
from guardrails.core.pipeline import Layer
from guardrails.errors import CircuitOpen
from guardrails.strategies.budget import RetryBudget
from guardrails.strategies.retry import retry
from guardrails.testing import FakeClock

pytestmark = pytest.mark.anyio


@pytest.fixture
def jumping():
    return FakeClock(autojump=True)


class Ledger(Layer, Gate):
    """A gate that waits a step at the door, and writes down who is in and how it ended."""

    name = "ledger"

    def __init__(self):
        self.inside = set()
        self.ended = []
        self.entered = 0

    def describe(self):
        return "ledger"

    def try_enter(self, call):
        return None

    async def enter(self, call):
        await anyio.lowlevel.checkpoint()
        self.entered += 1
        self.inside.add(self.entered)
        return self.entered

    def settle(self, ticket, outcome):
        self.inside.remove(ticket)  # a second time is a KeyError
        self.ended.append(outcome.kind)


def failing(times):
    async def work():
        work.calls += 1
        await anyio.lowlevel.checkpoint()
        if work.calls <= times:
            raise ValueError
        return work.calls

    work.calls = 0
    return work


@pytest.mark.parametrize("budget", [None, 0.1])
async def test_each_attempt_is_settled_once(jumping, budget, memory):
    ledger = Ledger()
    circuit = breaker(fail_max=5, clock=jumping)
    room = admit(concurrency=1, sampler=memory, clock=jumping)
    work = guard(retry(attempts=4, budget=budget, clock=jumping), circuit, ledger, room, check_order=False)(failing(2))
    assert await work() == 3
    assert ledger.ended == ["failure", "failure", "success"]
    assert not ledger.inside
    async with room:  # its only permit is free
        pass
    assert circuit.state == "closed"


async def test_an_open_circuit_ends_the_retries(jumping):
    circuit = breaker(fail_max=2, clock=jumping)
    work = failing(9)
    with pytest.raises(CircuitOpen):
        await guard(retry(attempts=5, clock=jumping), circuit)(work)()
    assert work.calls == 2


async def test_waiting_for_a_circuit_on_request(jumping):
    circuit = breaker(fail_max=2, reset_timeout=30, clock=jumping)
    work = failing(2)
    before = jumping.now()
    assert await guard(retry(attempts=4, retry_rejected=True, wait=0, clock=jumping), circuit)(work)() == 3
    assert jumping.now() - before >= 30


async def test_the_breaker_further_out_is_refused():
    with pytest.raises(ValueError, match="hammering"):
        guard(breaker(), retry())


async def test_an_attempt_that_is_cut_off_is_tried_again(clock, idle):
    calls = 0

    async def work():
        nonlocal calls
        calls += 1
        if calls == 1:
            await anyio.sleep_forever()
        return calls

    got = []

    async def call():
        got.append(await guard(retry(wait=0, clock=clock), timeout(5, clock=clock))(work)())

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await idle()
        clock.advance(5)
    assert got == [2]


async def test_an_outer_deadline_ends_the_retries(clock, idle):
    # The wait would pass it: the error comes at once, and not the deadline's.
    error = ValueError()

    async def work():
        raise error

    with pytest.raises(ValueError) as caught:
        await guard(timeout(5, clock=clock), retry(wait=6, clock=clock))(work)()
    assert "deadline" in caught.value.__notes__[0]


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("steps", range(16))
@pytest.mark.many
async def test_cancelled_at_every_await_point(steps, limited, clock, memory):
    ledger = Ledger()
    room = admit(concurrency=1, sampler=memory, clock=clock)
    budget = RetryBudget(0, min_per_second=0, clock=clock) if limited else None
    work = guard(retry(attempts=4, budget=budget, clock=clock), ledger, room)(failing(2))
    ended = []

    async def call():
        try:
            ended.append(await work())
        except BaseException as error:
            ended.append(error)
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
            clock.jump()  # not by itself: this task never waits
        group.cancel_scope.cancel()
    assert not ledger.inside
    assert len(ledger.ended) == ledger.entered
    assert ended == [3] or not isinstance(ended[0], Exception)
    assert ledger.ended.count("ignored") <= 1
    async with room:
        pass
    if budget is not None:
        # Paid for: every attempt after the first, and one that got no further than the door.
        assert 10 - budget.balance - max(0, ledger.entered - 1) in (0, 1)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})])
async def test_asyncios_own_timeout_around_it(anyio_backend, clock):
    ledger = Ledger()
    work = guard(retry(wait=5, clock=clock), ledger)(failing(9))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await work()
    assert ledger.ended == ["failure"]
    assert asyncio.current_task().cancelling() == 0
