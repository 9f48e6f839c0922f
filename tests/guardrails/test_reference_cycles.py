"""A failed call leaves no reference cycle: its error, and what the traceback holds, goes when the caller lets go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref

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
from guardrails.errors import TimedOut
from tests.guardrails.conftest import FakeMemory


class Broken(Exception):
    pass


@pytest.fixture
def errors():
    """Weak references to the errors that were made; the collector does not run meanwhile."""
    gc.disable()
    made = []

    def make():
        error = Broken()
        made.append(weakref.ref(error))
        return error

    make.alive = lambda: [reference() for reference in made if reference() is not None]
    make.made = made
    yield make
    gc.enable()
    gc.collect()


@pytest.fixture(autouse=True, params=[False, True], ids=["unheard", "heard"])
def listens(request):
    """Whether somebody listens to events: calls then pass through one function more."""
    end = subscribe(lambda event: None) if request.param else lambda: None
    yield
    end()


PIPELINES = {
    "breaker": breaker,
    "limiter": lambda: limiter(requests=9, per=1),
    "bulkhead": lambda: bulkhead(2),
    "admit": lambda: admit(concurrency=5, sampler=FakeMemory()),
    "timeout": lambda: timeout(5),
    "two timeouts": lambda: guard(timeout(9), breaker(), timeout(5)),
    "no retry": lambda: retry(attempts=1),
    "retry": lambda: retry(attempts=3, wait=0, budget=None),
    "retry of other errors": lambda: retry(on=KeyError),
    "fallback on other errors": lambda: fallback(1, on=KeyError),
    "fallback": lambda: fallback(1),
    "hedge": lambda: hedge(5),
    "cache": lambda: cache(ttl=1),
    "inject": lambda: inject(latency=0),
    "all": lambda: guard(
        fallback(1, on=KeyError),
        retry(attempts=2, wait=0),
        breaker(fail_max=9),
        limiter(requests=9, per=1),
        admit(concurrency=5, sampler=FakeMemory()),
        timeout(5),
    ),
}
NO_STREAMS = {"hedge", "cache"}
NOT_SYNC = {"timeout", "two timeouts", "hedge", "all"}


def run(work):
    async def caught():
        with contextlib.suppress(Broken):  # not outside: asyncio's own task makes a cycle of what it fails with
            await work

    asyncio.run(caught())


@pytest.mark.parametrize("name", PIPELINES)
def test_an_async_call(name, errors):
    @PIPELINES[name]()
    async def work():
        raise errors()

    run(work())
    assert errors.made
    assert errors.alive() == []


@pytest.mark.parametrize("name", sorted(PIPELINES.keys() - NOT_SYNC))
def test_a_sync_call(name, errors):
    @PIPELINES[name]()
    def work():
        raise errors()

    with contextlib.suppress(Broken):
        work()
    assert errors.made
    assert errors.alive() == []


@pytest.mark.parametrize("delivered", [0, 2])
@pytest.mark.parametrize("name", sorted(PIPELINES.keys() - NO_STREAMS))
def test_a_stream(name, delivered, errors):
    @PIPELINES[name]()
    async def stream():
        for number in range(delivered):
            yield number
        raise errors()

    async def read():
        async for _ in stream():
            pass

    run(read())
    assert errors.made
    assert errors.alive() == []


@pytest.mark.parametrize("name", ["breaker", "limiter", "bulkhead", "admit"])
def test_a_generator_and_a_sync_block(name, errors):
    layer = PIPELINES[name]()

    @layer
    def numbers():
        yield 1
        raise errors()

    for _ in range(2):
        try:
            for _ in numbers():
                pass
        except Broken:
            pass
        try:
            with layer:
                raise errors()
        except Broken:
            pass
    assert errors.made
    assert errors.alive() == []


@pytest.mark.parametrize("name", ["breaker", "limiter", "bulkhead", "admit", "timeout", "two timeouts"])
def test_a_block(name, errors):
    async def work():
        async with PIPELINES[name]():
            raise errors()

    run(work())
    assert errors.alive() == []


def test_a_call_that_was_cut_off(errors):
    @guard(breaker(), timeout(0.001))
    async def work():
        try:
            await asyncio.sleep(60)
        finally:
            # What the traceback of the timeout holds.
            held = errors()
            assert held is not None

    async def call():
        with contextlib.suppress(TimedOut):
            await work()

    asyncio.run(call())
    assert errors.made
    assert errors.alive() == []
