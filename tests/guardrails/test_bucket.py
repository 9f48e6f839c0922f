from __future__ import annotations

import itertools
import math
from collections import deque

import pytest
from aiolimiter import AsyncLimiter
from hypothesis import example, given
from hypothesis import strategies as st

from guardrails.gates.limiter.bucket import Bucket, Plan

START = 1000.0
CLOSE = 1e-6

amounts = st.one_of(st.integers(0, 12), st.floats(0, 12, allow_nan=False))
steps = st.one_of(st.just(0.0), st.floats(0, 5, allow_nan=False), st.floats(0, 100, allow_nan=False))
capacities = st.floats(1, 12)
rates = st.floats(0.05, 20)


def exceeded(takings, capacity, allowed):
    """Whether some window holds more of `takings` (time, amount) than it may; `allowed(start, end)` is the refill."""
    for first in range(len(takings)):
        total = 0.0
        for moment, amount in takings[first:]:
            total += amount
            if total > capacity + allowed(takings[first][0], moment) + CLOSE * max(1.0, total):
                return True
    return False


# One thing at a time


def test_it_is_full_at_first_and_refills_at_the_rate_up_to_its_capacity():
    bucket = Bucket(10, 2, START)
    bucket.take(10, START)
    levels = [bucket.level(START + seconds) for seconds in (0, 1, 4, 5, 100)]
    assert levels == [0, 2, 8, 10, 10]


def test_what_is_there_fits_and_more_does_not():
    bucket = Bucket(10, 1, START)
    assert bucket.fits(10, START)
    assert not bucket.fits(10.001, START)
    bucket.take(6, START)
    assert bucket.fits(4, START)
    assert not bucket.fits(5, START + 0.9)
    assert bucket.fits(5, START + 1)


def test_nothing_fits_too_unless_the_bucket_is_in_debt():
    bucket = Bucket(10, 1, START)
    bucket.take(10, START)
    assert bucket.fits(0, START)
    bucket.take(3, START)
    assert not bucket.fits(0, START)
    assert bucket.level(START) == -3
    assert bucket.fits(0, START + 3)


def test_at_one_moment_everything_goes_back_in_any_order():
    bucket = Bucket(30, 1, START)
    parts = [[bucket.take(10, START)] for _ in range(3)]
    for number in (1, 2, 0):
        assert bucket.give_back(parts[number], 10, START) == 10
    assert bucket.level(START) == 30
    assert parts == [[], [], []]


def test_nothing_goes_back_twice():
    bucket = Bucket(30, 1, START)
    bucket.take(20, START)
    parts = [bucket.take(10, START)]
    assert bucket.give_back(parts, 7, START) == 7
    assert bucket.give_back(parts, 7, START) == 3
    assert bucket.give_back(parts, 7, START) == 0
    assert bucket.level(START) == 10


def test_what_has_drained_does_not_go_back():
    # Full at 0, 10 taken; at 10 it is full again, 10 taken; were the first to go back now, 20 could be used at once.
    bucket = Bucket(10, 1, START)
    first = [bucket.take(10, START)]
    bucket.take(10, START + 10)
    assert bucket.give_back(first, 10, START + 10) == 0
    assert not bucket.fits(1, START + 10)


def test_half_of_it_goes_back_when_half_of_it_has_drained():
    bucket = Bucket(10, 1, START)
    parts = [bucket.take(10, START)]
    bucket.take(5, START + 5)
    assert bucket.give_back(parts, 10, START + 5) == 5
    assert bucket.level(START + 5) == 5


def test_a_drained_bucket_is_empty_until_then_and_fills_from_there():
    bucket = Bucket(10, 2, START)
    bucket.drain(START + 30, START)
    assert not bucket.fits(1, START + 30)
    assert bucket.level(START + 30) == 0
    assert bucket.level(START + 31) == 2


def test_a_shorter_drain_does_not_end_a_longer_one():
    bucket = Bucket(10, 2, START)
    bucket.drain(START + 30, START)
    bucket.drain(START + 10, START + 1)
    assert bucket.level(START + 30) == 0
    bucket.drain(START + 40, START + 1)
    assert bucket.level(START + 40) == 0


