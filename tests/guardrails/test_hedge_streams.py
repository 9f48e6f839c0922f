"""Hedged streams: a race until the first item; the one it comes from is read on, the others are closed."""

from __future__ import annotations

import contextvars
import gc
import weakref
from types import SimpleNamespace

import anyio
import pytest

from guardrails import breaker, guard, timeout
from guardrails.core.guard import Gate
from guardrails.core.pipeline import Layer
from guardrails.errors import TimedOut
from guardrails.strategies.hedge import HedgeStarted, HedgeWon, hedge
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio


class Streams:
    """A stream whose attempts give their first item when the test says so, and what became of each."""

    def __init__(self):
        self.attempts = []

    async def items(self, *after):
        mine = SimpleNamespace(go=anyio.Event(), first="first", error=None, end=None, sent=[])
        self.attempts.append(mine)
        try:
            await mine.go.wait()
            if mine.error is not None:
                raise mine.error
            if mine.first is not None:
                mine.sent.append((yield f"{mine.first} of {len(self.attempts)}"))
            for item in after:
                if isinstance(item, BaseException):
                    raise item
                mine.sent.append((yield item))
            mine.end = "read"
        except GeneratorExit:
            mine.end = "closed"
            raise
        except BaseException as exc:
            mine.end = "failed" if isinstance(exc, Exception) else "cancelled"
            raise

    def begin(self, number, **changes):
        vars(self.attempts[number - 1]).update(changes)
        self.attempts[number - 1].go.set()

    @property
    def ends(self):
        return [each.end for each in self.attempts]


class Recorder(Gate, Layer):
    name = "recorder"

    def __init__(self):
        self.entered, self.outcomes = 0, []

    def describe(self):
        return "recorder"

    def try_enter(self, call):
        self.entered += 1
        return self.entered

    def settle(self, ticket, outcome):
        self.outcomes.append((ticket, outcome.kind))


class Reader:
    def __init__(self):
        self.got, self.error, self.done = [], None, False

    async def of(self, stream):
        try:
            async for item in stream:
                self.got.append(item)
        except Exception as error:
            self.error = error
        self.done = True


@pytest.fixture
def streams():
    return Streams()


@pytest.fixture
def reader():
    return Reader()


@pytest.fixture
def recorder():
    return Recorder()


async def test_a_slow_stream_is_raced_until_its_first_item(clock, idle, streams, reader, recorder):
    work = guard(hedge(0.2, name="h", clock=clock), recorder)(streams.items)
    with decisions() as seen:
        async with anyio.create_task_group() as group:
            group.start_soon(reader.of, work(2, 3))
            await idle()
            assert len(streams.attempts) == 1
            clock.advance(0.2)
            await idle()
            assert len(streams.attempts) == 2
            streams.begin(2)
    assert reader.got == ["first of 2", 2, 3]
    assert streams.ends == ["cancelled", "read"]
    assert recorder.outcomes == [(1, "ignored"), (2, "success")]
    assert [event for event in seen if isinstance(event, HedgeStarted | HedgeWon)] == [
        HedgeStarted("h", 2, 0.2),
        HedgeWon("h", 2),
    ]


async def test_a_quick_stream_starts_nothing_though_it_is_slow_later(clock, idle, streams):
    stream = hedge(0.2, clock=clock)(streams.items)(2)
    async with anyio.create_task_group() as group:
        got = []

        async def read():
            got.append(await anext(stream))

        group.start_soon(read)
        await idle()
        streams.begin(1)
    clock.advance(100)
    assert got + [item async for item in stream] == ["first of 1", 2]
    assert streams.ends == ["read"]


async def test_one_that_fails_before_its_first_item_is_replaced_at_once(clock, idle, streams, reader, recorder):
    work = guard(hedge(0.2, clock=clock), recorder)(streams.items)
    async with anyio.create_task_group() as group:
        group.start_soon(reader.of, work())
        await idle()
        streams.begin(1, error=ValueError())
        await idle()
        streams.begin(2)
    assert (reader.got, reader.error) == (["first of 2"], None)
    assert recorder.outcomes == [(1, "failure"), (2, "success")]


async def test_if_all_fail_the_first_failure_is_raised(clock, idle, streams, reader):
    error = ValueError("first")
    async with anyio.create_task_group() as group:
        group.start_soon(reader.of, hedge(0.2, clock=clock)(streams.items)())
        await idle()
        streams.begin(1, error=error)
        await idle()
        streams.begin(2, error=KeyError("second"))
    assert reader.error is error
    assert len(streams.attempts) == 2


async def test_a_later_error_is_the_readers_and_nothing_is_replayed(clock, idle, streams, reader, recorder):
    error = ValueError()
    work = guard(hedge(0.2, clock=clock), recorder)(streams.items)
    async with anyio.create_task_group() as group:
        group.start_soon(reader.of, work(2, error))
        await idle()
        streams.begin(1)
    assert (reader.got, reader.error) == (["first of 1", 2], error)
    assert len(streams.attempts) == 1
    assert recorder.outcomes == [(1, "failure")]


async def test_a_stream_without_items_wins_too(clock, idle, streams, reader):
    async with anyio.create_task_group() as group:
        group.start_soon(reader.of, hedge(0.2, clock=clock)(streams.items)())
        await idle()
        clock.advance(0.2)
        await idle()
        streams.begin(1, first=None)
    assert (reader.got, reader.error) == ([], None)
    assert streams.ends == ["read", "cancelled"]


