from __future__ import annotations

import threading

import anyio
import pytest

from guardrails import breaker
from guardrails.core import events
from guardrails.core.clock import SYSTEM_CLOCK
from guardrails.core.events import Event, emit
from guardrails.testing import FakeClock, capture_events


def test_the_clock_stands_still_until_it_is_moved():
    clock = FakeClock(5)
    assert (clock.now(), clock.now()) == (5, 5)
    clock.advance(2.5)
    assert clock.now() == 7.5


@pytest.mark.anyio
async def test_sleepers_wake_in_the_order_of_their_time(clock, idle):
    woken = []

    async def sleeper(seconds):
        await clock.sleep(seconds)
        woken.append((seconds, clock.now()))

    async with anyio.create_task_group() as tasks:
        for seconds in (3, 1, 2):
            tasks.start_soon(sleeper, seconds)
        await idle()
        for _ in range(3):
            clock.advance(1)
            await idle()
    assert woken == [(1, 1001), (2, 1002), (3, 1003)]


@pytest.mark.anyio
@pytest.mark.parametrize("seconds", [0, -1])
async def test_no_time_is_over_at_once(clock, seconds):
    await clock.sleep(seconds)
    with clock.scope(seconds) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.anyio
async def test_a_scope_that_was_left_is_not_touched(clock):
    with clock.scope(5) as scope:
        pass
    clock.advance(10)
    await anyio.lowlevel.checkpoint()
    assert not scope.cancelled_caught


@pytest.mark.anyio
async def test_a_sleeper_can_be_cancelled(clock, idle):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.sleep, 5)
        await idle()
        tasks.cancel_scope.cancel()
    clock.advance(5)


def test_a_thread_waits_until_the_clock_passes(clock):
    event, done = threading.Event(), threading.Event()

    def wait():
        clock.wait_thread(event, 5)
        done.set()

    thread = threading.Thread(target=wait)
    thread.start()
    while not clock._threads:
        thread.join(0.001)
    clock.advance(4)
    assert not event.is_set()
    clock.advance(1)
    assert done.wait(10)
    thread.join()


def test_a_thread_is_woken_before_the_clock_passes(clock):
    event = threading.Event()
    event.set()
    assert clock.wait_thread(event, 5)
    assert clock.wait_thread(event, None)


@pytest.mark.anyio
async def test_the_system_clock_does_the_same():
    before = SYSTEM_CLOCK.now()
    await SYSTEM_CLOCK.sleep(0.01)
    assert SYSTEM_CLOCK.now() - before >= 0.009  # an event loop may wake a sleeper within its clock's resolution
    with SYSTEM_CLOCK.scope(0.001) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert SYSTEM_CLOCK.wait_thread(threading.Event(), 0.001) is False
    event = threading.Event()
    event.set()
    assert SYSTEM_CLOCK.wait_thread(event, None) is True
    assert SYSTEM_CLOCK.wait_thread(event, float("inf")) is True


def test_captured_events_end_with_the_block():
    with capture_events() as outer, capture_events() as inner:
        breaker(name="b")(lambda: 7)()
    emit(Event("unheard"))
    assert outer == inner
    assert len(outer) == 2
    assert events.sinks == ()


def test_captured_events_end_with_an_exception_too():
    with pytest.raises(ZeroDivisionError), capture_events():
        raise ZeroDivisionError
    assert events.sinks == ()