def test_a_drain_of_no_time_empties_it():
    bucket = Bucket(10, 2, START)
    bucket.drain(START - 5, START)
    assert [bucket.level(START), bucket.level(START + 1)] == [0, 2]


def test_giving_back_does_not_end_a_drain():
    bucket = Bucket(10, 2, START)
    parts = [bucket.take(10, START)]
    bucket.drain(START + 30, START)
    assert bucket.give_back(parts, 10, START + 1) == 0
    assert bucket.level(START + 30) == 0


def test_a_drain_ends_when_it_was_to_end_whatever_becomes_of_the_rate():
    for rate in (0.1, 20):
        bucket = Bucket(10, 2, START)
        bucket.drain(START + 30, START)
        bucket.set_rate(rate, START + 5)
        assert bucket.level(START + 30) == pytest.approx(0, abs=CLOSE)
        assert bucket.level(START + 31) == pytest.approx(min(10, rate), abs=CLOSE)


def test_another_rate_holds_from_now_on():
    bucket = Bucket(10, 2, START)
    bucket.take(10, START)
    bucket.set_rate(1, START + 2)
    assert bucket.level(START + 3) == 5


def test_reset_fills_it_and_ends_a_drain():
    bucket = Bucket(10, 2, START)
    parts = [bucket.take(10, START)]
    bucket.drain(START + 30, START)
    bucket.reset(START + 1)
    assert bucket.level(START + 1) == 10
    bucket.take(4, START + 1)
    assert bucket.give_back(parts, 10, START + 1) == 0
    assert bucket.level(START + 1) == 6
    assert bucket.level(START + 2) == 8


# For all


class Story:
    """A bucket that is used, and what was really used of it when."""

    def __init__(self, capacity, rate):
        self.bucket = Bucket(capacity, rate, START)
        self.now = START
        self.used: list[list[float]] = []
        self.parts = []
        self.rates = [(START, rate)]

    def play(self, kind, step, amount, which):
        self.now += step
        if kind == "take" and self.bucket.fits(amount, self.now):
            self.parts.append([self.bucket.take(amount, self.now)])
            self.used.append([self.now, amount])
        elif kind == "give back" and self.used:
            number = which % len(self.used)
            back = min(amount, self.used[number][1])
            took = self.bucket.give_back(self.parts[number], back, self.now)
            assert 0 <= took <= back + CLOSE
            self.used[number][1] -= back
        elif kind == "rate":
            self.bucket.set_rate(amount + 0.05, self.now)
            self.rates.append((self.now, amount + 0.05))
        elif kind == "drain":
            self.bucket.drain(self.now + amount, self.now)

    def refill(self, start, end):
        total = 0.0
        for number, (since, rate) in enumerate(self.rates):
            until = self.rates[number + 1][0] if number + 1 < len(self.rates) else math.inf
            total += rate * max(0.0, min(end, until) - max(start, since))
        return total


def stories(kinds):
    return st.lists(st.tuples(st.sampled_from(kinds), steps, amounts, st.integers(0, 30)), max_size=40)


@given(capacities, rates, stories(["take", "take", "give back", "rate", "drain"]))
@example(10.0, 1.0, [("take", 0.0, 10, 0), ("take", 10.0, 10, 0), ("give back", 0.0, 10, 0), ("take", 0.0, 10, 0)])
@example(
    20.0,
    1.0,
    [
        *[("take", 0, 10, 0), ("take", 0, 10, 0), ("give back", 0, 10, 0), ("take", 15, 12, 0)],
        *[("give back", 0, 10, 1), ("take", 0, 8, 0), ("take", 0, 5, 0)],
    ],
)
def test_no_window_holds_more_than_the_burst_and_the_refill(capacity, rate, story):
    told = Story(capacity, rate)
    for step in story:
        told.play(*step)
    assert not exceeded(told.used, capacity, told.refill)


@given(capacities, rates, stories(["take", "take", "take", "drain"]))
def test_a_drain_lets_nothing_in_before_its_end(capacity, rate, story):
    told = Story(capacity, rate)
    ends = START
    for kind, step, amount, which in story:
        before = len(told.used)
        told.play(kind, step, amount, which)
        if len(told.used) > before and amount > CLOSE:
            assert told.now >= ends
        if kind == "drain":
            ends = max(ends, told.now + amount)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60), st.integers(0, 50)), max_size=30))
