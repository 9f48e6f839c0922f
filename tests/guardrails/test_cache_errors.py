"""Errors that are remembered: which, for how long, and what is kept of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import weakref

import anyio
import pytest

from guardrails import breaker, fallback, guard
from guardrails.errors import CircuitOpen, QueueFull, Rejected, TimedOut
from guardrails.strategies.cache import cache
from guardrails.strategies.cache.remembered import bare_copy
from guardrails.strategies.cache.signals import CacheMiss, CacheServedError, CacheServedStale
from tests.guardrails.cached_calls import Backend
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio


class NotFound(Exception):
    status_code = 404


class Own(Exception):
    """Builds its message itself, as many do: `Own("x")` made from `args` would have it twice."""

    def __init__(self, user, *, code=0):
        super().__init__(f"user {user}")
        self.user = user
        self.code = code


class Stubborn(Exception):
    def __reduce__(self):
        raise RuntimeError("not to be copied")


@pytest.fixture
def backend():
    return Backend()


@pytest.fixture(params=["async", "sync"])
def kind(request):
    return request.param


async def raised(work, *args):
    try:
        await work(*args)
    except Exception as error:
        return error.with_traceback(None)
    return None


async def test_an_error_is_remembered_for_its_own_time(clock, backend, kind):
    layer = cache(ttl=100, errors=NotFound, error_ttl=5, name="answers", clock=clock)
    work = backend.of(layer, kind)
    backend.answers = [NotFound("a"), NotFound("b"), "well"]
    with decisions() as seen:
        first = await raised(work, "x")
        clock.advance(4.99)
        second = await raised(work, "x")
    assert len(backend.calls) == 1
    assert (type(second), second.args) == (NotFound, ("a",))
    assert second is not first
    assert seen == [CacheMiss("answers"), CacheServedError("answers", "NotFound")]
    clock.advance(0.01)
    assert (await raised(work, "x")).args == ("b",)
    clock.advance(5)
    assert await work("x") == "well"
    assert await work("x") == "well"
    snapshot = layer.snapshot()
    assert (snapshot.errors, snapshot.misses, snapshot.hits) == (1, 3, 1)


async def test_only_what_is_asked_for_and_per_call(clock, backend, kind):
    work = backend.of(cache(ttl=100, errors=(NotFound, KeyError), error_ttl=5, clock=clock), kind)
    backend.answers = [NotFound(), ValueError(), KeyError(), ValueError()]
    for argument in ("a", "b", "c", "b", "a", "c"):
        assert await raised(work, argument) is not None
    assert [args for args, _ in backend.calls] == [("a",), ("b",), ("c",), ("b",)]


async def test_a_function_may_choose_and_one_that_fails_chooses_nothing(clock, backend, kind, caplog):
    work = backend.of(cache(ttl=100, errors=lambda error: error.code == 1, error_ttl=5, clock=clock), kind)
    backend.answers = [Own("ana", code=1), Own("bob", code=2), ValueError("secret"), "b", "c"]
    assert [(await raised(work, "a")).user for _ in range(2)] == ["ana", "ana"]
    assert (await raised(work, "b")).user == "bob"
    assert isinstance(await raised(work, "c"), ValueError)
    assert [await work("b"), await work("c")] == ["b", "c"]
    assert "errors failed on a ValueError (AttributeError)" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        QueueFull("b"),
        CircuitOpen("b"),
        concurrent.futures.CancelledError(),
        ExceptionGroup("several", [ValueError(), ExceptionGroup("more", [QueueFull("b")])]),
    ],
    ids=["queue", "breaker", "future", "group"],
)
async def test_refusals_and_cancellations_are_never_remembered(clock, backend, kind, error):
    work = backend.of(cache(ttl=100, errors=lambda _: True, error_ttl=5, clock=clock), kind)
    backend.answers = [error, "well"]
    assert isinstance(await raised(work), type(error))
    assert await work() == "well"


async def test_a_cancelled_call_is_not_remembered(clock, idle):
    calls = []

    @cache(ttl=100, errors=Exception, error_ttl=5, clock=clock)
    async def work():
        calls.append(1)
        if len(calls) == 1:
            await anyio.sleep_forever()
        return "well"

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        await idle()
        group.cancel_scope.cancel()
    assert await work() == "well"


async def test_nothing_of_the_call_is_held(clock, kind, backend):
    class Large:
        pass

    large = Large()
    held = weakref.ref(large)

    def answer(args):
        local = args[0][0]
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise NotFound(str(type(local))) from inner

    backend.answer = answer
    layer = cache(ttl=100, key=lambda _: "k", errors=NotFound, error_ttl=5, clock=clock)
    work = backend.of(layer, kind)
    assert await raised(work, large) is not None
    again = await raised(work, None)
    assert (again.__cause__, again.__context__) == (None, None)
    del large, again
    gc.collect()
    assert held() is None
    assert layer.snapshot().entries == 1


async def test_raised_again_it_does_not_grow(clock, kind, backend):
    work = backend.of(cache(ttl=100, errors=NotFound, error_ttl=5, clock=clock), kind)
    backend.answers = [NotFound()]
    lengths, notes = set(), set()
    await raised(work)
    for _ in range(3):
        with pytest.raises(NotFound) as caught:
            await work()
        lengths.add(len(caught.traceback))
        caught.value.add_note("of one caller")
        notes.add(len(caught.value.__notes__))
    assert len(lengths) == 1
    assert notes == {1}


async def test_an_answer_takes_the_place_of_the_error_and_forgetting_drops_it(clock, backend, kind):
    layer = cache(ttl=1, errors=NotFound, error_ttl=50, clock=clock)
    work = backend.of(layer, kind)
    backend.answers = [NotFound(), NotFound(), "well", NotFound()]
    await raised(work)
    layer.invalidate(work)
    assert layer.snapshot().entries == 0
    await raised(work)
    layer.clear()
    assert await work() == "well"
    clock.advance(1)
    await raised(work)
    await raised(work)
    assert len(backend.calls) == 4


async def test_what_is_forgotten_in_flight_is_not_remembered(clock, idle):
    go = anyio.Event()
    layer = cache(ttl=10, errors=NotFound, error_ttl=50, clock=clock)

    @layer
    async def work():
        await go.wait()
        raise NotFound

    async with anyio.create_task_group() as group:
        group.start_soon(raised, work)
        await idle()
        layer.invalidate(work)
        go.set()
    assert layer.snapshot().entries == 0


async def test_a_stale_answer_is_better_than_a_remembered_error(clock, backend, kind):
    layer = cache(ttl=10, stale_if_error=100, errors=(ValueError, NotFound), error_ttl=50, name="answers", clock=clock)
    work = backend.of(layer, kind)
    await work()
    clock.advance(11)
    backend.answers = [ValueError()]
    with decisions() as seen:
        assert [await work(), await work()] == [[1], [1]]
    assert len(backend.calls) == 2
    assert seen[1:] == [CacheServedStale("answers", 11, "error")] * 2
    clock.advance(50)
    backend.answers = [NotFound()]  # the caller's own mistake: nothing stands in for it
    assert isinstance(await raised(work), NotFound)
    assert isinstance(await raised(work), NotFound)
    assert len(backend.calls) == 3


async def test_outer_guards_see_it_like_the_first_one(clock, backend):
    layer = guard(
        fallback("instead", on=NotFound), cache(ttl=10, errors=NotFound, error_ttl=5, clock=clock), breaker(fail_max=9)
    )
    work = backend.of(layer, "async")
    backend.answers = [NotFound()]
    assert [await work(), await work()] == ["instead"] * 2
    assert len(backend.calls) == 1


async def test_they_count_and_are_bounded_like_all_entries(clock, backend, kind):
    layer = cache(ttl=10, max_bytes=10_000, errors=NotFound, error_ttl=5, clock=clock)
    work = backend.of(layer, kind)
    for number in range(50):
        backend.answers = [NotFound("x" * 500)]
        await raised(work, number)
    snapshot = layer.snapshot()
    assert snapshot.bytes <= 10_000
    assert 0 < snapshot.entries < 20


async def test_what_cannot_be_copied_is_raised_and_not_remembered(clock, backend, kind, caplog):
    caplog.set_level(logging.WARNING)
    work = backend.of(cache(ttl=10, errors=Exception, error_ttl=5, name="answers", clock=clock), kind)
    backend.answers = [Stubborn(), "well"]
    assert isinstance(await raised(work), Stubborn)
    assert await work() == "well"
    assert "answers: a Stubborn cannot be copied and is not remembered" in caplog.text


def unicode_error():
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    return caught.value


def noted():
    error = Own("ana", code=7)
    error.add_note("a note")
    return error


@pytest.mark.parametrize(
    "error",
    [
        NotFound("a", 1),
        noted(),
        FileNotFoundError(2, "no such file", "/a/file"),
        OSError("plain"),
        unicode_error(),
        ImportError("no", name="m", path="/p"),
        KeyError("k"),
        StopAsyncIteration(3),
        TimedOut("t", limit="total", seconds=3),
        ExceptionGroup("several", [Own("ana", code=7), KeyError("k")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_bare_copy_says_the_same(error):
    try:
        raise error from RuntimeError()
    except Exception as caught:
        found = bare_copy(caught)
    assert type(found) is type(error)
    assert found is not error
    assert (str(found), repr(found), found.args if not isinstance(error, ExceptionGroup) else ()) == (
        str(error),
        repr(error),
        error.args if not isinstance(error, ExceptionGroup) else (),
    )
    assert {**vars(found)} == {**vars(error)}
    assert (found.__traceback__, found.__cause__, found.__context__) == (None, None, None)
    for name in ("filename", "errno", "name", "path", "reason", "value"):
        assert getattr(found, name, None) == getattr(error, name, None)
    if isinstance(error, ExceptionGroup):
        assert [each.__traceback__ for each in found.exceptions] == [None, None]


async def predicate(error):
    return True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"errors": NotFound}, "errors and error_ttl go together"),
        ({"error_ttl": 1}, "errors and error_ttl go together"),
        ({"errors": KeyboardInterrupt, "error_ttl": 1}, "not KeyboardInterrupt"),
        ({"errors": asyncio.CancelledError, "error_ttl": 1}, "not CancelledError"),
        ({"errors": (NotFound, Rejected), "error_ttl": 1}, "not Rejected"),
        ({"errors": CircuitOpen, "error_ttl": 1}, "not CircuitOpen"),
        ({"errors": "NotFound", "error_ttl": 1}, "errors takes an exception class.*not str"),
        ({"errors": predicate, "error_ttl": 1}, "not an async function"),
        ({"errors": NotFound, "error_ttl": "1"}, "error_ttl"),
    ],
)
def test_misuse_is_refused_when_it_is_built(arguments, said):
    with pytest.raises(TypeError, match=said):
        cache(ttl=1, **arguments)


def test_it_describes_itself():
    assert "some errors for 5 s" in cache(ttl=1, errors=NotFound, error_ttl=5).describe()
