"""Slope, chance and interval: Theil-Sen, Mann-Kendall, and what autocorrelation does to them."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.memory.leak.curve import jumps, slows_down, smoothed, without
from guardrails.memory.leak.trend import UNKNOWN, theil_sen, trend
from guardrails.memory.leak.wave import DAY, is_flank, without_wave

values = st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=40)


def points(ys):
    return [(float(x), float(y)) for x, y in enumerate(ys)]


@given(values)
def test_the_slope_is_that_of_theil_and_sen_and_lies_within_its_interval(ys):
    found = trend(points(ys))
    assert found.slope == pytest.approx(theil_sen(points(ys)), rel=1e-9, abs=1e-9)
    assert found.low <= found.slope <= found.high


@given(values)
def test_what_falls_is_the_mirror_of_what_rises(ys):
    found, mirrored = trend(points(ys)), trend(points([-y for y in ys]))
    assert mirrored.slope == -found.slope
    assert mirrored.p == pytest.approx(1 - found.p)


@given(st.integers(4, 60), st.floats(0.001, 1e9))
def test_a_line_is_no_chance_and_its_interval_is_itself(count, slope):
    found = trend([(float(x), slope * x) for x in range(count)])
    assert (found.slope, found.low, found.high) == pytest.approx((slope, slope, slope))
    assert found.p < 0.05 / (count - 3)


def test_kendalls_score_is_as_in_the_books():
    # S = 24 of 28 pairs, variance 8 x 7 x 21 / 18: z = 23 / sqrt(65.33).
    found = trend(points([1, 2, 4, 3, 5, 6, 8, 7]))
    assert found.p == pytest.approx(math.erfc(23 / math.sqrt(8 * 7 * 21 / 18) / math.sqrt(2)) / 2)


@given(st.integers(2, 60), st.integers(-100, 100))
def test_a_constant_has_no_trend(count, value):
    found = trend(points([value] * count))
    assert (found.slope, found.p) == (0.0, 0.5)


def test_fewer_than_two_points_say_nothing():
    assert trend([]) == trend([(1.0, 2.0)]) == UNKNOWN


def _errors(chance, count, keep):
    error, found = 0.0, []
    for _ in range(count):
        error = keep * error + chance.gauss(0, 1)
        found.append(error)
    return found


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.8])
def test_noise_that_remembers_is_not_taken_for_a_trend(keep):
    chance = random.Random(5)
    said = sum(trend(points(_errors(chance, 60, keep))).p < 0.01 for _ in range(400))
    # Without the correction: 11, 80 and 214 of a thousand.
    assert said <= {0.0: 10, 0.5: 12, 0.8: 16}[keep]


def test_the_interval_holds_the_true_slope_as_often_as_it_says():
    chance = random.Random(7)
    held = 0
    for _ in range(300):
        found = trend(points([0.1 * x + chance.gauss(0, 1) for x in range(40)]))
        held += found.low <= 0.1 <= found.high
    assert held >= 0.93 * 300


# Curves


@given(st.integers(4, 55), st.integers(-100, 100).filter(bool), st.integers(0, 10))
def test_a_jump_is_found_where_it_is_and_without_it_nothing_is_left(where, height, level):
    ys = [float(level)] * where + [float(level + height)] * (60 - where)
    (found,) = jumps(ys)
    assert found.height == height
    assert found.place < where <= found.place + 2
    assert {y for _, y in without(points(ys), [found])} == {float(level)}


@given(st.floats(0.1, 100.0), st.integers())
def test_neither_a_line_nor_noise_jumps(slope, seed):
    chance = random.Random(seed)
    assert jumps([slope * x for x in range(60)]) == []
    assert len(jumps([chance.gauss(0, 1) for _ in range(60)])) <= 1


def test_a_staircase_of_many_steps_does_not_jump():
    assert jumps([float(x // 3) for x in range(60)]) == []


@given(st.lists(st.floats(0, 100), min_size=3, max_size=30), st.data())
def test_single_outliers_are_smoothed_away(ys, data):
    place = data.draw(st.integers(0, len(ys) - 1))
    spoilt = [*ys[:place], 1e9, *ys[place + 1 :]]
    assert max(smoothed(spoilt)) <= 300  # at an end, as far as the next two point


@pytest.mark.parametrize("doubt", [True, False])
def test_what_saturates_slows_down_and_a_line_does_not(doubt):
    line = [(float(x), 3.0 * x) for x in range(60)]
    fills = [(float(x), 1 - math.exp(-x / 60)) for x in range(60)]
    assert not slows_down(line, 0.75, doubt=doubt)
    assert slows_down(fills, 0.75, doubt=doubt)


def test_what_noise_leaves_open_is_said_as_asked():
    # At the end exactly as steep as was asked for: nobody can know.
    chance = random.Random(3)
    said = {True: 0, False: 0}
    for _ in range(300):
        noisy = [(float(x), x - 0.25 / 118 * x * x + chance.gauss(0, 5)) for x in range(60)]
        for doubt in said:
            said[doubt] += slows_down(noisy, 0.75, doubt=doubt)
    assert 120 <= said[True] <= 180
    assert 5 <= said[False] <= 30


# The daily wave


def _day(hours, curve, every=900.0):
    return [(x * every, curve(x * every / DAY)) for x in range(int(hours * 3600 / every))]


@pytest.mark.parametrize("hours", [8, 10, 12])
def test_a_flank_is_told_from_a_line(hours):
    assert is_flank(_day(hours, lambda day: -math.cos(2 * math.pi * day)))
    assert not is_flank(_day(hours, lambda day: 2 * day))


def test_short_flanks_and_days_are_no_matter_of_shape():
    assert not is_flank(_day(4, lambda day: -math.cos(2 * math.pi * day)))
    assert not is_flank(_day(40, lambda day: -math.cos(2 * math.pi * day)))


@given(st.floats(0, 1), st.floats(-5, 5))
def test_what_is_left_without_the_wave_is_the_trend(phase, slope):
    left = without_wave(_day(72, lambda day: 10 * math.sin(2 * math.pi * (day + phase)) + slope * day))
    assert left is not None
    assert theil_sen(left[::4]) * DAY == pytest.approx(slope, abs=1e-6)


def test_a_line_has_no_wave_and_a_day_is_too_short_for_both():
    assert without_wave(_day(72, lambda day: 5 * day)) is None
    assert without_wave(_day(24, lambda day: math.sin(2 * math.pi * day))) is None
