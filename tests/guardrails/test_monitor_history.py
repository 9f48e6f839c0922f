"""The history of the monitor: three tiers, each bounded, and what a bucket says."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.memory.monitor.history import NAMES, TIERS, History, Point, Ring, Series

WALL = 1_700_000_000.0
SMALL = {"seconds": 5, "minutes": 4, "hours": 3}


@given(st.lists(st.integers(0, 2**60), max_size=40), st.integers(1, 9), st.sampled_from([1, 3]))
def test_a_ring_keeps_the_last_rows_in_order(values, size, width):
    ring = Ring(size, width)
    for number, value in enumerate(values):
        ring.add(float(number), *[value] * width)
    kept = list(enumerate(values))[-size:]
    assert ring.points() == [Point(number, value, value, value) for number, value in kept]
    assert ring.nbytes <= size * 8 * (1 + width)


@given(st.lists(st.tuples(st.floats(0.2, 40), st.integers(0, 2**50)), min_size=1, max_size=200))
def test_a_minute_is_the_smallest_the_middle_and_the_largest_of_its_values(steps):
    series, now, minutes = Series(), 0.0, {}
    for step, value in steps:
        now += step
        series.add(now, WALL + now, value)
        minutes.setdefault(int(now // 60), []).append((WALL + now, value))
    expected = [
        Point(
            values[0][0],
            min(v for _, v in values),
            round(statistics.median(v for _, v in values)),
            max(v for _, v in values),
        )
        for values in minutes.values()
    ]
    assert series.points("minutes") == expected
    assert [point[1:] for point in series.points("seconds")] == [(v, v, v) for _, v in steps]


def test_an_hour_keeps_the_peak_of_a_second_and_the_level_between():
    series = Series()
    for second in range(2 * 3600):
        series.add(second, WALL + second, 9000 if second == 1800 else 100 if second < 3600 else 200)
    assert series.points("hours") == [Point(WALL, 100, 100, 9000), Point(WALL + 3600, 200, 200, 200)]


def test_a_wall_clock_that_is_set_back_moves_no_bucket():
    series = Series()
    for second in range(180):
        series.add(second, WALL + (second if second < 90 else second - 7200), second)
    assert [point.maximum for point in series.points("minutes")] == [59, 119, 179]


def test_it_is_as_large_as_it_is_said_and_no_larger():
    history = History(tiers=SMALL)
    sizes = []
    for second in range(0, 30 * 3600, 20):
        history.add(second, WALL + second, {"self": second})
        sizes.append(history.nbytes)
    assert max(sizes) == max(sizes[len(sizes) // 2 :])  # full, it grows no more
    # The rings, and the values of the minute and of the hour that fill up.
    assert max(sizes) <= 16 * 5 + 32 * (4 + 3) + 8 * (60 + 60)
    assert len(history.points("self", "minutes")) == 4 + 1


def test_what_a_name_may_take_is_what_the_docstring_says():
    assert 16 * TIERS["seconds"] + 32 * (TIERS["minutes"] + TIERS["hours"]) + 8 * (600 + 60) < 72_000


def test_a_minute_of_very_many_samples_is_bounded():
    series = Series()
    for number in range(5000):
        series.add(number / 100, WALL, number)
    assert series.nbytes <= 16 * 600 + 8 * 600
    assert series.points("minutes")[0].minimum == 0  # the extremes are of all of them
    assert series.points("minutes")[0].maximum == 4999


def test_of_too_many_names_the_one_that_is_silent_for_longest_goes():
    history = History(names=3)
    history.add(1.0, WALL, {"a": 1, "b": 1})
    history.add(2.0, WALL, {"b": 1, "c": 1})
    history.add(3.0, WALL, {"d": 1})
    assert history.names == ("b", "c", "d")


def test_one_that_lives_is_not_dropped_for_another():
    history = History(names=2)
    for second in range(3):
        history.add(second, WALL, {"a": 1, "b": 2, "c": 3})
    assert history.names == ("a", "b")
    assert NAMES == 64


def test_what_there_is_not_is_refused_with_what_there_is():
    history = History()
    with pytest.raises(KeyError, match="no history of 'self'; there is one of: nothing yet"):
        history.points("self", "seconds")
    history.add(0.0, WALL, {"self": 1})
    with pytest.raises(KeyError, match="there is one of: self"):
        history.points("worker/0", "seconds")
    with pytest.raises(ValueError, match="resolution takes one of 'seconds', 'minutes', 'hours', not 'days'"):
        history.points("self", "days")
