"""Each call through a pipeline is told in one pair of events, in whatever shape it comes and however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import warnings

import anyio
import pytest

from guardrails import (
    admit,
    breaker,
    bulkhead,
    cache,
    fallback,
    guard,
    hedge,
    inject,
    limiter,
    retry,
    subscribe,
    timeout,
)
from guardrails.core import observed
from guardrails.core.events import CallFinished, CallStarted
from guardrails.core.guard import Gate
from guardrails.core.pipeline import Layer
from guardrails.errors import CircuitOpen, RateLimited, Rejected, TimedOut
from guardrails.testing import FakeClock, capture_events
from tests.guardrails.conftest import FakeMemory
from tests.guardrails.interleave import WAYS, explore, sweep

OUTCOMES = {"success", "failure", "throttled", "rejected", "ignored"}


class Throttled(Exception):
    status_code = 429


class Open(Layer, Gate):
    """Lets everybody in, unless it is `shut`; `trap` is raised when it settles."""

    def __init__(self, name="open", *, shut=False):
        self.name = name
        self.shut = shut

    def describe(self):
        return self.name

    def try_enter(self, call):
        if self.shut:
            raise RateLimited(self.name)
        return True

    def settle(self, ticket, outcome):
        pass


def pairs():
    return capture_events(CallStarted, CallFinished)


def told(seen):
    """The one pair in `seen`: its source and outcome."""
    started, finished = seen
    assert isinstance(started, CallStarted)
    assert isinstance(finished, CallFinished)
    assert (started.source, started.call) == (finished.source, finished.call)
    assert finished.seconds >= 0
    return finished.source, finished.outcome


# The shapes


def as_coroutine(gate, error):
    @gate
    async def call():
        if error is not None:
            raise error

    return call


def as_function(gate, error):
    @gate
    def call():
        if error is not None:
            raise error

    async def run():
        call()

    return run


def as_stream(gate, error):
    @gate
    async def items():
        yield 1
        if error is not None:
            raise error

    async def run():
        async for _ in items():
            pass

    return run


def as_generator(gate, error):
    @gate
    def items():
        yield 1
        if error is not None:
            raise error

    async def run():
        for _ in items():
            pass

    return run


def as_block(gate, error):
    async def run():
        async with gate:
            if error is not None:
                raise error

    return run


def as_sync_block(gate, error):
    async def run():
        with gate:
            if error is not None:
                raise error

    return run


SHAPES = [as_coroutine, as_function, as_stream, as_generator, as_block, as_sync_block]
STREAMS = {as_stream, as_generator}


@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "success"),
        (ValueError("broken"), "failure"),
        (Throttled(), "throttled"),
        (CircuitOpen("further in"), "rejected"),
        (KeyboardInterrupt(), "ignored"),
    ],
)
async def test_one_pair_for_each_call(shape, error, outcome):
    call = shape(guard(Open("a"), Open("b"), name="both"), error)
    with pairs() as seen, contextlib.nullcontext() if error is None else pytest.raises(type(error)):
        await call()
    assert told(seen) == ("both", outcome)
    assert seen[0].stream == (shape in STREAMS)
    assert (seen[1].first is not None) == (shape in STREAMS)


@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES)
async def test_a_call_that_is_refused_at_the_door_is_rejected(shape):
    call = shape(guard(Open("outer"), Open("inner", shut=True)), None)
    with pairs() as seen, pytest.raises(RateLimited):
        await call()
    assert told(seen) == ("outer", "rejected")
    assert seen[1].first is None


@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES)
async def test_it_comes_outside_of_what_the_guards_say(shape):
    with capture_events() as seen:
        await shape(breaker(name="b"), None)()
    assert [type(event).__name__ for event in seen] == ["CallStarted", "CallAdmitted", "CallSettled", "CallFinished"]


@pytest.mark.anyio
@pytest.mark.parametrize("shape", [as_coroutine, as_stream, as_block])
async def test_a_cancelled_call_is_ignored(shape):
    @Open("gate")
    async def sleeps():
        await anyio.sleep_forever()

    @Open("gate")
    async def streams():
        await anyio.sleep_forever()
        yield

    async def block():
        async with Open("gate"):
            await anyio.sleep_forever()

    async def read():
        async for _ in streams():
            pass

    with pairs() as seen:
        async with anyio.create_task_group() as group:
            group.start_soon({as_coroutine: sleeps, as_stream: read, as_block: block}[shape])
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert told(seen) == ("gate", "ignored")


@pytest.mark.anyio
async def test_a_wait_at_the_door_that_is_cancelled_is_ignored(fake_clock):
    room = bulkhead(1, queue=5, clock=fake_clock)

    @room
    async def call():
        await anyio.sleep_forever()

    with pairs() as seen:
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert [event.outcome for event in seen if isinstance(event, CallFinished)] == ["ignored", "ignored"]
    assert len(seen) == 4


@pytest.mark.anyio
@pytest.mark.parametrize("shape", ["call", "block", "stream"])
async def test_what_a_timeout_cut_off_is_a_failure(shape, fake_clock):
    clock = FakeClock(autojump=True)
    cut = timeout(5, first=5, clock=clock, name="cut")

    @cut
    async def call():
        await clock.sleep(60)

    @cut
    async def items():
        await clock.sleep(60)
        yield

    with pairs() as seen, pytest.raises(TimedOut):
        if shape == "call":
            await call()
        elif shape == "block":
            async with cut:
                await clock.sleep(60)
        else:
            await anext(items())
    assert told(seen) == ("cut", "failure")


# Streams


@pytest.mark.anyio
async def test_the_first_item_is_timed_and_no_other(monkeypatch):
    times = iter((10.0, 12.0, 15.0))
    monkeypatch.setattr(observed, "_now", lambda: next(times))

    @breaker(name="b")
    async def items():
        yield 1
        yield 2
        yield 3

    with pairs() as seen:
        assert [item async for item in items()] == [1, 2, 3]
    assert (seen[1].first, seen[1].seconds) == (2.0, 5.0)


@pytest.mark.anyio
@pytest.mark.parametrize("ending", ["close", "drop", "throw"])
async def test_a_stream_that_its_reader_leaves_is_told_once(ending):
    @guard(breaker(), timeout(30, idle=5), name="stream")
    async def items():
        yield 1
        yield 2

    with pairs() as seen:
        stream = items()
        await anext(stream)
        if ending == "close":
            await stream.aclose()
        elif ending == "throw":
            with pytest.raises(ConnectionError):
                await stream.athrow(ConnectionError())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # trio tells of streams that were not closed
            del stream
            gc.collect()
            await anyio.wait_all_tasks_blocked()
            for _ in range(10):
                await anyio.sleep(0)
    assert told(seen) == ("stream", "failure" if ending == "throw" else "ignored")


@pytest.mark.parametrize("ending", ["close", "drop", "throw"])
def test_a_generator_that_its_reader_leaves_is_told_once(ending):
    @breaker(name="b")
    def items():
        yield 1
        yield 2

    with pairs() as seen:
        generator = items()
        assert next(generator) == 1
        if ending == "close":
            generator.close()
        elif ending == "throw":
            with pytest.raises(ConnectionError):
                generator.throw(ConnectionError())
        del generator
        gc.collect()
    assert told(seen) == ("b", "failure" if ending == "throw" else "ignored")
    assert seen[1].first is not None


def test_a_generator_is_sent_values_and_thrown_errors_and_returns_while_somebody_listens():
    @breaker(name="b")
    def talk():
        said = yield "hello"
        try:
            yield said
        except KeyError:
            yield "caught"
        return "bye"

    def whole():
        return (yield from talk())

    with pairs() as seen:
        talking = whole()
        assert next(talking) == "hello"
        assert talking.send("you") == "you"
        assert talking.throw(KeyError()) == "caught"
        with pytest.raises(StopIteration) as end:
            next(talking)
    assert end.value.value == "bye"
    assert told(seen) == ("b", "success")


def test_what_was_never_begun_is_not_told():
    @breaker()
    async def call():
        pass

    @breaker()
    async def items():
        yield

    @breaker()
    def generator():
        yield

    with pairs() as seen:
        call().close()
        items()
        generator().close()
        gc.collect()
    assert seen == []


@pytest.mark.anyio
async def test_a_coroutine_that_is_closed_halfway_is_ignored():
    class Never:
        def __await__(self):
            yield

    @breaker(name="b")
    async def call():
        await Never()

    with pairs() as seen:
        coroutine = call()
        coroutine.send(None)
        coroutine.close()
    assert told(seen) == ("b", "ignored")


# Strategies: one pair, whatever they do


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("strategy", "outcome"),
    [
        (lambda: retry(attempts=3, wait=0), "failure"),
        (lambda: fallback("answer"), "success"),
        (lambda: hedge(delay=5), "failure"),
        (lambda: cache(ttl=5), "failure"),
        (lambda: inject(error=OSError, rate=1), "failure"),
        (lambda: guard(fallback("answer"), retry(attempts=2, wait=0)), "success"),
        (lambda: guard(cache(ttl=5), retry(attempts=2, wait=0), hedge(delay=5)), "failure"),
    ],
    ids=["retry", "fallback", "hedge", "cache", "inject", "fallback-retry", "cache-retry-hedge"],
)
@pytest.mark.parametrize("gates", [0, 1])
async def test_a_strategy_tells_of_one_call(strategy, outcome, gates):
    pipeline = guard(strategy(), *[Open("inner")] * gates, name="calls", check_order=False)

    @pipeline
    async def call():
        raise ConnectionError

    with pairs() as seen, contextlib.suppress(ConnectionError, OSError):
        assert await call() == "answer"
    assert told(seen) == ("calls", outcome)


@pytest.mark.parametrize("strategy", [lambda: retry(attempts=2, wait=0), lambda: cache(ttl=5)], ids=["retry", "cache"])
def test_a_strategy_tells_of_one_sync_call(strategy):
    calls = []

    @guard(strategy(), name="calls")
    def call():
        calls.append(1)
        return 7

    with pairs() as seen:
        assert call() == 7
    assert told(seen) == ("calls", "success")
    assert call() == 7


@pytest.mark.anyio
@pytest.mark.parametrize("gates", [0, 1])
async def test_a_strategy_tells_of_one_stream(gates):
    attempts = []

    @guard(retry(attempts=3, wait=0), *[Open("inner")] * gates, name="streams")
    async def items():
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError
        yield 1
        yield 2

    with pairs() as seen:
        assert [item async for item in items()] == [1, 2]
    assert told(seen) == ("streams", "success")
    assert seen[0].stream
    assert seen[1].first is not None
    assert [item async for item in items()] == [1, 2]


@pytest.mark.anyio
async def test_a_result_that_is_a_failure_is_told_as_one():
    class Response:
        status_code = 503

    @breaker()
    async def call():
        return Response()

    @guard(breaker(), classify_result=lambda result: 1 / 0)  # judged as what it was: it returned
    def broken():
        return Response()

    with pairs() as seen:
        await call()
    assert seen[1].outcome == "failure"
    with pairs() as seen:
        broken()
    assert seen[1].outcome == "success"


# Whose they are


def test_the_source_is_the_name_that_somebody_gave():
    def work():
        pass

    names = []
    for pipeline in (
        guard(breaker(name="openai"), name="chat"),
        breaker(name="openai"),
        retry(),
        guard(retry(), breaker(name="openai"), limiter(requests=5, per=1)),
        guard(guard(retry(), name="inner"), breaker()),
        guard(guard(retry(), name="inner"), name="outer"),
        guard(retry(), limiter(requests=5, per=1)),
    ):
        with pairs() as seen:
            pipeline(work)()
        names.append(told(seen)[0])
    assert names[:6] == ["chat", "openai", "retry", "openai", "inner", "outer"]
    assert names[6] == work.__qualname__  # nobody gave a name: the function's


@pytest.mark.anyio
async def test_a_block_of_unnamed_guards_has_all_their_names():
    with pairs() as seen:
        async with guard(breaker(), bulkhead(5), timeout(3)):
            pass
        async with guard(breaker(name="db"), timeout(3)):
            pass
    assert [event.source for event in seen] == ["breaker+bulkhead+timeout"] * 2 + ["db"] * 2
    assert guard().name == "guard"


def test_every_guard_is_unnamed_until_it_is_named():
    guards = [
        admit(concurrency=1, sampler=FakeMemory()),
        breaker(),
        bulkhead(1),
        cache(ttl=1),
        fallback(1),
        hedge(delay=1),
        inject(error=OSError),
        limiter(requests=1, per=1),
        retry(),
        timeout(1),
    ]
    for each in guards:
        assert guard(each, Open("named"), check_order=False).name == "named", each


@pytest.mark.parametrize("name", ["", 5])
def test_a_name_must_be_a_text(name):
    with pytest.raises(TypeError, match="name takes a text, not"):
        guard(breaker(), name=name)


def test_stacked_decorators_are_one_call_and_nested_functions_each_their_own():
    @breaker(name="inner")
    @limiter(requests=9, per=1)
    def inner():
        return 7

    @guard(retry(), name="outer")
    def outer():
        return inner()

    with pairs() as seen:
        assert outer() == 7
    first, second, third, last = seen
    assert (first.source, second.source) == ("outer", "inner")
    assert (first.call, second.call) == (last.call, third.call)
    assert second.call > first.call


# When they come


@pytest.mark.anyio
@pytest.mark.parametrize("shape", ["call", "block"])
async def test_they_come_in_the_context_of_the_caller(shape):
    current = contextvars.ContextVar("current", default=0)
    tokens = {}
    inside = []

    def sink(event):
        if isinstance(event, CallStarted):
            tokens[event.call] = current.set(event.call)
        elif isinstance(event, CallFinished):
            current.reset(tokens.pop(event.call))

    @breaker()
    async def call():
        await anyio.sleep(0)
        inside.append(current.get())

    end = subscribe(sink)
    try:
        if shape == "call":
            await call()
        else:
            async with breaker():
                inside.append(current.get())
    finally:
        end()
    assert inside[0] > 0
    assert current.get() == 0
    assert tokens == {}


@pytest.mark.anyio
@pytest.mark.parametrize("shape", SHAPES)
async def test_nothing_is_made_while_nobody_listens(shape, monkeypatch):
    monkeypatch.setattr(observed.ObservedCall, "__init__", None)
    await shape(guard(Open("a"), Open("b")), None)()
    with pytest.raises(ValueError):
        await shape(guard(Open("a"), Open("b")), ValueError())()
    with pytest.raises(TypeError), capture_events():
        await shape(Open("a"), None)()


def test_who_comes_late_hears_no_end_without_a_beginning():
    seen = []

    @breaker()
    def call():
        ends.append(subscribe(seen.append))

    ends = []
    call()
    ends[0]()
    assert [event for event in seen if isinstance(event, CallStarted | CallFinished)] == []


def test_who_leaves_early_changes_nothing():
    seen = []

    def sink(event):
        seen.append(event)
        if isinstance(event, CallStarted):
            end()

    @breaker()
    def call():
        return 7

    end = subscribe(sink)
    assert call() == 7
    assert [type(event) for event in seen] == [CallStarted]


# Under every order of events that a seed can think of, and a cancellation at every await point


def calls_of_all_shapes(world):
    clock, rng = world.clock, world.rng
    circuit = breaker(fail_max=3, open_for=2, clock=clock)
    room = bulkhead(2, queue=2, max_wait=2, clock=clock)
    cut = timeout(3, first=2, idle=2, clock=clock)
    again = retry(attempts=2, wait=1, budget=None, clock=clock)

    async def work(hold):
        await clock.sleep(hold)
        if hold == 1:
            raise ConnectionError

    call = guard(again, circuit, room, cut)(work)
    hedged = guard(hedge(delay=1, attempts=2, budget=None, clock=clock), room, check_order=False)(work)

    @guard(again, circuit, room, cut)
    async def items(hold):
        yield hold
        await work(hold)
        yield hold

    async def read(hold):
        stream = items(hold)
        await anext(stream)
        if hold != 2:
            await anext(stream)
        if hold == 3:
            await stream.aclose()
        del stream  # or it is dropped, and the loop closes it

    async def block(hold):
        async with guard(room, cut):
            await work(hold)

    async def caller(shape, hold):
        with contextlib.suppress(ConnectionError, TimedOut, Rejected, StopAsyncIteration):
            await shape(hold)

    async def scenario(world):
        with pairs() as seen:
            for _ in range(4):
                world.spawn(caller(rng.choice((call, hedged, read, block)), rng.choice((0, 1, 2, 3, 5))))
            await world.join()
            while len(asyncio.all_tasks()) > 1:  # the loop closes what was dropped
                await asyncio.sleep(0)
        started = [event.call for event in seen if isinstance(event, CallStarted)]
        finished = [event.call for event in seen if isinstance(event, CallFinished)]
        assert sorted(started) == sorted(finished)
        assert len(set(started)) == len(started)
        assert {event.outcome for event in seen if isinstance(event, CallFinished)} <= OUTCOMES

    return scenario(world)


@pytest.mark.parametrize("how", WAYS)
def test_each_call_is_told_once_in_every_order(how):
    explore(calls_of_all_shapes, **how)


def test_each_call_is_told_once_when_it_is_cancelled_at_any_await_point():
    for seed in range(8):
        sweep(calls_of_all_shapes, seed)
