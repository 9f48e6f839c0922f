"""A call that an overall deadline cuts off: whose failure is it?"""

from __future__ import annotations

import contextlib

import anyio
import pytest

from guardrails import breaker, bulkhead, guard, retry, timeout
from guardrails.errors import TimedOut

pytestmark = pytest.mark.anyio


async def run(call, clock, idle, *steps):
    """Call it, and let time pass in steps meanwhile."""

    async def watched():
        with contextlib.suppress(TimedOut):
            await call()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watched)
        for step in steps:
            await idle()
            clock.advance(step)


@pytest.mark.parametrize("between", [[], [retry(attempts=2)]])
async def test_a_hung_call_counts_in_a_breaker_inside_the_deadline(clock, idle, between):
    circuit = breaker(fail_max=10, clock=clock)
    call = guard(timeout(10, clock=clock), *between, circuit)(anyio.sleep_forever)
    for _ in range(3):
        await run(call, clock, idle, 10)
    assert circuit.fail_counter == 3


async def test_a_hung_call_counts_in_real_time():
    circuit = breaker(fail_max=10)
    call = guard(timeout(0.05), retry(), circuit)(anyio.sleep_forever)
    with pytest.raises(TimedOut):
        await call()
    assert circuit.fail_counter == 1


async def test_a_caller_that_leaves_is_no_failure(clock, idle):
    circuit = breaker(fail_max=10, clock=clock)
    call = guard(timeout(10, clock=clock), circuit)(anyio.sleep_forever)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await idle()
        clock.advance(9)
        tasks.cancel_scope.cancel()
    assert (circuit.state, circuit.fail_counter) == ("closed", 0)


@pytest.mark.parametrize("inner", [False, True])
async def test_a_short_rest_of_the_deadline_says_nothing(clock, idle, inner):
    circuit, attempts = breaker(fail_max=10, clock=clock), []
    within = [timeout(9, clock=clock)] if inner else []

    @guard(timeout(10, clock=clock), retry(attempts=2, wait=0, clock=clock), circuit, *within)
    async def call():
        attempts.append(1)
        await clock.sleep(6 if len(attempts) == 1 else 60)
        raise ValueError

    await run(call, clock, idle, 6, 4)
    assert (len(attempts), circuit.fail_counter) == (2, 1)  # the first attempt failed by itself


async def test_a_wait_in_our_own_queue_says_nothing(clock, idle):
    circuit, places = breaker(fail_max=10, clock=clock), bulkhead(1, queue=1, max_wait=60, clock=clock)
    call = guard(timeout(10, clock=clock), circuit, places)(anyio.sleep_forever)
    async with places:
        await run(call, clock, idle, 10)
    assert circuit.fail_counter == 0


async def test_the_verdict_is_the_breakers_own(clock, idle):
    circuit = breaker(fail_max=10, failure_on=(ConnectionError,), clock=clock)
    await run(guard(timeout(10, clock=clock), circuit)(anyio.sleep_forever), clock, idle, 10)
    assert circuit.fail_counter == 0
    circuit = breaker(fail_max=10, failure_on=(TimeoutError,), clock=clock)
    await run(guard(timeout(10, clock=clock), circuit)(anyio.sleep_forever), clock, idle, 10)
    assert circuit.fail_counter == 1
