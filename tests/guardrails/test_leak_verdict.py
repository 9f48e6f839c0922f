"""The verdict: what is promised of it whatever the numbers, and what it says about each shape."""

from __future__ import annotations

import math
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.memory.leak import Verdict, verdict
from guardrails.memory.leak.buckets import bucketed
from guardrails.memory.leak.judge import judge

MIB = 1 << 20
MINUTE = 60.0


def history(level, minutes=120, every=15.0, noise=0.0, seed=1):
    """(seconds, bytes) of a level in MiB at a time in seconds."""
    chance = random.Random(seed)
    count = int(minutes * MINUTE / every)
    return [(n * every, (level(n * every) + chance.gauss(0, noise)) * MIB) for n in range(count)]


lengths = st.integers(12, 300)


# Whatever the numbers


@given(st.integers(1, 2**40), st.floats(0.03, 100.0), lengths, st.floats(0.01, 1e4))
def test_a_ramp_without_noise_always_leaks(level, grows_by, count, every):
    slope = level * grows_by / (count - 1) / every
    found = verdict([(n * every, level + slope * n * every) for n in range(count)])
    assert found.leaking, found
    assert found.slope == pytest.approx(slope, rel=0.01)
    assert found.slope_low <= found.slope <= found.slope_high


@given(st.integers(0, 2**40), st.integers(1, 300), st.floats(0.01, 1e5))
def test_a_constant_never_leaks(level, count, every):
    found = verdict([(n * every, level) for n in range(count)])
    assert not found.leaking
    assert found.shape == ("steady" if count >= 12 else "unknown")
    assert found.level == level


@given(st.integers(1, 2**40), st.floats(0.03, 0.95), lengths)
def test_what_shrinks_never_leaks(level, by, count):
    assert not verdict([(float(n), level * (1 - by * n / count)) for n in range(count)]).leaking


shapes = st.sampled_from(
    [
        lambda t: 300 + t / 60,
        lambda t: 300 + 100 * (1 - math.exp(-t / 900)),
        lambda t: 300 + (80 if t > 3000 else 0),
        lambda t: 300 + t % 700 / 10,
        lambda t: 300.0,
    ]
)


@settings(max_examples=40)
@given(shapes, st.integers(0, 99), st.floats(-1e9, 1e9), st.floats(0.01, 1000))
def test_neither_the_clock_nor_the_unit_matters(level, seed, shift, scale):
    samples = history(level, noise=3, seed=seed, every=32.0)
    found = verdict(samples)
    shift = float(round(shift))  # so that adding it loses nothing of the times
    moved = verdict([(seconds + shift, size * scale) for seconds, size in samples])
    assert (moved.leaking, moved.shape) == (found.leaking, found.shape)
    assert moved.slope == pytest.approx(found.slope * scale, rel=1e-6, abs=1e-6 * scale)


