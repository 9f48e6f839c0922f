from __future__ import annotations

import contextlib
import gc
import warnings

import anyio
import pytest

from guardrails import admit, breaker, guard, timeout
from guardrails.core.guard import Gate
from guardrails.core.pipeline import Layer
from guardrails.errors import CircuitOpen, TimedOut

pytestmark = pytest.mark.anyio


class Recorder(Layer, Gate):
    name = "recorder"

    def __init__(self):
        self.entered = 0
        self.outcomes = []

    def describe(self):
        return self.name

    def try_enter(self, call):
        self.entered += 1
        return self.entered

    def settle(self, ticket, outcome):
        self.outcomes.append(outcome.kind)


@pytest.fixture
def gate():
    return Recorder()


async def numbers(n, error=None):
    for number in range(n):
        yield number
    if error is not None:
        raise error


async def test_a_stream_is_entered_at_its_first_item(gate):
    stream = gate(numbers)(3)
    assert gate.entered == 0
    assert await anext(stream) == 0
    assert gate.entered == 1
    await stream.aclose()


async def test_success_is_known_at_the_end_only(gate):
    stream = gate(numbers)(2)
    assert [await anext(stream), await anext(stream)] == [0, 1]
    assert gate.outcomes == []
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert gate.outcomes == ["success"]


async def test_closing_early_is_not_a_failure_and_closes_the_source(gate):
    closed = []

    @gate
    async def source():
        try:
            yield 1
            yield 2
        finally:
            await anyio.lowlevel.checkpoint()
            closed.append(list(gate.outcomes))

    async with contextlib.aclosing(source()) as stream:
        async for _ in stream:
            break
    assert closed == [[]]  # the source first, then the gates
    assert gate.outcomes == ["ignored"]


async def test_an_error_before_the_first_item(gate):
    with pytest.raises(ValueError, match="down"):
        await anext(gate(numbers)(0, ValueError("down")))
    assert gate.outcomes == ["failure"]


async def test_an_error_after_some_items(gate):
    seen = []
    with pytest.raises(ValueError, match="down"):
        async for item in gate(numbers)(2, ValueError("down")):
            seen.append(item)
    assert (seen, gate.outcomes) == ([0, 1], ["failure"])


async def test_a_failed_stream_opens_the_breaker(clock):
    circuit = breaker(fail_max=1, clock=clock)
    stream = circuit(numbers)
    with pytest.raises(ValueError):
        _ = [item async for item in stream(1, ValueError())]
    with pytest.raises(CircuitOpen):
        _ = [item async for item in stream(1)]


async def test_a_cancelled_stream_is_ignored(gate, idle):
    @gate
    async def hang():
        yield 1
        await anyio.sleep_forever()

    async def read():
        async for _ in hang():
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await idle()
        tasks.cancel_scope.cancel()
    assert gate.outcomes == ["ignored"]


async def test_what_the_reader_sends_reaches_the_source(gate):
    @gate
    async def echo():
        got = None
        while got != "stop":
            got = yield got

    stream = echo()
    assert await stream.asend(None) is None
    assert await stream.asend("a") == "a"
    assert await stream.asend("b") == "b"
    with pytest.raises(StopAsyncIteration):
        await stream.asend("stop")
    assert gate.outcomes == ["success"]


async def test_what_the_reader_throws_reaches_the_source(gate):
    @gate
    async def source():
        try:
            yield 1
        except KeyError:
            yield 2
        yield 3

    stream = source()
    assert await anext(stream) == 1
    assert await stream.athrow(KeyError()) == 2
    assert await anext(stream) == 3
    with pytest.raises(ZeroDivisionError):
        await stream.athrow(ZeroDivisionError())
    assert gate.outcomes == ["failure"]


async def test_a_dropped_stream_is_settled_when_it_is_finalised(memory, idle):
    gate = admit(concurrency=1, sampler=memory)
    circuit = breaker(fail_max=1)
    stream = guard(circuit, gate)(numbers)(3)
    assert await anext(stream) == 0
    assert gate.in_flight == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # trio says that the stream should have been closed
        del stream
        gc.collect()
        await idle()
    assert (gate.in_flight, circuit.state) == (0, "closed")


def test_a_generator_ends_in_every_way(gate):
    @gate
    def source(error=None):
        try:
            yield 1
        except KeyError:
            yield 2
        if error:
            raise error

    assert list(source()) == [1]
    stream = source()
    assert (next(stream), stream.throw(KeyError())) == (1, 2)
    stream.close()
    dropped = source()
    next(dropped)
    del dropped
    gc.collect()
    with pytest.raises(ValueError):
        list(source(ValueError()))
    assert gate.outcomes == ["success", "ignored", "ignored", "failure"]


async def test_a_stream_that_was_never_read_enters_nothing(gate):
    stream = gate(numbers)(3)
    await stream.aclose()
    del stream
    assert (gate.entered, gate.outcomes) == (0, [])


# Timeouts


class Script:
    """A stream whose every item waits for a number of seconds on the fake clock."""

    def __init__(self, clock, *pauses):
        self.clock = clock
        self.pauses = pauses

    async def __call__(self):
        for number, pause in enumerate(self.pauses):
            await self.clock.sleep(pause)
            yield number


async def read(clock, idle, stream, *, step=1.0, reader=0.0):
    """Read `stream` to its end while the clock goes on; the items, and how it ended."""
    seen, ended = [], []

    async def reading():
        try:
            async for item in stream:
                seen.append(item)
                if reader:
                    await clock.sleep(reader)
        except TimedOut as error:
            ended.append(error.limit)
        else:
            ended.append("whole")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reading)
        while not ended:
            await idle()
            if not ended:
                clock.advance(step)
    return seen, ended[0]