async def test_a_stream_that_is_left_is_closed(clock, idle, streams, recorder):
    stream = guard(hedge(0.2, clock=clock), recorder)(streams.items)(2, 3)

    async def read():
        assert await anext(stream) == "first of 1"

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await idle()
        streams.begin(1)
    await stream.aclose()
    assert streams.ends == ["closed"]
    assert recorder.outcomes == [(1, "ignored")]


async def test_a_reader_that_is_cancelled_cancels_all(clock, idle, streams, reader, recorder):
    async with anyio.create_task_group() as group:
        group.start_soon(reader.of, guard(hedge(0.2, clock=clock), recorder)(streams.items)())
        await idle()
        clock.advance(0.2)
        await idle()
        group.cancel_scope.cancel()
    assert streams.ends == ["cancelled"] * 2
    assert sorted(recorder.outcomes) == [(1, "ignored"), (2, "ignored")]


async def test_a_reader_that_is_cancelled_later_cancels_the_step(clock, idle, reader, recorder):
    ends = []

    async def items():
        try:
            yield 1
            await anyio.sleep_forever()
        except BaseException as exc:
            ends.append(type(exc))
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(reader.of, guard(hedge(0.2, clock=clock), recorder)(items)())
        await idle()
        assert reader.got == [1]
        group.cancel_scope.cancel()
    assert ends == [anyio.get_cancelled_exc_class()]
    assert recorder.outcomes == [(1, "ignored")]


async def test_what_the_reader_sends_and_throws_reaches_the_stream(clock):
    @hedge(0.2, clock=clock)
    async def echo():
        got = yield 0
        while True:
            try:
                got = yield got
            except KeyError:
                got = "caught"

    stream = echo()
    assert [await stream.asend(None), await stream.asend("a"), await stream.athrow(KeyError())] == [0, "a", "caught"]
    with pytest.raises(ValueError):
        await stream.athrow(ValueError())


async def test_an_error_in_closing_is_seen_by_who_closes(clock):
    @hedge(0.2, clock=clock)
    async def items():
        try:
            yield 1
        finally:
            raise ValueError

    stream = items()
    await anext(stream)
    with pytest.raises(ValueError):
        await stream.aclose()


async def test_scopes_and_context_variables_belong_to_one_task(clock):
    variable = contextvars.ContextVar("variable", default="none")
    variable.set("reader's")

    @hedge(0.2, clock=clock)
    async def items():
        with anyio.CancelScope():  # left in another task than it was entered in, it would raise
            yield variable.get()
            variable.set("stream's")
            yield variable.get()

    assert [item async for item in items()] == ["reader's", "stream's"]
    assert variable.get() == "reader's"


async def test_a_timeout_inside_cuts_off_each_attempt_and_one_outside_all(clock, idle, streams, reader):
    inside = guard(hedge(0.2, clock=clock), timeout(None, first=1, clock=clock))(streams.items)
    outside = guard(timeout(None, first=1, clock=clock), hedge(0.2, clock=clock), check_order=False)(streams.items)
    for work in (inside, outside):
        reader.done = False
        async with anyio.create_task_group() as group:
            group.start_soon(reader.of, work())
            await idle()
            for _ in range(3):
                clock.advance(0.5)
                await idle()
        assert isinstance(reader.error, TimedOut)
    assert streams.ends == ["cancelled"] * 4


async def test_each_attempt_passes_the_breaker(clock, idle, streams, reader):
    circuit = breaker(fail_max=1, clock=clock)
    async with anyio.create_task_group() as group:
        group.start_soon(reader.of, guard(hedge(0.2, clock=clock), circuit)(streams.items)())
        await idle()
        clock.advance(0.2)
        await idle()
        streams.begin(2)
    assert circuit.current_state == "closed"


async def test_a_loser_that_does_not_take_its_cancellation_is_closed(clock, idle, reader):
    ends = []

    async def items():
        number = len(ends) + 1
        ends.append(None)
        try:
            if number == 1:
                with anyio.CancelScope(shield=True), anyio.move_on_after(0.01):
                    await anyio.sleep_forever()
            yield number
        finally:
            ends[number - 1] = "left"

    work = hedge(0.001)(items)
    async with anyio.create_task_group() as group:
        group.start_soon(reader.of, work())
    assert len(reader.got) == 1
    assert ends == ["left"] * len(ends)


async def test_the_time_to_the_first_item_is_what_a_percentile_learns(clock, idle, streams):
    layer = hedge(0.5, percentile=0.5, clock=clock)

    @layer
    async def items():
        await clock.sleep(0.1)
        yield 1
        await clock.sleep(50)
        yield 2

    for _ in range(20):
        async with anyio.create_task_group() as group:
            group.start_soon(Reader().of, items())
            await idle()
            clock.advance(0.1)
            await idle()
            clock.advance(50)
    assert layer.delay == pytest.approx(0.1)


async def test_nothing_is_left_of_a_stream_that_failed(clock, idle):
    class Error(Exception):
        pass

    @hedge(0.2, attempts=2, clock=clock)
    async def items():
        raise Error
        yield

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(Error) as caught:
            await anext(items())
        error = weakref.ref(caught.value)
        del caught
        await idle()
        gc.collect()
        assert error() is None
    finally:
        gc.enable()