@settings(max_examples=30)
@given(shapes, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(level, chance):
    samples = history(level, noise=3)
    mixed = list(samples)
    chance.shuffle(mixed)
    assert verdict(mixed) == verdict(samples) == verdict(iter(samples))


@settings(max_examples=30)
@given(shapes, st.dictionaries(st.integers(0, 239), st.sampled_from([0.0, 1.0, 1e15]), max_size=6))
def test_a_few_wrong_readings_change_nothing(level, wrong):
    samples = history(level, noise=1, every=30.0)
    places = [place for place in sorted(wrong) if all(abs(place - other) > 16 for other in wrong if other != place)]
    spoilt = [(seconds, wrong[n] if n in places else size) for n, (seconds, size) in enumerate(samples)]
    assert verdict(spoilt).leaking is verdict(samples).leaking


@given(st.lists(st.tuples(st.floats(-1e11, 1e11), st.floats(0, 2.0**62)), max_size=60))
def test_whatever_comes_there_is_a_verdict(samples):
    found = verdict(samples)
    assert found.leaking is (found.shape == "growth")
    assert found.describe().endswith(".")
    assert found.leaking or found.reaches(1) is None


# The shapes


@pytest.mark.parametrize(
    ("shape", "level", "minutes", "noise"),
    [
        ("growth", lambda t: 300 + t / 60, 120, 10),
        ("growth", lambda t: 300 + max(0, t - 5400) / 30, 120, 3),  # it began late
        ("growth", lambda t: 300 + t / 60 + (150 if t > 2000 else 0), 120, 3),  # and jumped
        ("growth", lambda t: 300 + t / 60 + t % 150 / 3, 480, 1),  # under the collector's teeth
        ("growth", lambda t: 300 + t / 60 + t % 3600 / 60, 720, 1),  # teeth of an hour
        ("growth", lambda t: 300 + 4 * (t // 300), 120, 1),  # a staircase: large requests, each keeps something
        ("steady", lambda _: 300.0, 120, 20),
        ("sawtooth", lambda t: 300 + t % 1500 / 10, 120, 1),
        ("plateau", lambda t: 300 + min(t, 3600) / 30, 120, 3),
        ("saturating", lambda t: 300 + 200 * (1 - math.exp(-t / 7000)), 120, 3),
        ("step", lambda t: 300 + (100 if t > 4000 else 0), 120, 3),
        ("restart", lambda t: 300 + 100 * (1 - math.exp(-(t % 4000) / 200)), 120, 1),
        ("shrinking", lambda t: 300 - t / 60, 120, 3),
        ("wave", lambda t: 300 - 50 * math.cos(2 * math.pi * t / 86_400), 3 * 1440, 5),
        ("wave", lambda t: 300 - 50 * math.cos(2 * math.pi * (t + 7200) / 86_400), 480, 1),  # a flank alone
    ],
)
def test_the_shape(shape, level, minutes, noise):
    found = verdict(history(level, minutes, noise=noise))
    assert found.shape == shape
    assert found.leaking is (shape == "growth")


def test_a_leak_under_a_daily_wave_is_found_after_two_days():
    def level(seconds):
        return 300 - 40 * math.cos(2 * math.pi * seconds / 86_400) + 40 * seconds / 86_400

    found = verdict(history(level, 3 * 1440, every=300.0, noise=3))
    assert found.leaking
    assert found.slope * 86_400 / MIB == pytest.approx(40, rel=0.1)


def test_after_a_restart_only_what_came_after_it_counts():
    leaks_again = verdict(history(lambda t: 100 + t % 7200 / 30, 210))
    assert leaks_again.leaking
    assert leaks_again.seconds < 5400


def test_a_leak_that_stopped_is_none_once_it_was_flat_for_a_while():
    for flat, leaking in ((0, True), (60, False), (180, False)):
        found = verdict(history(lambda t: 300 + min(t, 7200) / 60, 120 + flat, noise=2))
        assert found.leaking is leaking, flat


def test_growth_below_one_per_cent_is_none():
    assert not verdict(history(lambda t: 300 + 2 * t / 7200)).leaking
    assert verdict(history(lambda t: 300 + 5 * t / 7200)).leaking


@pytest.mark.parametrize("count", range(12))
def test_fewer_than_twelve_samples_say_nothing(count):
    found = verdict([(float(n), 1000.0 * n) for n in range(count)])
    assert (found.leaking, found.shape, found.slope, found.p) == (False, "unknown", 0.0, 1.0)


# When a budget is reached


def test_a_budget_is_reached_when_it_is_reached():
    found = verdict(history(lambda t: 300 + t / 60, 60, noise=2))
    reached = found.reaches("402MiB")
    assert reached.seconds == pytest.approx(42 * MINUTE, rel=0.05)
    assert reached.low < 42 * MINUTE < reached.high < 50 * MINUTE
    assert found.reaches("200MiB") == (0.0, 0.0, 0.0)
    assert verdict(history(lambda _: 300)).reaches("402MiB") is None


def test_the_interval_of_a_forecast_mostly_holds_the_truth():
    held = 0
    for seed in range(60):
        reached = verdict(history(lambda t: 300 + t / 60, 240, noise=10, seed=seed, every=30.0)).reaches("1000MiB")
        held += reached.low - 5 * MINUTE <= 460 * MINUTE <= reached.high + 5 * MINUTE
    assert held >= 54


def test_it_says_it_in_a_sentence():
    found = verdict(history(lambda t: 300 + t / 60, 60))
    assert found.describe() == "It has grown by 1 MiB a minute (1 MiB to 1 MiB) for 54 min, to 359 MiB."
    assert found.describe("402MiB").endswith("to 359 MiB, and reaches its budget in 43 min (43 min to 43 min).")
    assert found.describe("100MiB").endswith("and is past its budget.")
    assert verdict([]).describe("1GiB") == "Too few samples to say anything."


# Misuse, and cost


@pytest.mark.parametrize("wrong", [[1, 2, 3], [(1, 2, 3)], [("now", 5)], [None], [(1, None)]])
def test_samples_that_are_no_pairs_of_numbers_are_refused(wrong):
    with pytest.raises(TypeError, match=r"samples takes pairs of numbers, \(seconds, bytes\)"):
        verdict(wrong)


@pytest.mark.parametrize(
    "wrong", [(30.0, math.nan), (30.0, math.inf), (30.0, -1), (30.0, 2**63), (math.nan, 5), (-math.inf, 5), (1e12, 5)]
)
def test_a_sample_that_cannot_be_is_refused_and_named(wrong):
    samples = history(lambda _: 300.0, 60)
    samples[7] = wrong
    said = re.escape(
        f"samples[7] must be a finite time in seconds and a finite size in bytes of at least 0, not {wrong!r}"
    )
    with pytest.raises(ValueError, match=said):
        verdict(samples)


def test_a_time_may_be_negative_and_a_size_0():
    assert verdict([(second, 0) for second in range(-7200, 0, 60)]).shape == "steady"


def test_a_budget_that_is_no_size_is_refused():
    with pytest.raises(ValueError, match="budget"):
        verdict([]).reaches("much")
    with pytest.raises(TypeError, match="budget"):
        verdict([]).describe([])


def test_a_verdict_cannot_be_changed():
    with pytest.raises(AttributeError):
        verdict([]).leaking = True
    assert isinstance(verdict([]), Verdict)


def test_a_judgement_is_cheap():
    buckets = bucketed(history(lambda t: 300 + t / 60, 240, noise=20), 60)
    taken = []
    for _ in range(20):
        began = time.perf_counter()
        judge(buckets, sure=True)
        taken.append(time.perf_counter() - began)
    # 0.8 ms without development mode and without anything beside it.
    assert min(taken) < 0.006
