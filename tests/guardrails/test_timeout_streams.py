"""Streams on the wheel of the loop: an entry that stays from item to item. The time is moved by hand."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from guardrails import breaker, deadline_in, guard, remaining, timeout
from guardrails.core.events import CallTimedOut
from guardrails.core.timers import BUCKET, wheel_of
from guardrails.errors import TimedOut
from guardrails.gates.timeout import gate as module
from guardrails.testing import FakeClock, capture_events

pytestmark = pytest.mark.anyio


@pytest.fixture(
    params=[
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ]
)
def anyio_backend(request):
    return request.param


class Time:
    """The machine's time and what was added to it; and what the wheel does when a time has come."""

    def __init__(self, monkeypatch):
        self.added = 0.0
        real = module._now
        monkeypatch.setattr(module, "_now", lambda: real() + self.added)

    def advance(self, seconds):
        """Later, and every bucket whose time has come by then is due."""
        self.added += seconds
        buckets = wheel_of(asyncio.get_running_loop())._buckets
        while due := [slot for slot in buckets if slot * BUCKET <= module._now()]:
            for entry in buckets.pop(min(due)).entries:
                entry.expire()


@pytest.fixture
def time(monkeypatch):
    return Time(monkeypatch)


def entries():
    return len(wheel_of(asyncio.get_running_loop()))


@pytest.fixture
async def source():
    """A stream whose items are handed to it."""
    items = asyncio.Queue()

    async def stream():
        while (item := await items.get()) is not None:
            yield item

    stream.put = items.put_nowait
    return stream


async def read(stream):
    """The next item, in a task of its own, which waits for it by now."""
    task = asyncio.ensure_future(anext(stream))
    for _ in range(3):
        await asyncio.sleep(0)
    return task


async def test_one_entry_serves_a_stream_and_goes_with_it(time, source):
    stream = timeout(30, first=5, idle=10)(source)()
    for number in range(50):
        source.put(number)
        assert await anext(stream) == number
        assert entries() == 1
    source.put(None)
    assert [item async for item in stream] == []
    assert entries() == 0


@pytest.mark.parametrize(
    ("limits", "first", "second", "expected"),
    [
        ({"first": 5}, 5.1, None, ("first", 5)),
        ({"first": 5}, 4.9, 1000, None),
        ({"idle": 5}, 1000, 5.1, ("idle", 5)),
        ({"idle": 5}, 4, 4.9, None),
        ({"total": 7}, 4, 4, ("total", 7)),
        ({"total": 7, "idle": 5}, 3, 4.1, ("total", 7)),
        ({"total": 7, "idle": 2}, 3, 2.1, ("idle", 2)),
        ({"first": 60, "idle": 1}, 50, 1.1, ("idle", 1)),
        ({"first": 60, "idle": 1}, 50, 0.9, None),
        ({"first": 1, "idle": 60}, 0.9, 59, None),
    ],
)
async def test_an_item_is_cut_off_when_it_is_late_and_not_before(time, source, limits, first, second, expected):
    stream = timeout(**limits)(source)()

    async def both():
        for seconds in (first, second):
            if seconds is not None:
                task = await read(stream)
                time.advance(seconds)
                source.put("item")
                assert await task == "item"

    if expected is None:
        await both()
    else:
        with pytest.raises(TimedOut) as late:
            await both()
        assert (late.value.limit, late.value.seconds) == expected
    await stream.aclose()
    time.advance(1000)
    assert entries() == 0


async def test_a_bucket_that_is_due_before_an_item_is_late_hands_it_on(time, source):
    stream = timeout(idle=5, first=5)(source)()
    for _ in range(4):
        task = await read(stream)
        time.advance(4)
        source.put("item")
        assert await task == "item"
        assert entries() <= 1
    task = await read(stream)
    time.advance(5.1)
    with pytest.raises(TimedOut):
        await task


async def test_the_readers_own_time_is_not_the_streams(time, source):
    stream = timeout(idle=5, first=5)(source)()
    source.put(1)
    assert await anext(stream) == 1
    time.advance(100)  # the reader has the stream
    assert entries() == 0
    source.put(2)
    assert await anext(stream) == 2
    assert entries() == 1
    task = await read(stream)
    time.advance(5.1)
    with pytest.raises(TimedOut) as late:
        await task
    assert late.value.limit == "idle"


async def test_a_cancellation_of_somebody_elses_arrives_first(time, source):
    stream = timeout(idle=5, first=5)(source)()
    task = await read(stream)
    task.cancel()
    time.advance(5.1)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    time.advance(1)
    assert entries() == 0


