from __future__ import annotations

import threading

import anyio
import pytest

from guardrails import bulkhead, retry
from guardrails.strategies.retry import RetryScheduled
from guardrails.testing import FakeClock, ScriptEnded, capture_events, flaky, flaky_stream, flaky_sync, sleep


async def read(stream, got):
    async for item in stream:
        got.append(item)


@pytest.mark.anyio
async def test_each_call_takes_the_next_step():
    error = TimeoutError("slow")
    fetch = flaky(error, ConnectionError, lambda a, b: a + b, 503, None)
    with pytest.raises(TimeoutError) as caught:
        await fetch(1, b=2)
    assert caught.value is error
    with pytest.raises(ConnectionError):
        await fetch(1, b=2)
    assert [await fetch(1, b=2) for _ in range(4)] == [3, 503, None, None]
    assert fetch.calls == [((1,), {"b": 2})] * 6
    assert fetch.calls[0].kwargs == {"b": 2}


@pytest.mark.anyio
async def test_a_step_may_be_an_async_function():
    async def add(a, b):
        await anyio.lowlevel.checkpoint()
        return a + b

    assert await flaky(add)(1, b=2) == 3


@pytest.mark.anyio
async def test_what_comes_after_the_script():
    last, again, error = flaky(1, 2), flaky(1, 2, then="again"), flaky(1, 2, then="error", name="weather")
    assert [await last() for _ in range(5)] == [1, 2, 2, 2, 2]
    assert [await again() for _ in range(5)] == [1, 2, 1, 2, 1]
    assert [await error() for _ in range(2)] == [1, 2]
    with pytest.raises(ScriptEnded, match="weather: call number 3, and its script has 2 steps"):
        await error()
    assert len(error.calls) == 3
    assert error.in_flight == 0


@pytest.mark.anyio
async def test_an_error_raised_again_does_not_collect_the_frames_of_all_calls():
    fetch = flaky(ValueError())
    depths = []
    for _ in range(3):
        with pytest.raises(ValueError) as caught:
            await fetch()
        depths.append(len(caught.traceback))
    assert len(set(depths)) == 1


@pytest.mark.anyio
async def test_sleep_waits_on_the_clock():
    clock = FakeClock(autojump=True)
    fetch = flaky(sleep(2), sleep(3, "ok"), sleep(1, sleep(1, TimeoutError())), clock=clock)
    assert await fetch() is None
    assert clock.now() == 1002
    assert await fetch() == "ok"
    with pytest.raises(TimeoutError):
        await fetch()
    assert clock.waits == [2, 3, 1, 1]


@pytest.mark.anyio
async def test_the_most_at_once_is_counted(idle):
    clock = FakeClock()
    fetch = flaky(sleep(1), clock=clock)
    guarded = bulkhead(2, clock=clock)(fetch)
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(guarded)
        await idle()
        assert (fetch.in_flight, fetch.max_in_flight) == (2, 2)
        group.cancel_scope.cancel()
    assert (fetch.in_flight, fetch.max_in_flight, len(fetch.calls)) == (0, 2, 2)


@pytest.mark.anyio
async def test_a_guard_takes_it_for_what_it_is():
    clock = FakeClock(autojump=True)
    again = retry(attempts=3, wait=30, clock=clock)
    fetch = flaky(TimeoutError(), sleep(2, "ok"), clock=clock, name="fetch")
    guarded = again(fetch)
    assert await guarded() == "ok"
    assert guarded.__name__ == "fetch"
    assert clock.now() == 1032

    source = flaky_stream([ConnectionError()], ["a", "b"])
    got = []
    await read(again(source)(), got)
    assert got == ["a", "b"]
    assert len(source.calls) == 2


