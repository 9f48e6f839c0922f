"""The number of the attempt that runs, as the function sees it."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from guardrails import attempt, breaker, guard, hedge, retry, timeout
from guardrails.events import subscribe
from guardrails.testing import FakeClock

pytestmark = pytest.mark.anyio


class Numbers:
    """Fails until attempt `good`, and keeps the number of each."""

    def __init__(self, good=3):
        self.good = good
        self.seen = []

    def note(self):
        self.seen.append(attempt())
        if len(self.seen) < self.good:
            raise ConnectionError


def test_outside_it_is_the_first():
    assert attempt() == 1


async def test_a_retried_coroutine_sees_its_number():
    numbers = Numbers()

    @retry(attempts=3, wait=0)
    async def ask():
        numbers.note()

    await ask()
    assert numbers.seen == [1, 2, 3]
    assert attempt() == 1


async def test_with_gates_inside_and_events_heard():
    numbers = Numbers()

    @guard(retry(attempts=3, wait=0), breaker(), timeout(30))
    async def ask(_prompt):
        numbers.note()

    stop = subscribe(lambda _event: None)
    try:
        await ask("hi")
    finally:
        stop()
    assert numbers.seen == [1, 2, 3]


async def test_it_is_reset_after_attempts_that_all_fail():
    numbers = Numbers(good=9)

    @retry(attempts=2, wait=0)
    async def ask():
        numbers.note()

    with pytest.raises(ConnectionError):
        await ask()
    assert numbers.seen == [1, 2]
    assert attempt() == 1


async def test_a_retry_that_sees_the_call_from_its_start():
    seen = []

    @retry(attempts=3, wait=0, on_result=lambda result: result < 3)
    async def ask():
        seen.append(attempt())
        return attempt()

    assert await ask() == 3
    assert seen == [1, 2, 3]


def test_a_retried_sync_function_sees_its_number():
    numbers = Numbers()

    @retry(attempts=3, wait=0)
    def ask():
        numbers.note()

    ask()
    assert numbers.seen == [1, 2, 3]
    assert attempt() == 1


async def test_a_retried_stream_sees_its_number_and_its_reader_does_not():
    numbers = Numbers()
    closed = []

    @retry(attempts=3, wait=0)
    async def items():
        try:
            numbers.note()
            yield attempt()
            yield attempt()
        finally:
            closed.append(attempt())

    async for item in items():
        assert (item, attempt()) == (3, 1)
    assert numbers.seen == closed == [1, 2, 3]


async def test_a_nested_call_sees_the_number_of_the_innermost():
    outer, inner = Numbers(good=2), []

    @retry(attempts=2, wait=0)
    async def nested():
        inner.append(attempt())
        if len(inner) % 2:
            raise ConnectionError

    @retry(attempts=2, wait=0)
    def nested_sync(_text):
        inner.append(attempt())

    @retry(attempts=2, wait=0)
    async def nested_stream():
        yield attempt()

    @retry(attempts=2, wait=0)
    async def ask():
        outer.note()
        await nested()
        nested_sync("hi")
        inner.extend([number async for number in nested_stream()])
        return attempt()

    assert await ask() == 2
    assert (outer.seen, inner) == ([1, 2], [1, 2, 1, 1])


async def test_hedged_attempts_at_once_each_see_their_own():
    seen, both = [], anyio.Event()
    clock = FakeClock(autojump=True)

    @hedge(1, budget=None, clock=clock)
    async def ask():
        before = attempt()
        if before == 2:
            both.set()
        await both.wait()
        await anyio.lowlevel.checkpoint()
        seen.append((before, attempt()))
        await anyio.lowlevel.checkpoint()
        return before

    await ask()
    assert sorted(seen)[:2] == [(1, 1), (2, 2)]
    assert attempt() == 1


async def test_hedged_streams_each_see_their_own():
    clock = FakeClock(autojump=True)

    @hedge(1, budget=None, clock=clock)
    async def items():
        if attempt() == 1:
            await anyio.sleep_forever()
        yield attempt()
        yield attempt()

    async for item in items():
        assert (item, attempt()) == (2, 1)


async def test_a_hedge_inside_a_retry_numbers_anew():
    seen = []

    @guard(retry(attempts=2, wait=0), hedge(30, budget=None))
    async def ask():
        seen.append(attempt())
        if len(seen) < 3:
            raise ConnectionError

    await ask()
    assert seen == [1, 2, 1]


async def test_a_cancelled_attempt_leaves_nothing_behind():
    second = anyio.Event()
    left = []

    @retry(attempts=2, wait=0)
    async def ask():
        if attempt() == 2:
            second.set()
            await anyio.sleep_forever()
        raise ConnectionError

    async def cut(scope):
        with scope:
            await ask()
        left.append(attempt())

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(cut, scope)
        await second.wait()
        scope.cancel()
    assert left == [1]