async def test_work_inside_knows_what_is_left_of_each_item(time):
    told = []

    async def counting():
        for _ in range(3):
            told.append(round(remaining()))
            yield

    async for _ in timeout(30, first=20, idle=10)(counting)():
        assert remaining() is None
    assert told == [20, 10, 10]


async def test_not_ambient_it_tells_nothing(time):
    async def asking():
        yield remaining()

    assert [left async for left in timeout(30, ambient=False)(asking)()] == [None]


async def test_a_nearer_deadline_that_nobody_enforces_is_enforced(time):
    async def hanging():
        yield 1
        await asyncio.sleep(1000)

    with deadline_in(0.0, clock=FakeClock()):
        stream = timeout(30)(hanging)()
        with pytest.raises(TimedOut) as late:
            async for _ in stream:
                await asyncio.sleep(0.03)
    assert late.value.limit == "total"
    assert entries() == 0


async def test_two_limits_around_one_stream_both_hold(time, source):
    circuit = breaker(fail_max=1)
    stream = guard(timeout(60, name="whole"), circuit, timeout(idle=5, first=5, name="item"))(source)()
    source.put(1)
    assert await anext(stream) == 1
    assert entries() == 2
    task = await read(stream)
    time.advance(5.1)
    with capture_events(CallTimedOut) as seen, pytest.raises(TimedOut) as late:
        await task
    assert late.value.guard == "item"
    assert [event.source for event in seen] == ["item"]
    assert circuit.state == "open"
    assert entries() == 0


async def test_the_outer_of_two_is_nobodys_failure_further_in(time, source):
    circuit = breaker(fail_max=1)
    stream = guard(timeout(5, name="whole"), circuit, timeout(idle=60, first=60, name="item"))(source)()
    source.put(1)
    assert await anext(stream) == 1
    task = await read(stream)
    time.advance(5.1)
    with pytest.raises(TimedOut) as late:
        await task
    assert (late.value.guard, circuit.state) == ("whole", "closed")


async def test_an_error_of_a_source_under_two_limits_is_its_own(time):
    async def broken():
        yield 1
        raise LookupError

    stream = guard(timeout(60), breaker(), timeout(idle=5))(broken)()
    with pytest.raises(LookupError):
        [item async for item in stream]
    assert entries() == 0


async def test_tasks_may_take_turns_and_each_is_cut_off_for_itself(time, source):
    stream = timeout(idle=5, first=5)(source)()
    source.put(1)
    assert await (await read(stream)) == 1
    task = await read(stream)
    time.advance(5.1)
    with pytest.raises(TimedOut):
        await task
    assert task.cancelling() == 0


async def test_two_streams_that_one_task_reads_in_turns(time):
    told = []

    async def counting(name):
        for number in range(3):
            told.append(round(remaining()))
            yield name, number

    first, second = timeout(first=20, idle=20)(counting)("a"), timeout(first=7, idle=7)(counting)("b")
    for number in range(3):
        assert await anext(first) == ("a", number)
        assert await anext(second) == ("b", number)
    assert told == [20, 7] * 3
    for stream in (first, second):
        assert [item async for item in stream] == []
    assert entries() == 0


def test_a_stream_may_go_on_on_another_loop():
    async def counting():
        for number in range(4):
            yield number

    stream = timeout(30, idle=5)(counting)()
    loops = [asyncio.new_event_loop() for _ in range(2)]
    try:
        for number in range(4):
            loop = loops[number % 2]
            assert loop.run_until_complete(anext(stream)) == number
        loops[0].run_until_complete(stream.aclose())
        for loop in loops:
            for bucket in list(wheel_of(loop)._buckets.values()):
                for entry in bucket.entries:
                    entry.expire()  # knows that it watches nothing any more
    finally:
        for loop in loops:
            loop.close()


async def test_a_loop_with_a_time_of_its_own_uses_scopes(monkeypatch, source):
    monkeypatch.setattr(wheel_of(asyncio.get_running_loop()), "monotonic", False)
    stream = timeout(30, idle=5)(source)()
    source.put(1)
    assert await anext(stream) == 1
    assert entries() == 0
    await stream.aclose()


async def test_anyios_own_scope_inside_an_item_is_left_alone(time):
    async def scoped():
        with anyio.move_on_after(0.001) as scope:
            await anyio.sleep_forever()
        yield scope.cancelled_caught

    assert [caught async for caught in timeout(30)(scoped)()] == [True]
