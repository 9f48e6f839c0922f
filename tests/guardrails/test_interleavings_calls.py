"""Strategies, pipelines and streams under every order of events that a seed can think of: see `interleave`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest

from guardrails import breaker, bulkhead, guard, hedge, limiter, retry, timeout
from guardrails.core.clock import SYSTEM_CLOCK
from guardrails.core.errors import Rejected, TimedOut
from tests.guardrails.interleave import WAYS, explore, sweep

# Strategies: no child is left, and a cancellation stays one


def hedged(world):
    clock, rng = world.clock, world.rng
    asks = hedge(delay=1, attempts=3, budget=None, clock=clock)

    async def caller(holds):
        running = set()
        attempts = itertools.count()

        @asks
        async def ask():
            number = next(attempts)
            running.add(number)
            try:
                await clock.sleep(holds[number])
                if holds[number] == 2:
                    raise ConnectionError
                return number
            finally:
                running.discard(number)

        try:
            with contextlib.suppress(ConnectionError):
                answer = await ask()
                assert holds[answer] != 2
        finally:
            assert not running, "a loser runs on"

    async def scenario(world):
        for _ in range(3):
            world.spawn(caller([rng.choice((0, 1, 2, 3, 5)) for _ in range(3)]))
        await world.join()

    return scenario(world)


@pytest.mark.parametrize("how", WAYS)
def test_a_hedge_leaves_no_attempt_behind(how):
    explore(hedged, **how)


def test_a_hedge_is_cancelled_at_every_await_point():
    for seed in range(2):
        sweep(hedged, seed)


def piped(timer):
    """A retry over a breaker, a limiter, a bulkhead and a timeout, which is on the fake clock or on the loop's own."""

    async def scenario(world):
        clock, rng = world.clock, world.rng
        circuit = breaker(fail_max=3, open_for=2, clock=clock)
        rate = limiter(requests=3, per=1, max_wait=5, clock=clock)
        room = bulkhead(2, queue=3, max_wait=2, clock=clock)
        cut = timeout(2, clock=clock if timer == "fake" else SYSTEM_CLOCK)
        pipeline = guard(retry(attempts=3, wait=1, budget=None, clock=clock), circuit, rate, room, cut)
        running = set()

        @pipeline
        async def ask(number, holds):
            assert number not in running
            running.add(number)
            try:
                assert len(running) <= 2
                hold = next(holds)
                await clock.sleep(hold)
                if hold == 1:
                    raise ConnectionError
            finally:
                running.discard(number)

        async def caller(number, holds):
            try:
                await ask(number, iter(holds))
            except (ConnectionError, TimedOut, Rejected):
                assert asyncio.current_task().cancelling() == 0 or asyncio.current_task() in world.killed
            finally:
                assert number not in running

        def check():
            assert room.in_flight == len(running)
            assert not room.waiting or room.in_flight == 2

        world.when_idle(check)
        for number in range(4):
            world.spawn(caller(number, [rng.choice((0, 1, 2, 3)) for _ in range(3)]))
        await world.join()
        assert (room.in_flight, room.waiting, rate.waiting) == (0, 0, 0)
        assert not circuit._probing

    return scenario


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("timer", ["fake", "wheel"])
def test_a_pipeline_gives_everything_back(how, timer):
    explore(piped(timer), **how)


@pytest.mark.parametrize("timer", ["fake", "wheel"])
def test_a_pipeline_is_cancelled_at_every_await_point(timer):
    sweep(piped(timer), 0)


# Streams: however they end, they are settled, and their source is closed


def streamed(timer):
    async def scenario(world):
        clock, rng = world.clock, world.rng
        circuit = breaker(fail_max=3, open_for=2, clock=clock)
        room = bulkhead(2, queue=3, max_wait=3, clock=clock)
        cut = timeout(6, first=2, idle=2, clock=clock if timer == "fake" else SYSTEM_CLOCK)
        running = set()

        @guard(circuit, room, cut)
        async def items(number, waits):
            running.add(number)
            try:
                assert len(running) <= 2
                for wait in waits:
                    await clock.sleep(wait)
                    if wait == 1:
                        raise ConnectionError
                    yield wait
            finally:
                running.discard(number)

        async def reader(number, waits, pause, most, *, closes):
            stream = items(number, waits)
            try:
                for _ in range(most):
                    await anext(stream)
                    await clock.sleep(pause)
            except (ConnectionError, TimedOut, Rejected, StopAsyncIteration):
                pass
            finally:
                if closes:
                    await stream.aclose()
                del stream  # or is it dropped: the loop closes it then

        def check():
            assert room.in_flight == len(running)
            assert not room.waiting or room.in_flight == 2

        world.when_idle(check)
        for number in range(5):
            waits = [rng.choice((0, 0.5, 1, 1.5, 3)) for _ in range(3)]
            pause, most = rng.choice((0, 1, 4)), rng.choice((1, 2, 4))
            world.spawn(reader(number, waits, pause, most, closes=rng.random() < 0.5))
        await world.join()
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)
        assert not running
        assert (room.in_flight, room.waiting, circuit._probing) == (0, 0, set())

    return scenario


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("timer", ["fake", "wheel"])
def test_streams_give_everything_back(how, timer):
    explore(streamed(timer), **how)


@pytest.mark.parametrize("timer", ["fake", "wheel"])
def test_streams_are_cancelled_at_every_await_point(timer):
    sweep(streamed(timer), 1)
