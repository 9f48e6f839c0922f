from __future__ import annotations

import copy
import functools
import gc
import io
import logging
import weakref
from dataclasses import dataclass
from types import SimpleNamespace

import anyio
import pytest

from guardrails import breaker, fallback, guard, retry, timeout
from guardrails.core.outcome import Outcome
from guardrails.errors import CircuitOpen, Rejected
from guardrails.strategies.cache import Cache, CacheSnapshot, cache
from guardrails.strategies.cache.lru import ENTRY_OVERHEAD
from guardrails.strategies.cache.signals import (
    CacheEvicted,
    CacheHit,
    CacheMiss,
    CacheServedStale,
    CacheTooLarge,
)
from tests.guardrails.cached_calls import Backend
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio

SECRET = "the prompt that nobody may read"


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture(params=["async", "sync"])
def kind(request):
    return request.param


def counts(layer):
    snapshot = layer.snapshot()
    return snapshot.hits, snapshot.misses, snapshot.stale


# What is kept, and for how long


async def test_the_same_call_is_made_once_while_it_is_fresh(clock, backend, kind):
    layer = cache(ttl=10, clock=clock)
    work = backend.of(layer, kind)
    first = await work("a")
    clock.advance(9.99)
    assert await work("a") is first
    clock.advance(0.01)
    second = await work("a")
    assert second is not first
    clock.advance(9.99)
    assert await work("a") is second  # fresh from the second call on
    assert counts(layer) == (2, 2, 0)


async def test_it_is_fresh_until_exactly_its_time(clock, backend, kind):
    work = backend.of(cache(ttl=10, clock=clock), kind)
    await work()
    clock.advance(10)
    assert await work() == [2]


async def test_other_arguments_and_other_functions_are_other_calls(clock, backend, kind):
    layer = cache(ttl=10, clock=clock)
    work, other = backend.of(layer, kind), backend.of(layer, kind)
    answers = [
        await work("a"),
        await work("b"),
        await work(1),
        await work(True),
        await work(1.0),
        await work(x=1),
        await work(["a"]),
        await work("a" * 5000),
        await other("a"),
    ]
    assert answers == [[number] for number in range(1, 10)]
    assert await work("a" * 5000) == [8]
    assert await work(["a"]) == [7]
    assert await work(x=1) == [6]
    assert await other("a") == [9]
    assert len(backend.calls) == 9
    assert backend.calls[5] == ((), {"x": 1})


async def test_none_and_other_false_results_are_kept(clock, backend, kind):
    work = backend.of(cache(ttl=10, clock=clock), kind)
    backend.answers = [None, 0]
    assert [await work("a"), await work("a"), await work("b"), await work("b")] == [None, None, 0, 0]
    assert len(backend.calls) == 2


async def test_errors_and_returned_failures_are_not_kept(clock, backend, kind):
    layer = cache(ttl=10, clock=clock)
    work = backend.of(layer, kind)
    bad, limited, gone = (SimpleNamespace(status_code=status, headers={}) for status in (500, 429, 404))
    error = ValueError()
    backend.answers = [error, bad, limited, gone, "well"]
    with pytest.raises(ValueError) as caught:
        await work("a")
    assert caught.value is error
    assert await work("a") is bad
    assert await work("a") is limited
    assert await work("a") is gone
    assert await work("a") == await work("a") == "well"
    assert len(backend.calls) == 5
    assert counts(layer) == (1, 5, 0)


async def test_the_pipeline_judges_what_a_failure_is(clock, backend, kind):
    def verdict(result):
        return Outcome("failure" if result == "bad" else "success")

    work = backend.of(guard(cache(ttl=10, clock=clock), classify_result=verdict), kind)
    backend.answers = ["bad", "good"]
    assert [await work(), await work(), await work()] == ["bad", "good", "good"]


async def test_ttl_may_be_a_function_of_the_result(clock, backend, kind):
    work = backend.of(cache(ttl=lambda result: result, clock=clock), kind)
    backend.answers = [5, None, 0, 1.5]
    assert await work("a") == 5
    clock.advance(4.9)
    assert await work("a") == 5
    clock.advance(0.1)
    assert [await work("a") for _ in range(4)] == [None, 0, 1.5, 1.5]
    clock.advance(1.5)
    assert await work("a") == [5]