def test_tokens_are_conserved_at_one_moment(changes):
    """Whatever is taken, charged and given back at one moment: the level is the capacity less what is held."""
    bucket = Bucket(100, 1, START)
    parts: list[list] = []
    held: list[int] = []
    for which, target, amount in changes:
        if which >= len(held):
            parts.append([bucket.take(amount, START)])
            held.append(amount)
        elif target > held[which]:
            parts[which].append(bucket.take(target - held[which], START))
            held[which] = target
        else:
            bucket.give_back(parts[which], held[which] - target, START)
            held[which] = target
        assert bucket.level(START) == 100 - sum(held)


@given(capacities, rates, stories(["take", "give back", "rate", "drain"]))
def test_the_level_never_exceeds_the_capacity_and_giving_back_never_lowers_it(capacity, rate, story):
    told = Story(capacity, rate)
    for kind, step, amount, which in story:
        before = told.bucket.level(told.now + step)
        told.play(kind, step, amount, which)
        after = told.bucket.level(told.now)
        assert after <= capacity
        if kind == "give back":
            assert after >= before - CLOSE


@given(capacities, rates, stories(["take", "take", "rate", "drain"]), amounts)
def test_the_planned_turn_is_the_first_moment_at_which_it_fits(capacity, rate, story, amount):
    told = Story(capacity, rate)
    for step in story:
        told.play(*step)
    amount = min(amount, capacity)
    at = Plan([told.bucket], told.now).when([amount], told.now)
    assert told.bucket.fits(amount, at)
    if at > told.now:
        assert not told.bucket.fits(amount, told.now + (at - told.now) * 0.999 - 1e-3)


@given(
    st.lists(st.tuples(capacities, rates), min_size=1, max_size=3),
    st.lists(st.tuples(*(amounts,) * 3), min_size=1, max_size=10),
)
def test_a_plan_is_what_happens_when_each_is_let_in_at_its_turn(limits, queue):
    buckets = [Bucket(capacity, rate, START) for capacity, rate in limits]
    queue = [[min(amount, bucket.capacity) for amount, bucket in zip(each, buckets, strict=False)] for each in queue]
    plan = Plan(buckets, START)
    turns = []
    for each in queue:
        turns.append(plan.when(each, START))
        plan.add(each, turns[-1])
    assert turns == sorted(turns)
    for each, turn in zip(queue, turns, strict=True):
        for bucket, amount in zip(buckets, each, strict=True):
            assert bucket.fits(amount, turn)
            bucket.take(amount, turn)


class _Loop:
    """As much of an event loop as aiolimiter asks for the time."""

    now = START

    def time(self):
        return self.now

    def is_closed(self):
        return False


@given(st.integers(1, 20), st.integers(1, 60), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=40))
def test_without_waiters_it_decides_as_aiolimiter_does(max_rate, time_period, calls):
    loop = _Loop()
    peer = AsyncLimiter(max_rate, time_period)
    peer._event_loop = loop
    bucket = Bucket(max_rate, max_rate / time_period, loop.now)
    for step, amount in calls:
        loop.now += step / 8
        level = bucket.level(loop.now)
        if abs(level - amount) > CLOSE:  # aiolimiter forgives no rounding
            assert bucket.fits(amount, loop.now) == peer.has_capacity(amount)
        peer._leak()
        assert level == pytest.approx(max_rate - peer._level, abs=CLOSE)
        if level >= amount + CLOSE:
            bucket.take(amount, loop.now)
            peer._level += amount


def test_a_busy_bucket_takes_back_nearly_everything():
    """Saturated, calls of 10 s that reserve twice what they use: what is used comes to the rate all the same."""
    bucket = Bucket(600, 10, START)
    running: deque = deque()
    used = 0
    for now in itertools.takewhile(lambda now: now < START + 1200, itertools.count(START, 0.25)):
        while running and running[0][0] <= now:
            bucket.give_back(running.popleft()[1], 5, now)
        while bucket.fits(10, now):
            running.append((now + 10, [bucket.take(10, now)]))
            used += 5
    assert used == pytest.approx(600 + 10 * 1200, rel=0.06)