def test_a_guard_takes_the_sync_one_for_what_it_is():
    clock = FakeClock(autojump=True)
    fetch = flaky_sync(TimeoutError(), sleep(2, sleep(1, "ok")), lambda n: n, sleep(1), clock=clock)
    guarded = retry(wait=30, clock=clock)(fetch)
    assert guarded(1) == "ok"
    assert guarded(5) == 5
    assert guarded(6) is None
    assert clock.waits == [30, 2, 1, 1]
    assert [call.args for call in fetch.calls] == [(1,), (1,), (5,), (6,)]


def test_calls_from_threads_get_a_step_each():
    fetch = flaky_sync(*range(40))
    got = []
    threads = [threading.Thread(target=lambda: [got.append(fetch()) for _ in range(10)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(40))


@pytest.mark.anyio
async def test_a_stream_breaks_where_its_script_says():
    clock = FakeClock(autojump=True)
    chat = flaky_stream(["a", sleep(2), "b", sleep(1, "c"), ConnectionError(), "never"], TimeoutError, (), clock=clock)
    got = []
    with pytest.raises(ConnectionError):
        await read(chat("hi"), got)
    assert got == ["a", "b", "c"]
    assert clock.waits == [2, 1]
    with pytest.raises(TimeoutError):
        await read(chat("hi"), got)
    await read(chat("hi"), got)
    assert got == ["a", "b", "c"]
    assert chat.calls == [(("hi",), {})] * 3


@pytest.mark.anyio
async def test_a_streams_items_may_be_computed_and_an_open_one_is_in_flight():
    chat = flaky_stream([lambda word: word.upper(), None, 7])
    stream = chat("hi")
    assert (chat.in_flight, len(chat.calls)) == (0, 0)  # nobody has read it yet
    assert [await anext(stream), await anext(stream)] == ["HI", None]
    assert (chat.in_flight, chat.max_in_flight) == (1, 1)
    await stream.aclose()
    assert chat.in_flight == 0


@pytest.mark.parametrize("kind", [flaky, flaky_sync, flaky_stream])
def test_misuse(kind):
    with pytest.raises(TypeError, match="at least one step"):
        kind()
    with pytest.raises(ValueError, match="then takes one of 'last', 'again', 'error', not 'stop'"):
        kind([1], then="stop")
    assert repr(kind([1], name="fetch")) == f"<{kind.__name__} 'fetch', called 0 times>"


def test_misuse_of_steps():
    with pytest.raises(TypeError, match="script takes lists of items, or exceptions, not str"):
        flaky_stream("ab")
    with pytest.raises(TypeError, match="seconds takes a number, not str"):
        sleep("1")
    with pytest.raises(TypeError, match="seconds takes a number, not bool"):
        sleep(True)
    with pytest.raises(ValueError, match="at least 0, not -1"):
        sleep(-1)
    assert repr([sleep(1), sleep(2.5, "ok")]) == "[sleep(1), sleep(2.5, 'ok')]"


@pytest.mark.anyio
async def test_events_of_a_type_and_of_a_guard():
    clock = FakeClock(autojump=True)
    ours, theirs = (retry(name=name, wait=1, clock=clock) for name in ("ours", "theirs"))
    with (
        capture_events() as everything,
        capture_events(RetryScheduled) as retries,
        capture_events(guard="ours") as by_name,
        capture_events(RetryScheduled, guard=theirs) as by_guard,
    ):
        room = bulkhead(1, name="ours", clock=clock)
        for each in (ours, theirs):
            await each(room(flaky(TimeoutError(), "ok")))()
    assert [event.source for event in retries] == ["ours", "theirs"]
    assert by_guard == [retries[1]]
    assert by_name == [event for event in everything if event.source == "ours"]
    assert len(everything) > len(by_name) > 2


@pytest.mark.parametrize("misuse", [int, "BreakerChanged", object()])
def test_capture_events_takes_events(misuse):
    with pytest.raises(TypeError, match="types takes classes of events"):
        capture_events(misuse)


def test_capture_events_takes_guards():
    with pytest.raises(TypeError, match="guard takes a guard or its name, not int"):
        capture_events(guard=5)
