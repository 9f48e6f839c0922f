"""When a budget will be reached, and what a request leaves behind."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.supervision.forecast import GrowthPerRequest, Trend, size_class, theil_sen

MIB = 1 << 20
KEPT = 24


def trend_of(sizes, spacing=0.05):
    """Readings of which the last is at 0.0 seconds."""
    trend = Trend()
    for number, size in enumerate(sizes, start=1 - len(sizes)):
        trend.add(number * spacing, int(size))
    return trend


outliers = st.dictionaries(st.integers(0, KEPT - 1), st.integers(0, 2**40), max_size=3)


@given(st.floats(0.01, 500.0), st.floats(0.01, 10.0), outliers)
def test_steady_growth_is_seen_through_outliers(mib_a_second, spacing, wrong):
    rate = mib_a_second * MIB
    sizes = [50 * MIB + rate * spacing * number for number in range(KEPT)]
    for place, size in wrong.items():
        sizes[place] = size
    assert trend_of(sizes, spacing).slope() == pytest.approx(rate, rel=0.01, abs=1000 / spacing)


@given(st.integers(2**20, 2**40), outliers, st.integers(12, KEPT))
def test_flat_is_flat_through_outliers(size, wrong, readings):
    sizes = [size] * readings
    for place in sorted(wrong)[: readings // 8]:
        if place < readings - 3:
            sizes[place] = wrong[place]
    trend = trend_of(sizes)
    assert trend.slope() == 0.0
    assert trend.seconds_until(size + 1, 0.0) is None
    assert trend.seconds_until(size, 0.0) == 0.0


@given(st.integers(1, 2**40), st.integers(-(2**30), 2**40), st.integers(0, 3 * KEPT))
def test_a_step_is_not_growth(size, step, where):
    trend = Trend()
    for number in range(3 * KEPT):
        trend.add(number * 0.05, size if number < where else size + step)
        assert trend.slope() == 0.0


@given(st.floats(1.0, 100.0), st.integers())
def test_noise_does_not_hide_growth_that_matters(mib_a_second, seed):
    # Noise of a tenth of what the window grows by.
    chance = random.Random(seed)
    rate, spacing = mib_a_second * MIB, 0.05
    noise = 0.1 * rate * spacing * KEPT
    sizes = [100 * MIB + rate * spacing * n + chance.uniform(-noise, noise) for n in range(KEPT)]
    left = trend_of(sizes).seconds_until(int(100 * MIB + rate * (spacing * (KEPT - 1) + 1.0)), 0.0)
    assert 0.4 < left < 2.0


def test_noise_alone_forecasts_nothing_near():
    chance = random.Random(1)
    soon = 0
    for _ in range(300):
        left = trend_of([100 * MIB + chance.gauss(0, 2 * MIB) for _ in range(KEPT)]).seconds_until(120 * MIB, 0.0)
        soon += left is not None and left < 1.0
    assert soon == 0


def test_a_staircase_of_requests_is_growth():
    sizes = [100 * MIB + 20 * MIB * (number // 3) for number in range(KEPT)]
    assert trend_of(sizes).slope() == pytest.approx(20 * MIB / 0.15, rel=0.3)


def test_few_readings_say_nothing():
    assert trend_of([]).seconds_until(100, 0.0) is None
    assert trend_of(range(0, 11_000, 1000)).seconds_until(10**6, 0.0) is None
    assert trend_of(range(0, 12_000, 1000)).seconds_until(10**6, 0.0) is not None


@given(st.floats(0.01, 500.0), st.floats(0.01, 10.0), st.floats(0.0, 100.0), st.floats(0.0, 5.0))
def test_the_forecast_of_steady_growth_is_right_whenever_it_is_asked(mib_a_second, spacing, left, later):
    rate = mib_a_second * MIB
    trend = trend_of([100 * MIB + rate * spacing * number for number in range(KEPT)], spacing)
    budget = 100 * MIB + rate * (spacing * (KEPT - 1) + left)
    assert trend.seconds_until(int(budget), later) == pytest.approx(max(0.0, left - later), abs=0.01 + 0.01 * left)


def test_a_peak_is_not_the_size():
    assert trend_of([*range(100, 120), 10_000]).seconds_until(10_000, 0.0) > 0.0


def test_readings_that_come_too_early_are_dropped():
    trend = Trend(spacing=10.0)
    for number in range(200):
        trend.add(number, number * 1000)
    assert trend.slope() == pytest.approx(1000.0)
    assert trend.seconds_until(200_000, now=195.0) == pytest.approx(5.0)


def calls(trend, count, *, peak, kept=0, base=50 * MIB, looks=10, seconds=0.5, chance=None):
    """Calls one after the other, each of so many looks: it climbs by `peak`, and frees all but `kept`."""
    for call in range(count):
        for look in range(looks):
            noise = 0 if chance is None else chance.randrange(MIB)
            held = base + call * kept + peak * look // (looks - 1) + noise
            trend.add((call * looks + look) * seconds / looks, held, settled=look == 0)
    return count * seconds


@given(st.integers(1, 400), st.integers(2, 40), st.floats(0.1, 60.0), st.floats(0.0, 10.0))
def test_what_calls_take_and_free_again_is_no_growth(peak, looks, seconds, spacing):
    trend = Trend(spacing)
    now = calls(trend, 60, peak=peak * MIB, looks=looks, seconds=seconds)
    assert trend.slope() == 0.0
    assert trend.seconds_until(50 * MIB + peak * MIB, now) is None


@given(st.integers(1, 400), st.integers(5, 40), st.floats(0.1, 10.0), st.integers())
def test_nor_is_it_with_noise_and_peaks_just_below_the_budget(peak, looks, seconds, seed):
    trend = Trend(seconds / looks)
    now = calls(trend, 60, peak=peak * MIB, looks=looks, seconds=seconds, chance=random.Random(seed))
    left = trend.seconds_until(51 * MIB + peak * MIB, now)
    assert left is None or left > seconds


@given(st.integers(1, 20), st.integers(10, 100), st.integers(5, 40), st.floats(0.1, 10.0))
def test_what_calls_leave_behind_is_growth_and_its_peaks_count(kept, peak, looks, seconds):
    trend = Trend(seconds / looks)
    now = calls(trend, 40, peak=peak * MIB, kept=kept * MIB, looks=looks, seconds=seconds)
    assert trend.slope() == pytest.approx(kept * MIB / seconds, rel=0.1)
    # The next peaks reach the budget in the tenth call from now.
    budget = 50 * MIB + (40 + 10) * kept * MIB + peak * MIB
    assert trend.seconds_until(budget, now) == pytest.approx(10 * seconds, abs=2.5 * seconds)


def test_one_long_call_is_not_growth_until_it_ends():
    trend = Trend()
    for look in range(200):
        trend.add(look * 0.05, 50 * MIB + look * MIB, settled=look == 0)
    assert (trend.slope(), trend.seconds_until(100 * MIB, 10.0)) == (0.0, None)
    assert trend.climb() == pytest.approx(MIB / 0.05, rel=0.05)  # what else is loaded meanwhile must fit beside it


def test_the_window_is_bounded():
    trend = trend_of([*([0] * 1000), *range(0, KEPT * 10, 10)])
    assert trend.slope() == pytest.approx(200.0)


def test_shrinking_never_reaches_a_budget():
    assert trend_of(range(10_000, 0, -100)).seconds_until(20_000, 0.0) is None


def test_readings_at_one_moment_have_no_slope():
    assert theil_sen([(1.0, 5.0), (1.0, 9.0)]) == 0.0
    assert theil_sen([]) == 0.0


def test_a_forecast_is_cheap():
    trends = [trend_of(random.Random(seed).randbytes(KEPT)) for seed in range(50)]
    began = time.process_time()
    for trend in trends:
        trend.slope()
    assert (time.process_time() - began) / len(trends) < 0.002


# What a request leaves behind


@pytest.mark.parametrize(
    ("size", "bound"), [(0, 1), (1, 4), (3, 4), (4, 16), (15, 16), (16, 64), (1000, 1024), (1024, 4096)]
)
def test_size_classes_are_powers_of_four(size, bound):
    assert size_class(size.bit_length()) == bound


@given(st.integers(0, 2**62))
def test_a_size_is_below_its_class_and_not_far(size):
    bound = size_class(size.bit_length())
    assert size < bound <= max(1, 4 * size)


@given(st.dictionaries(st.sampled_from([64, 256, 1024, 4096]), st.integers(0, 10 * MIB), min_size=1), st.integers())
def test_costs_are_learned_although_sizes_come_mixed_and_memory_goes_up_and_down(costs, seed):
    chance = random.Random(seed)
    learner = GrowthPerRequest()
    noise = 0
    for _ in range(400):
        answered = {one: chance.randrange(0, 20) for one in costs}
        before, noise = noise, chance.randrange(0, 2 * MIB)
        learner.learn(sum(costs[one] * count for one, count in answered.items()) + noise - before, answered)
    for one, cost in learner.costs().items():
        assert cost == pytest.approx(costs[one], rel=0.05, abs=64 * 1024)


def test_costs_follow_when_they_change():
    learner = GrowthPerRequest()
    for cost in (5 * MIB, 0):
        for _ in range(1500):
            learner.learn(10 * cost, {64: 10})
    assert learner.costs()[64] < MIB // 64


def test_what_shrinks_costs_nothing_and_nothing_learned_is_nothing():
    learner = GrowthPerRequest()
    assert learner.costs() == {}
    learner.learn(-5 * MIB, {64: 10})
    assert learner.costs() == {64: 0}


def test_one_answer_is_no_proof():
    learner = GrowthPerRequest()
    learner.learn(100 * MIB, {64: 1})
    assert learner.costs()[64] < 30 * MIB