@pytest.mark.parametrize("ttl", [-1, float("nan"), float("inf"), "10", True])
async def test_a_ttl_function_that_fails_costs_the_entry_and_not_the_call(clock, backend, kind, caplog, ttl):
    def broken(result):
        if ttl == "10":
            raise ValueError(result)
        return ttl

    work = backend.of(cache(ttl=broken, name="answers", clock=clock), kind)
    backend.answers = [SECRET, "b"]
    assert [await work("a"), await work("a")] == [SECRET, "b"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert caplog.text.count("answers: ttl failed on a str") == 2
    assert SECRET not in caplog.text


async def test_every_caller_gets_the_same_object_or_a_copy_of_his_own(clock, backend, kind):
    work = backend.of(cache(ttl=10, copy=copy.deepcopy, clock=clock), kind)
    kept = [1, [2]]
    backend.answers = [kept]
    first, second = await work(), await work()
    assert first == second == kept
    assert first is not second
    assert kept is not first
    first[1].append(3)
    assert await work() == [1, [2]]


@pytest.mark.parametrize("lazy", [iter([1]), (n for n in [1]), map(str, [1]), anyio.sleep(0), io.StringIO("a")])
async def test_results_that_can_be_used_once_are_refused(clock, backend, kind, lazy):
    work = backend.of(cache(ttl=10, name="answers", clock=clock), kind)
    backend.answers = [lazy]
    with pytest.raises(TypeError, match=r"answers cannot keep what Backend.of.<locals>.*: it can be used only once"):
        await work()
    getattr(lazy, "close", lambda: None)()
    assert await work() == [2]


async def test_an_async_iterator_is_refused(clock):
    async def items():
        yield 1

    @cache(ttl=1, clock=clock)
    async def work():
        return items()

    with pytest.raises(TypeError, match=r"a?sync_generator: it can be used only once"):
        await work()


async def test_what_it_cannot_drive_is_refused_when_it_is_decorated():
    async def stream():
        yield 1

    def items():
        yield 1

    for function in (stream, items):
        with pytest.raises(TypeError, match="cache cannot drive"):
            cache(ttl=1)(function)
    with pytest.raises(TypeError, match="block"):
        async with cache(ttl=1):
            pass


# Keys


async def test_a_key_function_decides(clock, backend, kind):
    layer = cache(ttl=10, key=lambda text, user=None: None if text == "private" else text.lower(), clock=clock)
    work = backend.of(layer, kind)
    assert await work("A", user=object()) == await work("a") == [1]
    assert await work("private") == [2]
    assert await work("private") == [3]
    assert counts(layer) == (1, 1, 0)  # a call that is not to be cached is neither


async def test_a_key_function_that_raises_is_the_callers_to_see(clock, backend, kind):
    error = TypeError("mine")

    def broken(*args):
        raise error

    work = backend.of(cache(ttl=10, key=broken, clock=clock), kind)
    with pytest.raises(TypeError) as caught:
        await work("a")
    assert caught.value is error
    assert backend.calls == []


async def test_arguments_without_a_key_are_refused_without_being_shown(clock, backend, kind):
    layer = cache(ttl=10, name="answers", clock=clock)
    work = backend.of(layer, kind)
    with pytest.raises(
        TypeError, match=r"answers cannot make a key .* a SimpleNamespace among them: pass key="
    ) as caught:
        await work(SECRET, SimpleNamespace(text=SECRET))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert backend.calls == []
    with pytest.raises(TypeError, match="key="):
        layer.invalidate(work, object())

    chosen = backend.of(cache(ttl=10, name="answers", key=lambda text: SimpleNamespace(text=text), clock=clock), kind)
    with pytest.raises(TypeError, match=r"answers: key= must return text, .*, not a SimpleNamespace") as caught:
        await chosen(SECRET)
    assert SECRET not in str(caught.value)


@dataclass
class Unhashable:
    model: str

    async def __call__(self, text):
        return text


async def test_an_object_that_cannot_be_told_apart_is_refused(clock):
    layer = cache(ttl=10, clock=clock)
    with pytest.raises(TypeError, match="a Unhashable from others, since it cannot be hashed"):
        await layer(Unhashable("m"))("a")
    with pytest.raises(TypeError, match="hashed"):
        layer.invalidate(Unhashable("m"), "a")


async def test_bound_methods_are_told_apart_by_their_object(clock):
    class Model:
        def __init__(self, name):
            self.name = name

        async def ask(self, text):
            return f"{self.name}: {text}"

    layer = cache(ttl=10, clock=clock)
    a, b = layer(Model("a").ask), layer(Model("b").ask)
    assert [await a("x"), await b("x"), await a("x")] == ["a: x", "b: x", "a: x"]


# Room


async def test_it_holds_no_more_than_max_bytes(clock, backend, kind):
    room = 3 * (ENTRY_OVERHEAD + 1500)
    layer = cache(ttl=10, max_bytes=room, name="answers", clock=clock)
    work = backend.of(layer, kind)
    backend.answers = ["x" * 1000, "y" * 1000, "z" * 1000]
    for name in "abc":
        await work(name)
    assert layer.snapshot().entries == 3
    await work("a")  # used last
    backend.answers = ["x" * 1000, SECRET * 1000, "x" * 2000]
    with decisions() as seen:
        await work("d")
        assert seen == [CacheMiss("answers"), CacheEvicted("answers", 1)]
        assert await work("a") == "x" * 1000
        del seen[:]
        await work("e")
        assert seen[0] == CacheMiss("answers")
        assert isinstance(seen[1], CacheTooLarge)
        assert seen[1].size > 30_000
        del seen[:]
        await work("f")
        assert seen == [CacheMiss("answers"), CacheEvicted("answers", 2)]
    snapshot = layer.snapshot()
    assert (snapshot.entries, snapshot.evicted) == (2, 3)
    assert 3000 < snapshot.bytes <= room
    assert await work("b") == [7]


async def test_long_arguments_cost_no_more_than_their_digest(clock, backend, kind):
    layer = cache(ttl=10, clock=clock)
    work = backend.of(layer, kind)
    await work(SECRET * 10_000)
    assert layer.snapshot().bytes < 2000
    await work(SECRET * 30)
    assert 1500 < layer.snapshot().bytes < 4000  # short ones are kept, and counted


async def test_values_that_went_are_let_go(clock, kind):
    class Value:
        pass

    layer = cache(ttl=10, max_bytes=2 * ENTRY_OVERHEAD + 1000, clock=clock)
    backend = Backend()
    work = backend.of(layer, kind)
    held = []
    for name in "abcde":
        backend.answers = [Value()]
        held.append(weakref.ref(await work(name)))
    gc.collect()
    assert held[0]() is None
    assert held[-1]() is not None
    layer.clear()
    gc.collect()
    assert held[-1]() is None


# Forgetting


async def test_invalidate_forgets_one_call(clock, backend, kind):
    layer = cache(ttl=10, clock=clock)
    work = backend.of(layer, kind)
    await work("a", x=1)
    await work("b")
    layer.invalidate(work, "a", x=1)
    layer.invalidate(work, "never called")
    assert await work("b") == [2]
    assert await work("a", x=1) == [3]
    await layer.invalidate_async(work, "b")
    assert await work("b") == [4]
    layer.invalidate(work.__guarded__.fn, "b")  # the bare function will do
    assert await work("b") == [5]


async def test_invalidate_asks_the_key_function(clock, backend, kind):
    layer = cache(ttl=10, key=lambda text, *, user=None: text or None, clock=clock)
    work = backend.of(layer, kind)
    await work("a", user=1)
    layer.invalidate(work, "a", user=2)
    layer.invalidate(work, "")
    assert await work("a", user=1) == [2]


async def test_invalidate_finds_the_function_behind_a_method_and_behind_decorators(clock):
    layer = cache(ttl=10, key=lambda self, text: (self.name, text), clock=clock)
    made = []

    def decorator(function):
        @functools.wraps(function)
        async def wrapper(*args):
            return await function(*args)

        return wrapper

    class Model:
        def __init__(self, name):
            self.name = name

        @decorator
        @layer
        async def ask(self, text):
            made.append((self.name, text))
            return text

        @layer
        async def tell(self, text):
            made.append((self.name, text))
            return text

    a, b = Model("a"), Model("b")
    for model in (a, b):
        await model.tell("x")
        await model.ask("x")
    assert len(made) == 4
    layer.invalidate(a.tell, "x")
    await b.tell("x")
    assert len(made) == 4
    await a.tell("x")
    assert len(made) == 5
    layer.invalidate(a.ask, "x")
    layer.invalidate(Model.ask, b, "x")
    await a.ask("x")
    await b.ask("x")
    assert len(made) == 7


async def test_clear_forgets_everything(clock, backend, kind):
    layer = cache(ttl=10, clock=clock)
    work = backend.of(layer, kind)
    await work("a")
    await work("b")
    layer.clear()
    assert layer.snapshot() == CacheSnapshot(0, 0, 2, 0, 0, 0, 0, 0, 0)
    assert [await work("a"), await work("b")] == [[3], [4]]


# Stale answers


def errors():
    return [
        ValueError(),
        SimpleNamespace(status_code=503, headers={}),
        SimpleNamespace(status_code=429, headers={}),
        Rejected("inner", reason="queue_full"),
    ]


@pytest.mark.parametrize("number", range(4))
async def test_a_stale_answer_is_better_than_a_failure(clock, backend, kind, number):
    layer = cache(ttl=10, stale_if_error=60, name="answers", clock=clock)
    work = backend.of(layer, kind)
    error = errors()[number]
    first = await work("a")
    clock.advance(69.9)
    backend.answers = [error]
    with decisions() as seen:
        assert await work("a") is first
    assert seen == [CacheMiss("answers"), CacheServedStale("answers", pytest.approx(69.9), "error")]
    assert counts(layer) == (0, 2, 1)
    clock.advance(0.1)
    backend.answers = [error]
    if isinstance(error, BaseException):
        with pytest.raises(type(error)) as caught:
            await work("a")
        assert caught.value is error
    else:
        assert await work("a") is error
    assert await work("a") == [4]  # the failures were not kept


async def test_the_callers_own_mistake_is_not_hidden_by_a_stale_answer(clock, backend, kind):
    class NotFound(Exception):
        status_code = 404

    gone = SimpleNamespace(status_code=404, headers={})
    work = backend.of(cache(ttl=10, stale_if_error=60, clock=clock), kind)
    await work("a")
    clock.advance(20)
    backend.answers = [NotFound(), gone]
    with pytest.raises(NotFound):
        await work("a")
    assert await work("a") is gone


async def test_without_stale_if_error_a_failure_is_one(clock, backend, kind):
    work = backend.of(cache(ttl=10, stale_while_revalidate=5, clock=clock), kind)
    await work("a")
    clock.advance(15)
    backend.answers = [ValueError()]
    with pytest.raises(ValueError):
        await work("a")


async def test_the_two_windows_are_two(clock, backend, kind):
    work = backend.of(cache(ttl=10, stale_if_error=60, stale_while_revalidate=5, clock=clock), kind)
    await work("a")
    clock.advance(15)
    backend.answers = [ValueError()]
    assert await work("a") == [1]  # made, and it failed: not given while it is made
    assert len(backend.calls) == 2


async def test_a_failure_of_a_call_never_made_before_is_one(clock, backend, kind):
    work = backend.of(cache(ttl=10, stale_if_error=60, clock=clock), kind)
    backend.answers = [ValueError()]
    with pytest.raises(ValueError):
        await work("a")


async def test_an_open_breaker_is_bridged(clock, backend, kind):
    layers = guard(cache(ttl=10, stale_if_error=60, clock=clock), breaker(fail_max=1, open_for=100, clock=clock))
    work = backend.of(layers, kind)
    first = await work("a")
    clock.advance(11)
    backend.answers = [ValueError()]
    assert await work("a") is first
    assert await work("a") is first
    assert len(backend.calls) == 2
    with pytest.raises(CircuitOpen):
        await work("b")


async def test_a_stale_answer_is_copied_too(clock, backend, kind):
    work = backend.of(cache(ttl=10, stale_if_error=60, copy=copy.copy, clock=clock), kind)
    (await work("a")).append("mine")
    clock.advance(11)
    backend.answers = [ValueError()]
    assert await work("a") == [1]


# In a pipeline


async def test_it_stands_between_fallback_and_retry(clock, backend):
    layers = guard(fallback("sorry"), cache(ttl=10, clock=clock), retry(attempts=2, wait=0, clock=clock))
    work = backend.of(layers, "async")
    backend.answers = [ValueError(), ValueError(), ValueError(), "well"]
    assert [await work(), await work(), await work()] == ["sorry", "well", "well"]
    assert len(backend.calls) == 4
    with pytest.raises(ValueError, match="a hit would pass through the retry machinery for nothing"):
        guard(retry(attempts=2), cache(ttl=1))


async def test_a_deadline_outside_cancels_and_leaves_nothing(clock, idle):
    layer = cache(ttl=10, clock=clock)

    @guard(timeout(1, clock=clock), layer)
    async def work():
        await anyio.sleep_forever()

    async def call():
        with pytest.raises(TimeoutError):
            await work()

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await idle()
        assert layer.snapshot().in_flight == 1
        clock.advance(1)
        await idle()
    assert layer.snapshot().in_flight == 0


async def test_events_are_free_if_nobody_listens_and_say_no_more_than_they_must(clock, backend, kind, caplog):
    caplog.set_level(logging.DEBUG)
    layer = cache(ttl=10, name="answers", clock=clock)
    work = backend.of(layer, kind)
    await work(SECRET)
    with decisions() as seen:
        await work(SECRET)
        await work(SECRET + "!")
    assert seen == [CacheHit("answers"), CacheMiss("answers")]
    assert SECRET not in repr(seen) + caplog.text + repr(layer) + layer.describe()


def test_it_describes_itself():
    assert cache(ttl=60).describe() == "cache 'cache': fresh for 60 s, 64 MiB at most"
    full = cache(
        ttl=lambda result: 1,
        max_bytes="1GiB",
        stale_if_error=3600,
        stale_while_revalidate=30,
        store=SimpleNamespace(get=len, set=len, delete=len),
        name="answers",
    )
    assert full.describe() == (
        "cache 'answers': fresh for as long as a function says, 1 GiB at most, stale for 30 s more while revalidating, "
        "stale for 3600 s more if the call fails, with a store"
    )
    assert repr(full) == f"<{full.describe()}>"
    assert isinstance(full, Cache)


async def coroutine(*args):
    return args


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({}, TypeError, "ttl"),
        ({"ttl": 0}, ValueError, "ttl"),
        ({"ttl": -1}, ValueError, "ttl"),
        ({"ttl": float("inf")}, ValueError, "ttl"),
        ({"ttl": "10"}, TypeError, "ttl"),
        ({"ttl": None}, TypeError, "ttl"),
        ({"ttl": coroutine}, TypeError, "ttl takes seconds or a sync function"),
        ({"ttl": 1, "max_bytes": "many"}, ValueError, "max_bytes"),
        ({"ttl": 1, "max_bytes": 0}, ValueError, "max_bytes"),
        ({"ttl": 1, "key": "text"}, TypeError, "key takes a sync function, not str"),
        ({"ttl": 1, "key": coroutine}, TypeError, "key takes a sync function, not an async"),
        ({"ttl": 1, "copy": 1}, TypeError, "copy"),
        ({"ttl": 1, "copy": coroutine}, TypeError, "copy"),
        ({"ttl": 1, "stale_if_error": 0}, ValueError, "stale_if_error"),
        ({"ttl": 1, "stale_while_revalidate": "1"}, TypeError, "stale_while_revalidate"),
        ({"ttl": 1, "store_timeout": 0}, ValueError, "store_timeout"),
        ({"ttl": 1, "store": {}}, TypeError, "store takes an object with get, set and delete; dict has no set"),
    ],
)
def test_misuse_is_refused_when_it_is_built(arguments, error, said):
    with pytest.raises(error, match=said):
        cache(**arguments)


def test_ttl_is_a_keyword_and_a_bare_decorator_is_told_so():
    with pytest.raises(TypeError, match="'ttl'"):

        @cache
        async def work():
            pass

    with pytest.raises(TypeError, match="ttl is given by its name: cache"):
        cache(60, ttl=60)
