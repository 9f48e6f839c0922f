from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.gates.concurrency import Aimd, Gradient, dropped

THROTTLED = Outcome("throttled")
TIMED_OUT = Outcome("failure", TimeoutError())
BROKEN = Outcome("failure", ValueError())

OUTCOMES = st.sampled_from([SUCCESS, SUCCESS, SUCCESS, THROTTLED, TIMED_OUT, BROKEN, IGNORED])
CALLS = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 2), st.integers(1, 60), OUTCOMES), max_size=200)


@pytest.mark.parametrize(
    ("outcome", "drop"), [(SUCCESS, False), (THROTTLED, True), (TIMED_OUT, True), (BROKEN, False), (IGNORED, False)]
)
def test_what_a_drop_is(outcome, drop):
    assert dropped(outcome) is drop


# AIMD


@given(CALLS)
def test_aimd_equals_its_rules(calls):
    limit = Aimd(initial=10, minimum=2, maximum=30, backoff=0.5, slow_after=4).start()
    exact, shrank, now = 10.0, float("-inf"), 0.0
    for took, gap, running, outcome in calls:
        now += gap
        started = now - took
        before = limit.limit
        told = limit.ended(started, now, running, outcome)
        if dropped(outcome) or (outcome is SUCCESS and now - started > 4):
            if started > shrank:
                exact, shrank = max(2.0, exact / 2), now
        elif outcome is SUCCESS and running >= before:
            exact = min(30.0, exact + 1 / exact)
        assert told == limit.limit == int(exact + 1e-9)
        assert 2 <= told <= 30
        if outcome in (BROKEN, IGNORED):
            assert told == before


def test_aimd_grows_by_one_a_round():
    limit = Aimd(initial=10).start()
    for _ in range(11):
        limit.ended(0, 1, limit.limit, SUCCESS)
    assert limit.limit == 11


def test_aimd_does_not_grow_while_it_is_not_used():
    limit = Aimd(initial=10).start()
    for _ in range(1000):
        limit.ended(0, 1, 9, SUCCESS)
    assert limit.limit == 10


def test_aimd_shrinks_once_for_a_crowd_that_is_dropped_together():
    limit = Aimd(initial=100, backoff=0.5).start()
    for _ in range(100):
        limit.ended(1, 2, 100, THROTTLED)
    assert limit.limit == 50
    limit.ended(2.5, 3, 50, THROTTLED)
    assert limit.limit == 25


# Gradient


def windows(limit, count, latency, running=None, outcome=SUCCESS, start=0.0):
    now = start
    for _ in range(count):
        for _ in range(20):
            now += 0.1
            limit.ended(now - latency, now, limit.limit if running is None else running, outcome)
    return now


def test_gradient_grows_while_latency_is_well_and_the_limit_is_used():
    limit = Gradient(initial=20, maximum=100).start()
    windows(limit, 100, 0.05)
    assert limit.limit == 100


def test_gradient_does_not_grow_while_it_is_not_used():
    limit = Gradient(initial=20).start()
    windows(limit, 100, 0.05, running=5)
    assert limit.limit == 20


def test_gradient_shrinks_when_latency_rises():
    limit = Gradient(initial=50, queue=1).start()
    now = windows(limit, 60, 0.05, running=20)
    before = limit.limit
    windows(limit, 3, 0.5, start=now)
    assert limit.limit < before * 0.8


def test_gradient_comes_back_after_a_bad_time():
    limit = Gradient(initial=50).start()
    now = windows(limit, 20, 0.05)
    now = windows(limit, 30, 2.0, start=now)
    low = limit.limit
    windows(limit, 60, 0.05, start=now)
    assert limit.limit > low


def test_gradient_shrinks_on_drops_though_latency_is_well():  # Netflix concurrency-limits, issue 137
    limit = Gradient(initial=50).start()
    now = windows(limit, 5, 0.05, running=5)
    before = limit.limit
    for _ in range(5):
        now = windows(limit, 1, 0.05, start=now)
        limit.ended(now - 0.05, now, limit.limit, THROTTLED)
        now += 0.1
    now = windows(limit, 1, 0.05, start=now)
    assert limit.limit < before * 0.8


def test_gradient_shrinks_though_nothing_succeeds():
    limit = Gradient(initial=50).start()
    windows(limit, 20, 0.05, outcome=TIMED_OUT)
    assert limit.limit < 20


def test_gradient_shrinks_once_for_a_crowd_that_is_dropped_together():
    limit = Gradient(initial=100, backoff=0.5, minimum=10).start()
    for number in range(100):
        limit.ended(0.0, 1.0 + number / 10, 100, THROTTLED)  # all of them began before the limit shrank
    assert limit.limit == 50


def test_gradient_with_no_latency_at_all():
    limit = Gradient(initial=20).start()
    for number in range(100):
        limit.ended(number, number, limit.limit, SUCCESS)
    assert limit.limit > 20


@given(CALLS, st.integers(1, 20), st.floats(1, 3))
def test_gradient_stays_within_its_bounds_and_never_learns_from_errors(calls, queue, tolerance):
    limit = Gradient(initial=10, minimum=3, maximum=40, queue=queue, tolerance=tolerance, window=0.5).start()
    now = 0.0
    for took, gap, running, outcome in calls:
        now += gap
        before = limit.limit
        told = limit.ended(now - took, now, running, outcome)
        assert 3 <= told <= 40
        assert told == limit.limit
        if outcome in (BROKEN, IGNORED):
            assert told == before


# Misuse


@pytest.mark.parametrize("kind", [Aimd, Gradient])
@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"initial": 1.5}, TypeError, "initial"),
        ({"minimum": True}, TypeError, "minimum"),
        ({"maximum": "9"}, TypeError, "maximum"),
        ({"minimum": 0}, ValueError, "minimum"),
        ({"initial": 300}, ValueError, "initial"),
        ({"backoff": 1}, ValueError, "backoff"),
        ({"backoff": 0.1}, ValueError, "backoff"),
    ],
)
def test_misuse_names_the_argument(kind, options, error, named):
    with pytest.raises(error, match=named):
        kind(**options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Aimd, {"slow_after": 0}),
        (Gradient, {"window": 0}),
        (Gradient, {"tolerance": 0.5}),
        (Gradient, {"queue": 0}),
        (Gradient, {"long_window": 0}),
        (Gradient, {"smoothing": 0}),
        (Gradient, {"smoothing": 1.5}),
    ],
)
def test_so_do_their_own(kind, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        kind(**options)
