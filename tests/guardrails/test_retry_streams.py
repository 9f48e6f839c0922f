from __future__ import annotations

import asyncio
import gc
from types import MappingProxyType

import anyio
import pytest

from guardrails import breaker, guard, timeout
from guardrails.errors import CircuitOpen, TimedOut
from guardrails.strategies.budget import RetryBudget
from guardrails.strategies.retry import RetryGaveUp, RetryScheduled, retry
from guardrails.testing import FakeClock
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio


@pytest.fixture
def jumping():
    return FakeClock(autojump=True)


class Source:
    """Streams, one for each script: its items, an exception in it is raised. Counts what is opened and closed."""

    def __init__(self, *scripts):
        self.scripts = list(scripts)
        self.opened = self.closed = 0

    def items(self):
        async def items(*args):
            self.opened += 1
            try:
                for item in self.scripts.pop(0):
                    await anyio.lowlevel.checkpoint()
                    if isinstance(item, Exception):
                        raise item
                    yield item
            finally:
                self.closed += 1

        return items


async def read(stream, into=None):
    into = [] if into is None else into
    async for item in stream:
        into.append(item)
    return into


async def test_an_error_before_the_first_item_is_retried(jumping):
    # llama_index's retry (its issue 21346) is inert on streams: it is over before the stream is read.
    source = Source([ValueError()], [ConnectionError()], [1, 2, 3])
    with decisions() as seen:
        assert await read(retry(wait=2, name="r", clock=jumping)(source.items())()) == [1, 2, 3]
    assert (source.opened, source.closed) == (3, 3)
    assert jumping.waits == [2, 2]
    assert seen == [RetryScheduled("r", 2, 2, "failure"), RetryScheduled("r", 3, 2, "failure")]


async def test_delivered_items_are_never_delivered_again(jumping):
    # stamina starts the generator again and replays what it had delivered.
    error = ValueError()
    source = Source([1, 2, error], [1, 2, 3])
    got = []
    with decisions() as seen, pytest.raises(ValueError) as caught:
        await read(retry(name="r", clock=jumping)(source.items())(), got)
    assert got == [1, 2]
    assert caught.value is error
    assert source.opened == 1
    assert error.__notes__ == ["r: gave up after 1 attempt: items were delivered, and are never delivered again"]
    assert seen == [RetryGaveUp("r", "items_delivered", 1)]


async def test_an_error_after_a_retried_start_is_the_readers(jumping):
    source = Source([ValueError()], [1, KeyError()], [1, 2])
    got = []
    with pytest.raises(KeyError) as caught:
        await read(retry(clock=jumping)(source.items())(), got)
    assert got == [1]
    assert caught.value.__context__ is None


async def test_the_last_error_is_raised(jumping):
    last = ValueError(3)
    source = Source([ValueError(1)], [ValueError(2)], [last])
    with pytest.raises(ValueError) as caught:
        await read(retry(attempts=3, clock=jumping)(source.items())())
    assert caught.value is last
    assert last.__notes__ == ["retry: gave up after 3 attempts: no attempts left"]


async def test_what_is_ignored_is_not_retried(jumping):
    class NotFound(Exception):
        status_code = 404

    source = Source([NotFound()], [1])
    with pytest.raises(NotFound):
        await read(retry(clock=jumping)(source.items())())
    assert source.opened == 1


async def test_an_empty_stream_is_a_success(jumping):
    source = Source([], [1])
    assert await read(retry(clock=jumping)(source.items())()) == []
    assert source.opened == 1


async def test_retry_after_and_budget_hold_for_streams(jumping):
    class Throttled(Exception):
        status_code = 429
        headers = MappingProxyType({"retry-after": "7"})

    source = Source([Throttled()], [1])
    assert await read(retry(wait=0, clock=jumping)(source.items())()) == [1]
    assert jumping.waits == [7]
    budget = RetryBudget(0.5, reserve=0, min_per_second=0, clock=jumping)
    guarded = retry(budget=budget, clock=jumping)
    with pytest.raises(ValueError):
        await read(guarded(Source([ValueError()], [1]).items())())
    assert await read(guarded(Source([ValueError()], [1]).items())()) == [1]


async def test_values_and_errors_pass_through_both_ways(jumping):
    heard = []

    async def echo():
        if not heard:
            heard.append("first attempt")
            raise ConnectionError
        given = None
        for _ in range(3):
            try:
                given = yield given
            except KeyError as error:
                given = error
            heard.append(given)

    stream = retry(clock=jumping)(echo)()
    assert await stream.asend(None) is None
    assert await stream.asend("a") == "a"
    error = KeyError()
    assert await stream.athrow(error) is error
    with pytest.raises(StopAsyncIteration):
        await stream.asend("end")
    assert heard == ["first attempt", "a", error, "end"]


