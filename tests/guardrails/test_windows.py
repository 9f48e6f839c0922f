from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.gates.breaker.windows import (
    BUCKETS,
    ConsecutiveFailures,
    Counts,
    CountWindow,
    FailureCount,
    Rates,
    TimeWindow,
)

CALLS = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=80)  # (failed, slow)


@given(st.integers(1, 6), CALLS)
def test_consecutive_failures_equals_a_naive_model(limit, calls):
    rule, row = ConsecutiveFailures(limit), 0
    for failed, slow in calls:
        row = row + 1 if failed else 0
        assert rule.record(0.0, failed=failed, slow=slow) == (failed and row >= limit)
        assert rule.counts(0.0) == (row, row, 0)
    rule.clear()
    assert rule.failures == 0


@given(
    st.integers(1, 100),
    st.none() | st.integers(1, 100),
    st.integers(1, 30),
    st.integers(1, 30),
    st.lists(st.none() | st.tuples(st.booleans(), st.booleans()), max_size=80),
)
def test_rates_of_a_count_window_equal_a_naive_model(percent, slow_percent, size, min_calls, calls):
    min_calls = min(min_calls, size)
    slow_rate = None if slow_percent is None else slow_percent / 100
    rule = Rates(CountWindow(size), min_calls=min_calls, failure_rate=percent / 100, slow_rate=slow_rate)
    known = []
    for call in calls:
        if call is None:
            known = []
            rule.clear()
            continue
        known = [*known, call][-size:]
        failures, slow = (sum(column) for column in zip(*known, strict=True))
        share, slow_share = Fraction(failures, len(known)), Fraction(slow, len(known))
        due = share >= Fraction(percent, 100) or (
            slow_percent is not None and slow_share >= Fraction(slow_percent, 100)
        )
        assert rule.record(0.0, failed=call[0], slow=call[1]) == (len(known) >= min_calls and due)
        assert rule.counts(0.0) == (len(known), failures, slow)


@given(
    st.sampled_from([1.0, 10.0, 60.0]),
    st.lists(st.tuples(st.floats(0, 30), st.booleans(), st.booleans()), max_size=60),
)
def test_a_time_window_equals_a_naive_model(seconds, calls):
    window, known, now, width = TimeWindow(seconds), [], 1000.0, seconds / BUCKETS
    for step, failed, slow in calls:
        now += step
        window.add(now, failed, slow)
        known.append((now, failed, slow))
        inside = [call for call in known if call[0] // width > now // width - BUCKETS]
        assert window.counts(now) == Counts(len(inside), sum(c[1] for c in inside), sum(c[2] for c in inside))
        assert len(window._ring) <= BUCKETS
        # Whatever the parts: nothing older than the window is in, everything of its last nine tenths is.
        assert all(now - when < seconds + 1e-6 for when, *_ in inside)
        assert sum(now - when < 0.9 * seconds - 1e-6 for when, *_ in known) <= len(inside)
    assert window.counts(now + seconds) == (0, 0, 0)


def test_a_time_window_takes_a_call_that_ended_a_little_earlier_in_its_newest_part():
    window = TimeWindow(10)
    window.add(5.0, True, False)
    window.add(3.5, True, False)
    assert window.counts(5.0) == (2, 2, 0)
    window.clear()
    assert window.counts(5.0) == (0, 0, 0)


@given(st.integers(1, 5), st.integers(5, 20), CALLS)
def test_failure_count_equals_a_naive_model(limit, size, calls):
    rule, known = FailureCount(limit, CountWindow(size)), []
    for failed, slow in calls:
        known = [*known, failed][-size:]
        assert rule.record(0.0, failed=failed, slow=slow) == (sum(known) >= limit)
        assert rule.counts(0.0).failures == sum(known)
    rule.clear()
    assert rule.counts(0.0) == (0, 0, 0)


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_rate_is_reached_exactly(percent):
    rule = Rates(CountWindow(100), min_calls=100, failure_rate=percent / 100, slow_rate=None)
    for _ in range(100 - percent):
        rule.record(0.0, failed=False)
    assert [rule.record(0.0, failed=True) for _ in range(percent)] == [*[False] * (percent - 1), True]


def test_a_rate_reached_by_a_success_trips_too():
    rule = Rates(CountWindow(10), min_calls=4, failure_rate=0.5, slow_rate=None)
    assert [rule.record(0.0, failed=failed) for failed in (True, True, False, False)] == [False, False, False, True]


def test_they_describe_themselves():
    assert ConsecutiveFailures(5).describe() == "opens after 5 failures in a row"
    rates = Rates(CountWindow(100), min_calls=10, failure_rate=0.5, slow_rate=0.8)
    assert rates.describe() == "opens at 50% failures or 80% slow calls of the last 100 calls, from 10 on"
    assert FailureCount(3, TimeWindow(60)).describe() == "opens at 3 failures of the last 60 s"
