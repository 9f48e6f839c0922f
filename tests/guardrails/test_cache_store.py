from __future__ import annotations

import asyncio
import logging

import anyio
import pytest

from guardrails.errors import Rejected
from guardrails.strategies.cache import cache
from guardrails.strategies.cache.signals import (
    CacheHit,
    CacheMiss,
    CacheServedStale,
    CacheStoreFailed,
    CacheStoreRecovered,
)
from guardrails.strategies.cache.store import PAUSE
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio

SECRET = "the prompt that nobody may read"

calls = []
answers = []


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()
    answers.clear()


def respond(args):
    calls.append(args)
    answer = answers.pop(0) if answers else f"answer {len(calls)}"
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def ask(*args):
    return respond(args)


def ask_blocking(*args):
    return respond(args)


class SyncStore:
    """A dictionary, with the clock of the test."""

    def __init__(self, clock):
        self.clock = clock
        self.kept = {}
        self.log = []
        self.failure = {}

    def get(self, key):
        self.log.append("get")
        if "get" in self.failure:
            raise self.failure["get"]
        value, stored, until = self.kept.get(key, (None, 0.0, 0.0))
        return (value, self.clock.now() - stored) if self.clock.now() < until else None

    def set(self, key, value, keep):
        self.log.append("set")
        if "set" in self.failure:
            raise self.failure["set"]
        self.kept[key] = (value, self.clock.now(), self.clock.now() + keep)

    def delete(self, key):
        self.log.append("delete")
        if "delete" in self.failure:
            raise self.failure["delete"]
        self.kept.pop(key, None)


class AsyncStore(SyncStore):
    """The same, that answers later; or never, while `stuck`."""

    stuck = False

    async def get(self, key):
        await self.pause()
        return super().get(key)

    async def set(self, key, value, keep):
        await self.pause()
        super().set(key, value, keep)

    async def delete(self, key):
        await self.pause()
        super().delete(key)

    async def pause(self):
        await anyio.lowlevel.checkpoint()
        if self.stuck:
            await anyio.sleep_forever()


@pytest.fixture(params=["async function, async store", "async function, sync store", "sync function, sync store"])
def make(request, clock):
    """`make(store, ...)`: a cache with that store, and a function behind it that is called with `await`."""
    function, _, _ = request.param.partition(" ")

    def build(store=None, **options):
        layer = cache(ttl=options.pop("ttl", 10), store=store or build.store, name="answers", clock=clock, **options)
        if function == "async":
            return layer, layer(ask)
        plain = layer(ask_blocking)

        async def call(*args):
            return plain(*args)

        call.bare = ask_blocking
        return layer, call

    build.store = (AsyncStore if "async store" in request.param else SyncStore)(clock)
    return build


async def test_two_processes_share_what_they_know(clock, make):
    layer, work = make()
    other, again = make()
    with decisions() as seen:
        assert await work("a", 1) == "answer 1"
        clock.advance(4)
        assert await again("a", 1) == "answer 1"
    assert seen == [CacheMiss("answers"), CacheHit("answers", shared=True)]
    assert make.store.log == ["get", "set", "get"]
    assert len(calls) == 1
    clock.advance(5.9)
    assert await again("a", 1) == "answer 1"  # fresh for the rest of its time, from memory now
    assert make.store.log == ["get", "set", "get"]
    clock.advance(0.1)
    assert await again("a", 1) == "answer 2"
    snapshot = other.snapshot()
    assert (snapshot.hits, snapshot.shared_hits, snapshot.misses) == (1, 1, 1)
    assert layer.snapshot().in_flight == other.snapshot().in_flight == 0


async def test_keys_tell_nothing_of_the_arguments(make):
    _, work = make()
    await work(SECRET)
    await work("b" * 5000)
    assert {len(key) for key in make.store.kept} == {16}
    assert SECRET not in repr(list(make.store.kept))


async def test_a_store_is_told_how_long_to_keep(clock, make):
    _, work = make(ttl=lambda result: 7, stale_if_error=20, stale_while_revalidate=30)
    await work("a")
    ((_, stored, until),) = make.store.kept.values()
    assert until - stored == 37


async def test_failures_and_what_is_not_to_be_kept_do_not_reach_the_store(make):
    _, work = make(ttl=lambda result: None if result == "never" else 10)
    answers[:] = [ValueError(), "never"]
    with pytest.raises(ValueError):
        await work("a")
    assert await work("a") == "never"
    assert make.store.kept == {}


async def test_a_stale_answer_from_the_store_serves_in_need(clock, make):
    _, work = make(stale_if_error=100)
    await work("a")
    clock.advance(50)
    _, again = make(stale_if_error=100)
    answers[:] = [Rejected("inner")]
    with decisions() as seen:
        assert await again("a") == "answer 1"
    assert seen == [CacheMiss("answers"), CacheServedStale("answers", 50, "error")]


