from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import timeout
from guardrails.core.timers import BUCKET, TimerWheel, wheel_of


class HandLoop:
    """The part of a loop that a wheel uses, moved by hand."""

    def __init__(self):
        self.now = 5.0
        self.timers = []
        self.number = itertools.count()

    def time(self):
        return self.now

    def call_at(self, when, callback):
        handle = type("Handle", (), {"cancelled": False, "cancel": lambda self: setattr(self, "cancelled", True)})()
        heapq.heappush(self.timers, (when, next(self.number), handle, callback))
        return handle

    @property
    def pending(self):
        return sum(not handle.cancelled for _, _, handle, _ in self.timers)

    def advance_to(self, now):
        while self.timers and self.timers[0][0] <= now:
            when, _, handle, callback = heapq.heappop(self.timers)
            self.now = max(self.now, when)
            if not handle.cancelled:
                callback()
        self.now = now


class Entry:
    slot = 0

    def __init__(self, loop):
        self.loop = loop
        self.fired = []

    def expire(self):
        self.fired.append(self.loop.now)


@pytest.fixture
def loop():
    return HandLoop()


def test_a_deadline_fires_once_never_early_and_at_most_a_bucket_late(loop):
    wheel, entry = TimerWheel(loop), Entry(loop)
    wheel.add(entry, 1.0)
    loop.advance_to(5.999)
    assert not entry.fired
    loop.advance_to(9.0)
    assert len(entry.fired) == 1
    assert 6.0 <= entry.fired[0] <= 6.0 + BUCKET + 1e-9


def test_a_removed_deadline_leaves_nothing_behind(loop):
    wheel, entry = TimerWheel(loop), Entry(loop)
    for _ in range(1000):
        wheel.add(entry, 1.0)
        wheel.remove(entry)
    assert len(wheel) == 0
    assert len(wheel._buckets) == 0
    loop.advance_to(9.0)
    assert not entry.fired


def test_removing_twice_or_after_it_fired_does_nothing(loop):
    wheel, entry, other = TimerWheel(loop), Entry(loop), Entry(loop)
    wheel.add(entry, 1.0)
    wheel.add(other, 1.0)
    wheel.remove(entry)
    wheel.remove(entry)
    loop.advance_to(7.0)
    wheel.remove(other)
    assert len(other.fired) == 1
    assert not entry.fired


def test_many_deadlines_share_one_timer_of_the_loop(loop):
    wheel, entries = TimerWheel(loop), [Entry(loop) for _ in range(500)]
    for number, entry in enumerate(entries):
        wheel.add(entry, 1 + (number * 7919 % 500) / 100)
    assert loop.pending == 1
    loop.advance_to(20.0)
    assert all(len(entry.fired) == 1 for entry in entries)
    assert loop.pending == 0


def test_a_nearer_deadline_moves_the_timer_forward(loop):
    wheel, far, near = TimerWheel(loop), Entry(loop), Entry(loop)
    wheel.add(far, 10.0)
    wheel.add(near, 1.0)
    loop.advance_to(6.1)
    assert (len(near.fired), len(far.fired)) == (1, 0)
    loop.advance_to(15.1)
    assert len(far.fired) == 1


def test_a_timer_that_the_loop_calls_early_still_fires(loop):
    wheel, entry = TimerWheel(loop), Entry(loop)
    wheel.add(entry, 1.0)
    when, _, _, callback = heapq.heappop(loop.timers)
    loop.now = when - 1e-9
    callback()
    assert len(entry.fired) == 1


def test_an_entry_may_add_another_while_it_fires(loop):
    wheel, second = TimerWheel(loop), Entry(loop)

    class First(Entry):
        def expire(self):
            wheel.add(second, 0.0)

    wheel.add(First(loop), 1.0)
    loop.advance_to(7.0)
    assert len(second.fired) == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove", "advance"]), st.integers(0, 9), st.floats(0, 0.3, allow_nan=False)),
        max_size=60,
    )
)
def test_the_wheel_equals_a_list_of_deadlines(steps):
    loop = HandLoop()
    wheel, due = TimerWheel(loop), {}
    for action, number, seconds in steps:
        if action == "add" and number not in due:
            entry = Entry(loop)
            wheel.add(entry, seconds)
            due[number] = (entry, loop.now + seconds)
        elif action == "remove" and number in due:
            entry, _ = due.pop(number)
            wheel.remove(entry)
            assert not entry.fired
        elif action == "advance":
            loop.advance_to(loop.now + seconds)
            for key, (entry, when) in list(due.items()):
                if entry.fired:
                    assert when - 1e-9 <= entry.fired[0] <= when + BUCKET + 1e-9
                    del due[key]
                else:
                    assert loop.now < when + BUCKET + 1e-9
    assert len(wheel) == len(due)


@pytest.mark.parametrize("new_loop", ["asyncio", "uvloop"])
def test_a_wheel_goes_away_with_its_loop(new_loop):
    module = pytest.importorskip(new_loop)
    limit = timeout(30)

    async def work():
        return asyncio.get_running_loop()

    for _ in range(3):
        loop = module.new_event_loop()
        loop.run_until_complete(limit(work)())
        assert wheel_of(loop) is wheel_of(loop)
        gone = weakref.ref(loop)
        loop.close()
        del loop
        gc.collect()
        assert gone() is None


def test_one_guard_serves_loop_after_loop_each_with_its_own_wheel():
    limit = timeout(0.001)

    @limit
    async def hang():
        await asyncio.sleep(30)

    for _ in range(2):
        with pytest.raises(TimeoutError):
            asyncio.run(hang())
