from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.strategies.backoff import DecorrelatedJitter, Fixed, FullJitter, at_least

times = st.floats(0.001, 1000)
retries = st.integers(1, 5000)


def highest(low, high):
    return high


def lowest(low, high):
    return low


def test_full_jitter_is_bounded_by_powers_of_two():
    top = FullJitter(0.1, 20, uniform=highest)
    assert [top.delay(n, None) for n in range(1, 6)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    assert top.delay(9, None) == 20
    assert FullJitter(0.1, 20, uniform=lowest).delay(5, None) == 0


def test_decorrelated_jitter_grows_from_the_wait_before():
    top = DecorrelatedJitter(0.1, 20, uniform=highest)
    assert top.delay(1, None) == pytest.approx(0.3)
    assert top.delay(2, 0.3) == pytest.approx(0.9)
    assert top.delay(7, 19.0) == 20
    assert DecorrelatedJitter(0.1, 20, uniform=lowest).delay(4, 5.0) == 0.1


@given(times, times, retries, st.randoms())
def test_full_jitter_stays_in_its_bounds(one, other, retry, source):
    base, cap = sorted((one, other))
    delay = FullJitter(base, cap, uniform=source.uniform).delay(retry, None)
    assert 0 <= delay <= min(cap, base * 2.0 ** min(retry - 1, 1000))


@given(times, times, st.integers(1, 60), st.integers())
def test_decorrelated_jitter_stays_in_its_bounds(one, other, number, seed):
    base, cap = sorted((one, other))
    backoff = DecorrelatedJitter(base, cap, uniform=random.Random(seed).uniform)
    delay = None
    for retry in range(1, number + 1):
        before = base if delay is None else delay
        delay = backoff.delay(retry, delay)
        assert base <= delay <= min(cap, before * 3)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_what_the_dependency_asks_for_is_never_undercut(delay, asked):
    found = at_least(delay, asked)
    assert found >= asked
    assert found >= delay
    assert found <= max(delay, asked * 1.1 + 1e-9)


def test_callers_who_were_told_the_same_time_do_not_come_back_together():
    draw = FullJitter()
    assert len({at_least(draw.delay(3, None), 5.0) for _ in range(100)}) > 90
    assert at_least(0.0, 5.0) == 5.0


def test_the_default_draws():
    assert len({FullJitter().delay(3, None) for _ in range(100)}) > 90
    assert Fixed(2).delay(8, 1.0) == 2
    assert FullJitter() == FullJitter()
    assert [b.describe() for b in (Fixed(2), FullJitter(), DecorrelatedJitter(1, 9))] == [
        "2 s apart",
        "full jitter 0.1 to 20 s",
        "decorrelated jitter 1 to 9 s",
    ]


@pytest.mark.parametrize("make", [FullJitter, DecorrelatedJitter])
def test_wrong_bounds_are_refused(make):
    with pytest.raises(ValueError, match="base takes a number of seconds above 0, not 0"):
        make(0)
    with pytest.raises(ValueError, match="cap takes at least base"):
        make(2, 1)
    with pytest.raises(ValueError, match="cap takes"):
        make(2, float("nan"))
    with pytest.raises(TypeError, match="base takes a number of seconds, not str"):
        make("1")
    with pytest.raises(TypeError, match="cap takes a number of seconds, not bool"):
        make(0.1, True)


def test_a_fixed_wait_may_be_none_but_not_negative_or_for_ever():
    assert Fixed(0).delay(1, None) == 0
    with pytest.raises(ValueError, match="wait takes a number of seconds from 0 on, not -1"):
        Fixed(-1)
    with pytest.raises(ValueError, match="wait takes"):
        Fixed(float("inf"))