async def test_what_the_store_kept_for_too_long_is_of_no_use(clock, make):
    _, work = make(ttl=60)
    await work("a")
    clock.advance(20)
    _, again = make(ttl=10, stale_if_error=5)
    answers[:] = [Rejected("inner")]
    with pytest.raises(Rejected):
        await again("a")
    _, never = make(ttl=lambda result: 0)
    assert await never("a") == "answer 3"


async def test_invalidate_reaches_the_store(make):
    layer, work = make()
    function = getattr(work, "bare", work)
    await work("a")
    await layer.invalidate_async(function, "a")
    assert make.store.kept == {}
    assert await work("a") == "answer 2"
    if isinstance(make.store, AsyncStore):
        with pytest.raises(TypeError, match="answers has an async store: await invalidate_async"):
            layer.invalidate(function, "a")
    else:
        layer.invalidate(function, "a")
        assert make.store.kept == {}
    make.store.failure["delete"] = OSError("gone")
    with pytest.raises(OSError, match="gone"):  # a caller who wants something forgotten has to know
        await layer.invalidate_async(function, "a")


async def test_what_was_read_from_the_store_while_it_forgets_is_forgotten_too(clock, idle):
    go = anyio.Event()

    class Slow(AsyncStore):
        async def delete(self, key):
            await go.wait()
            await super().delete(key)

    layer = cache(ttl=10, store=Slow(clock), store_timeout=5, clock=clock)
    work = layer(ask)
    await work("a")
    async with anyio.create_task_group() as group:
        group.start_soon(layer.invalidate_async, work, "a")
        await idle()
        assert await work("a") == "answer 1"  # not yet forgotten
        go.set()
    assert await work("a") == "answer 2"


async def test_a_delete_that_hangs_is_a_timeout(clock, idle):
    store = AsyncStore(clock)
    layer = cache(ttl=10, store=store, clock=clock)
    store.stuck = True

    async def forget():
        with pytest.raises(TimeoutError, match=r"did not delete within 0.5 s"):
            await layer.invalidate_async(ask, "a")

    async with anyio.create_task_group() as group:
        group.start_soon(forget)
        await idle()
        clock.advance(0.5)


async def test_a_store_that_fails_is_told_once_and_done_without(clock, make, caplog):
    caplog.set_level(logging.INFO, "guardrails")
    store = make.store
    _, work = make(store_timeout=0.5)
    store.failure = {"get": ConnectionError(SECRET), "set": ConnectionError(SECRET)}
    with decisions() as seen:
        for number in range(5):
            assert await work(number) == f"answer {number + 1}"
        assert await work(0) == "answer 1"  # memory works
        failed = [event for event in seen if isinstance(event, CacheStoreFailed)]
        assert failed == [CacheStoreFailed("answers", operation, "ConnectionError") for operation in ("get", "set")]
        assert store.log == ["get", "set"]  # left alone meanwhile

        clock.advance(PAUSE * 0.5 - 0.1)
        await work("b")
        assert store.log == ["get", "set"]
        clock.advance(0.1)
        await work("c")
        await work("d")
        assert store.log == ["get", "set", "get", "set"]  # tried once, in vain
        assert len([event for event in seen if isinstance(event, CacheStoreFailed)]) == 2

        store.failure = {}
        clock.advance(PAUSE * 0.5)
        await work("e")
        await work("f")
        assert store.log[4:] == ["get", "set", "get", "set"]
    recovered = [event for event in seen if isinstance(event, CacheStoreRecovered)]
    assert recovered == [CacheStoreRecovered("answers", operation) for operation in ("get", "set")]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2 + ["INFO"] * 2
    assert SECRET not in caplog.text + repr(seen)


async def test_outages_are_noted_without_listeners_too(clock, make, caplog):
    caplog.set_level(logging.INFO, "guardrails")
    _, work = make()
    make.store.failure = {"set": TypeError()}
    await work("a")
    make.store.failure = {}
    clock.advance(PAUSE * 0.5)
    await work("b")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize("nonsense", ["text", ("value",), ("value", None), ("value", "old"), 5])
async def test_an_answer_that_makes_no_sense_is_a_failure_of_the_store(make, nonsense):
    store = make.store
    kind = type(store)

    class Odd(kind):
        if kind is AsyncStore:

            async def get(self, key):
                return nonsense
        else:

            def get(self, key):
                return nonsense

    store.__class__ = Odd
    _, work = make()
    with decisions() as seen:
        assert await work("a") == "answer 1"
    assert any(isinstance(event, CacheStoreFailed) and event.operation == "get" for event in seen)