def limited(limit, script):
    async def source():
        async for item in script():
            yield item

    return limit(source)()


@pytest.mark.parametrize(
    ("limits", "pauses", "reader", "expected"),
    [
        ({"first": 5}, [4, 9, 9], 0, ([0, 1, 2], "whole")),
        ({"first": 5}, [6], 0, ([], "first")),
        ({"idle": 5}, [9, 4, 4], 0, ([0, 1, 2], "whole")),
        ({"idle": 5}, [9, 4, 6, 1], 0, ([0, 1], "idle")),
        ({"first": 2, "idle": 5}, [3, 1], 0, ([], "first")),
        ({"total": 10}, [3, 3, 3], 0, ([0, 1, 2], "whole")),
        ({"total": 10}, [3, 3, 3, 3], 0, ([0, 1, 2], "total")),
        ({"total": 10, "idle": 4}, [3, 3, 3, 3], 0, ([0, 1, 2], "total")),
        ({"total": 20, "idle": 4}, [3, 3, 6, 3], 0, ([0, 1], "idle")),
        ({"total": 2, "first": 5}, [3], 0, ([], "total")),
        ({"idle": 5}, [1, 1, 1], 50, ([0, 1, 2], "whole")),  # the reader's time is not the source's
        ({"first": 5}, [1, 1], 50, ([0, 1], "whole")),
        ({"total": 10}, [1, 1, 1], 6, ([0, 1], "total")),  # but it counts towards the whole
    ],
)
async def test_limits_of_a_stream(clock, limits, pauses, reader, expected, idle):
    stream = limited(timeout(**limits, clock=clock), Script(clock, *pauses))
    assert await read(clock, idle, stream, reader=reader) == expected


async def test_a_stream_that_times_out_is_a_failure_of_the_gates_outside(clock, gate, idle):
    pipeline = guard(gate, timeout(first=5, clock=clock))
    assert await read(clock, idle, limited(pipeline, Script(clock, 9))) == ([], "first")
    assert gate.outcomes == ["failure"]


async def test_a_deadline_outside_is_not_a_failure_of_the_gates_inside(clock, gate, idle):
    pipeline = guard(timeout(5, clock=clock), gate)
    assert await read(clock, idle, limited(pipeline, Script(clock, 9))) == ([], "total")
    assert gate.outcomes == ["ignored"]


async def test_the_source_can_clean_up_when_it_is_cut_off(clock, idle):
    cleaned = []

    async def source():
        try:
            await anyio.sleep_forever()
            yield 1
        finally:
            cleaned.append(True)

    assert await read(clock, idle, timeout(first=5, clock=clock)(source)()) == ([], "first")
    assert cleaned == [True]


async def test_an_error_of_the_source_is_not_taken_for_a_timeout(clock):
    stream = timeout(first=5, idle=5, clock=clock)(numbers)(1, ValueError("down"))
    assert await anext(stream) == 0
    with pytest.raises(ValueError, match="down"):
        await anext(stream)


async def test_the_real_clock_cuts_a_stream_off():
    async def source():
        yield 1
        await anyio.sleep(30)
        yield 2

    stream = timeout(first=20, idle=0.02)(source)()
    assert await anext(stream) == 1
    with pytest.raises(TimedOut, match=r"no further item within 0.02 s"):
        await anext(stream)


async def test_a_stream_may_be_read_by_one_task_after_another(gate):
    stream = guard(gate, timeout(30, idle=20))(numbers)(3)
    seen = []

    async def one():
        seen.append(await anext(stream))

    for _ in range(3):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert (seen, gate.outcomes) == ([0, 1, 2], ["success"])


async def test_a_reader_that_is_cancelled_between_items_leaves_nothing(memory, idle):
    gate = admit(concurrency=1, sampler=memory)
    pipeline = guard(gate, timeout(30, idle=20))

    async def reading():
        async with contextlib.aclosing(pipeline(numbers)(3)) as stream:
            async for _ in stream:
                await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reading)
        await idle()
        assert gate.in_flight == 1
        tasks.cancel_scope.cancel()
    assert gate.in_flight == 0


# A slow first item


@pytest.mark.parametrize(("first", "rest", "state"), [(5.0, 0.0, "open"), (0.0, 60.0, "closed"), (4.9, 60.0, "closed")])
async def test_a_stream_is_as_slow_as_its_first_item(clock, first, rest, state):
    circuit = breaker(slow_after=5, slow_rate=1, min_calls=2, clock=clock)

    @circuit
    async def stream():
        clock.advance(first)
        yield 1
        clock.advance(rest)
        yield 2

    @circuit
    def items():
        clock.advance(first)
        yield 1
        clock.advance(rest)

    assert [item async for item in stream()] == [1, 2]
    assert list(items()) == [1]
    assert circuit.state == state


async def test_a_stream_without_an_item_is_as_slow_as_it_was_long(clock):
    circuit = breaker(slow_after=5, slow_rate=1, min_calls=1, clock=clock)

    @circuit
    async def nothing():
        clock.advance(5)
        return
        yield

    assert [item async for item in nothing()] == []
    assert circuit.state == "open"


async def test_a_probe_stream_is_as_slow_as_its_first_item(clock):
    circuit = breaker(slow_after=5, slow_rate=1, min_calls=1, open_for=10, clock=clock)

    @circuit
    async def stream(first):
        clock.advance(first)
        yield 1
        clock.advance(20)

    assert [item async for item in stream(5)] == [1]
    assert circuit.state == "open"
    clock.advance(10)
    assert [item async for item in stream(0)] == [1]
    assert circuit.state == "closed"
