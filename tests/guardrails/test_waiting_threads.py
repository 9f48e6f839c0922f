"""Calls of several threads and event loops in one queue: none waits longer than it may, whatever the others do."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from guardrails import deadline_in
from guardrails.core.guard import Call
from guardrails.core.outcome import SUCCESS
from guardrails.errors import WaitTimeout
from guardrails.gates.admit import admit
from guardrails.gates.bulkhead import bulkhead
from guardrails.gates.limiter import RateLimited, limiter
from guardrails.testing import FakeClock


def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


async def settled():
    for _ in range(12):
        await asyncio.sleep(0)


class Stuck(FakeClock):
    """A clock on which the waits of some threads never end by themselves, as in a loop that is blocked."""

    def __init__(self):
        super().__init__(autojump=True)
        self.stuck = set()
        self.freed = threading.Event()

    def wait_thread(self, event, seconds):
        if threading.current_thread() in self.stuck:
            self.freed.wait(30)
        return super().wait_thread(event, seconds)


@contextlib.contextmanager
def stuck(gate, clock, amount=1):
    """The first in the queue waits in a thread that is blocked."""

    def acquire():
        with contextlib.suppress(RateLimited):
            gate.acquire_blocking(amount)

    thread = threading.Thread(target=acquire)
    clock.stuck.add(thread)
    before = gate.waiting
    thread.start()
    while gate.waiting == before:
        time.sleep(0.001)
    try:
        yield
    finally:
        clock.freed.set()
        thread.join(30)


def test_a_thread_is_let_in_though_the_one_before_it_is_blocked():
    clock = Stuck()
    gate = limiter(requests=2, per=1, max_wait=1.5, clock=clock)
    gate.acquire_blocking(2)
    with stuck(gate, clock):
        started = clock.now()
        waited = gate.acquire_blocking().waited
        assert (waited, clock.now() - started) == (pytest.approx(1, abs=0.1),) * 2
    assert gate.waiting == 0


@pytest.mark.anyio
async def test_a_task_is_let_in_though_the_thread_before_it_is_blocked():
    clock = Stuck()
    gate = limiter(requests=2, per=1, max_wait=1.5, clock=clock)
    gate.try_acquire(2)
    with stuck(gate, clock):
        assert (await gate.acquire()).waited == pytest.approx(1, abs=0.1)
    assert gate.waiting == 0


@pytest.mark.parametrize("blocked", [1, 2])
def test_a_thread_never_waits_longer_than_it_may_whatever_those_before_it_do(blocked):
    clock = Stuck()
    # What drips in while the first is blocked runs over: the turns of all who come after move on.
    gate = limiter(requests=2, per=1, burst=1, max_wait=1.5, clock=clock)
    gate.acquire_blocking()
    with contextlib.ExitStack() as stack:
        for _ in range(blocked):
            stack.enter_context(stuck(gate, clock))
        started = clock.now()
        with contextlib.suppress(RateLimited):
            gate.acquire_blocking()
        assert clock.now() - started <= 1.5 + 1e-6
    assert gate.waiting == 0


def test_a_nearer_deadline_than_that_of_an_earlier_call_of_the_same_loop_is_kept():
    clock = Stuck()
    gate = limiter(requests=2, per=1, burst=1, max_wait=10, clock=clock)
    gate.acquire_blocking()

    async def tell():
        patient = asyncio.ensure_future(gate.acquire())
        await settled()
        started = clock.now()
        with deadline_in(1.6, clock=clock):
            with contextlib.suppress(RateLimited):
                await gate.acquire()
        assert clock.now() - started <= 1.6 + 1e-6
        await patient

    with stuck(gate, clock):
        asyncio.run(tell())
    assert gate.waiting == 0


def test_loops_in_threads_keep_their_own_time_beside_one_that_is_blocked():
    gate = limiter(requests=20, per=1, burst=1, max_wait=0.3)
    gate.try_acquire()
    go, done, waits = threading.Event(), threading.Event(), []

    async def blocked():
        waiting = asyncio.ensure_future(gate.acquire())
        await settled()
        go.set()
        done.wait(30)
        await waiting

    async def other():
        started = time.monotonic()
        with contextlib.suppress(RateLimited):
            await gate.acquire()
        waits.append(time.monotonic() - started)

    first = in_thread(asyncio.run, blocked())
    go.wait(30)
    others = [in_thread(asyncio.run, other()) for _ in range(3)]
    for thread in others:
        thread.join(20)
        assert not thread.is_alive(), "it waits for a loop that is blocked"
    done.set()
    first.join(30)
    assert len(waits) == 3


@pytest.mark.parametrize("kind", ["bulkhead", "admit"])
def test_the_other_gates_with_a_queue_keep_each_callers_time_too(kind, memory):
    clock = Stuck()
    build = {"bulkhead": lambda: bulkhead(1, max_wait=1.5, clock=clock)}
    build["admit"] = lambda: admit(concurrency=1, max_wait=1.5, sampler=memory, clock=clock)
    gate = build[kind]()
    hold = gate.try_enter(Call((), {}))
    thread = threading.Thread(target=lambda: gate.settle(gate.enter_blocking(Call((), {})), SUCCESS))
    clock.stuck.add(thread)
    thread.start()
    while not gate.waiting:
        time.sleep(0.001)
    started = clock.now()
    with pytest.raises(WaitTimeout):
        gate.enter_blocking(Call((), {}))
    assert clock.now() - started == pytest.approx(1.5)
    gate.settle(hold, SUCCESS)
    clock.freed.set()
    thread.join(30)
    assert (gate.in_flight, gate.waiting) == (0, 0)