async def test_a_store_that_is_slow_is_done_without(clock, idle):
    store = AsyncStore(clock)
    layer = cache(ttl=10, store=store, store_timeout=2, name="answers", clock=clock)
    work = layer(ask)
    results = []

    async def call(name):
        results.append(await work(name))

    store.stuck = True
    with decisions() as seen:
        async with anyio.create_task_group() as group:
            group.start_soon(call, "a")
            group.start_soon(call, "a")
            await idle()
            assert calls == []
            clock.advance(2)
            await idle()
            assert len(calls) == 1
            assert results == ["answer 1"]  # the follower does not wait for the store to keep it
            clock.advance(2)
            await idle()
            assert results == ["answer 1"] * 2
            await call("b")  # and nobody else waits for it at all
    assert [event for event in seen if isinstance(event, CacheStoreFailed)] == [
        CacheStoreFailed("answers", "get", "TimeoutError"),
        CacheStoreFailed("answers", "set", "TimeoutError"),
    ]
    assert results == ["answer 1", "answer 1", "answer 2"]


async def test_one_call_alone_finds_out_whether_the_store_is_back(clock, idle):
    store = AsyncStore(clock)
    work = cache(ttl=10, store=store, store_timeout=2, clock=clock)(ask)
    done = []

    async def call(name):
        await work(name)
        done.append(name)

    store.failure = {"get": OSError(), "set": OSError()}
    await work("a")
    store.failure = {}
    store.stuck = True
    clock.advance(PAUSE * 2)
    async with anyio.create_task_group() as group:
        group.start_soon(call, "b")
        await idle()
        group.start_soon(call, "c")
        await idle()
        assert len(calls) == 2  # "c" goes on without the store's `get`, and tries its `set`
        group.start_soon(call, "d")
        await idle()
        assert done == ["d"]
        clock.advance(2)
        await idle()
        assert done == ["d", *done[1:]]
        clock.advance(2)
        await idle()
    assert sorted(done) == ["b", "c", "d"]


async def test_a_caller_that_is_cancelled_at_the_store_leaves_nothing(clock, idle):
    store = AsyncStore(clock)
    layer = cache(ttl=10, store=store, clock=clock)
    work = layer(ask)
    results = []

    async def call(scope):
        with scope:
            results.append(await work("a"))

    first, second = anyio.CancelScope(), anyio.CancelScope()
    store.stuck = True
    async with anyio.create_task_group() as group:
        group.start_soon(call, first)
        await idle()
        group.start_soon(call, second)
        await idle()
        first.cancel()  # it waits for `get`
        await idle()
        assert layer.snapshot().in_flight == 1  # the second one now does
        clock.advance(0.5)
        await idle()
        second.cancel()  # it waits for `set`
        await idle()
    assert results == []
    assert layer.snapshot().in_flight == 0
    assert await work("a") == "answer 1"
    assert len(calls) == 1


async def test_forgetting_keeps_a_call_in_flight_out_of_the_store(clock, idle):
    store = SyncStore(clock)
    layer = cache(ttl=10, store=store, clock=clock)
    go = anyio.Event()

    async def waiting():
        await go.wait()
        return "old"

    waiting.__qualname__ = "waiting"
    work = layer(waiting)
    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await idle()
        layer.invalidate(work)
        go.set()
    assert store.kept == {}
    assert layer.snapshot().entries == 0


async def test_forgetting_while_the_store_is_read(clock, idle):
    store = AsyncStore(clock)
    layer = cache(ttl=10, store=store, store_timeout=5, clock=clock)
    work = layer(ask)
    await work("a")
    layer.clear()
    read = anyio.Event()

    async def slow(key):
        await read.wait()
        return "old", 1.0

    store.get = slow
    async with anyio.create_task_group() as group:
        group.start_soon(work, "a")
        await idle()
        layer.clear()
        read.set()
    assert layer.snapshot().entries == 0


def test_a_sync_function_cannot_use_an_async_store(clock):
    layer = cache(ttl=10, store=AsyncStore(clock), name="answers", clock=clock)
    work = layer(ask_blocking)
    with pytest.raises(TypeError, match="answers: an async store cannot serve a sync function"):
        work("a")
    assert calls == []


def test_a_store_that_turns_out_to_be_async_cannot_either(clock):
    inner = AsyncStore(clock)

    class Hidden:
        def get(self, key):
            return inner.get(key)

        def set(self, key, value, keep):
            return inner.set(key, value, keep)

        def delete(self, key):
            return Later()

    class Later:
        def __await__(self):
            yield

    layer = cache(ttl=10, store=Hidden(), name="answers", clock=clock)
    with pytest.raises(TypeError, match="async store cannot serve a sync function"):
        layer(ask_blocking)("a")
    with pytest.raises(TypeError, match="async store cannot serve a sync function"):
        layer.invalidate(ask_blocking, "a")
    assert layer.snapshot().in_flight == 0
    assert calls == []
    assert asyncio.run(layer(ask)("a")) == "answer 1"


async def test_a_function_that_no_name_tells_apart_is_refused(clock):
    layer = cache(ttl=10, store=SyncStore(clock), clock=clock)
    with pytest.raises(TypeError, match="a store needs a function that its module and name tell apart"):
        layer(lambda: 1)()

    @layer
    async def local():
        return 1

    with pytest.raises(TypeError, match=r"local is not one"):
        await local()
    assert layer.snapshot().in_flight == 0