async def test_an_error_thrown_in_that_the_source_lets_out_is_not_retried(jumping):
    source = Source([1, 2], [1])
    stream = retry(clock=jumping)(source.items())()
    assert await anext(stream) == 1
    with pytest.raises(KeyError):
        await stream.athrow(KeyError())
    assert (source.opened, source.closed) == (1, 1)


async def test_closing_early_closes_the_source(jumping):
    source = Source([ValueError()], [1, 2])
    stream = retry(clock=jumping)(source.items())()
    assert await anext(stream) == 1
    await stream.aclose()
    assert (source.opened, source.closed) == (2, 2)


async def test_a_stream_that_is_never_read_costs_nothing(jumping):
    source = Source([1])
    guarded = retry(clock=jumping)
    before = guarded.budget.balance
    stream = guarded(source.items())()
    await stream.aclose()
    assert source.opened == 0
    assert guarded.budget.balance == before


async def test_cancelling_the_wait_gives_back_what_was_paid(clock, idle):
    source = Source([ValueError()], [1])
    guarded = retry(wait=5, clock=clock)
    async with anyio.create_task_group() as group:
        group.start_soon(read, guarded(source.items())())
        await idle()
        assert guarded.budget.balance == pytest.approx(9.1)
        group.cancel_scope.cancel()
    assert guarded.budget.balance == pytest.approx(10.1)
    assert (source.opened, source.closed) == (1, 1)


@pytest.mark.parametrize("steps", range(12))
async def test_cancelled_at_every_await_point_every_source_is_closed(steps, clock):
    source = Source([ValueError()], [1, 2])
    guarded = retry(clock=clock)

    async def call():
        stream = guarded(source.items())()
        try:
            await read(stream)
        finally:
            with anyio.CancelScope(shield=True):
                await stream.aclose()

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
            clock.jump()  # not by itself: this task never waits
        group.cancel_scope.cancel()
    assert source.opened == source.closed


async def test_each_attempt_passes_the_gates_further_in_once(jumping):
    source = Source([ValueError()], [ValueError()], [1, 2])
    circuit = breaker(name="b", fail_max=5, clock=jumping)
    with decisions() as seen:
        assert await read(guard(retry(clock=jumping), circuit)(source.items())()) == [1, 2]
    names = [type(event).__name__ for event in seen if event.source == "b"]
    assert names == ["CallAdmitted", "CallSettled"] * 3
    assert [event.outcome for event in seen if hasattr(event, "outcome") and event.source == "b"] == [
        "failure",
        "failure",
        "success",
    ]


async def test_an_open_circuit_ends_the_retries_of_a_stream(jumping):
    source = Source([ValueError()], [ValueError()], [1])
    circuit = breaker(fail_max=2, clock=jumping)
    with pytest.raises(CircuitOpen):
        await read(guard(retry(attempts=5, clock=jumping), circuit)(source.items())())
    assert source.opened == 2


async def test_a_first_item_that_does_not_come_in_time_is_retried(clock, idle):
    calls = 0

    async def items():
        nonlocal calls
        calls += 1
        if calls == 1:
            await anyio.sleep_forever()
        yield calls

    stream = guard(retry(wait=0, clock=clock), timeout(first=5, clock=clock))(items)()
    got = []
    async with anyio.create_task_group() as group:
        group.start_soon(read, stream, got)
        await idle()
        clock.advance(5)
        await idle()
    assert got == [2]


async def test_a_later_item_that_does_not_come_is_the_readers(clock, idle):
    async def items():
        yield 1
        await anyio.sleep_forever()

    stream = guard(retry(clock=clock), timeout(idle=5, clock=clock))(items)()
    assert await anext(stream) == 1
    async with anyio.create_task_group() as group:

        async def more():
            with pytest.raises(TimedOut):
                await anext(stream)

        group.start_soon(more)
        await idle()
        clock.advance(5)


def test_a_stream_that_is_dropped_is_closed_all_the_same(jumping):
    source = Source([ValueError()], [1, 2])

    async def main():
        stream = retry(clock=jumping)(source.items())()
        assert await anext(stream) == 1
        del stream
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert (source.opened, source.closed) == (2, 2)
