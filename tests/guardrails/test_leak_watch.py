"""The watch: alarms that come in time, stay while it leaks, go when it is over, and come for nothing else."""

from __future__ import annotations

import math
import random
import sys
import time

import pytest

from guardrails.memory.leak import LeakWatch
from guardrails.memory.leak.watch import _LENGTHS

MIB = 1 << 20
MINUTE = 60.0
HOUR = 3600.0


def feed(watch, level, until, since=0.0, every=5.0, noise=1.0):
    """Feed a level in MiB at a time in seconds; when the alarm came and went."""
    chance = random.Random(1)
    changes = []
    now = since
    while now < until:
        if watch.add(now, (level(now) + chance.gauss(0, noise)) * MIB):
            changes.append((now, watch.alarm is not None))
        now += every
    return changes


def test_an_alarm_comes_once_stays_while_it_leaks_and_goes_when_it_is_over():
    watch = LeakWatch()
    (raised, up), (cleared, still_up) = feed(watch, lambda t: 300 + min(max(0, t - HOUR), 3 * HOUR) / 30, 8 * HOUR)
    assert (up, still_up) == (True, False)
    assert HOUR < raised < 2 * HOUR
    assert 4 * HOUR < cleared < 6 * HOUR
    assert watch.alarm is None


def test_the_alarm_is_the_last_verdict():
    watch = LeakWatch()
    feed(watch, lambda t: 300 + t / 30, 2 * HOUR)
    assert watch.alarm.leaking
    assert watch.alarm.level / MIB == pytest.approx(540, rel=0.02)
    assert watch.alarm.slope * MINUTE / MIB == pytest.approx(2, rel=0.05)
    assert watch.alarm.reaches("1GiB").seconds == pytest.approx(242 * MINUTE, rel=0.1)


def test_a_level_that_was_there_before_is_no_news():
    # A batch of forty minutes, every two hours, that takes half as much again: the first time it may be anything.
    def level(seconds):
        return 300 + 150 * min(1.0, seconds % (2 * HOUR) / (40 * MINUTE)) * (seconds % (2 * HOUR) < 45 * MINUTE)

    changes = feed(LeakWatch(), level, 24 * HOUR)
    assert [when for when, _ in changes if when > 2 * HOUR] == []


def test_memory_that_drops_ends_the_alarm_within_minutes():
    watch = LeakWatch()
    changes = feed(watch, lambda t: 300 + t / 6 if t < HOUR else 300, 2 * HOUR)
    assert [up for _, up in changes] == [True, False]
    assert HOUR < changes[1][0] < HOUR + 10 * MINUTE


def test_another_process_begins_with_nothing():
    watch = LeakWatch()
    feed(watch, lambda t: 300 + t / 6, HOUR)
    assert watch.alarm is not None
    watch.reset()
    assert watch.alarm is None
    assert feed(watch, lambda _: 300, 2 * HOUR, since=HOUR) == []


def test_the_warm_up_is_not_looked_at():
    def grows_for_ten_minutes(seconds):
        return 100 + min(seconds, 10 * MINUTE)

    assert feed(LeakWatch(), grows_for_ten_minutes, HOUR)
    assert feed(LeakWatch(warm_up=10 * MINUTE), grows_for_ten_minutes, HOUR) == []


def test_growth_below_the_least_does_not_matter():
    def little(seconds):
        return 20 + seconds / 1800  # a third more, and yet only seven MiB

    assert feed(LeakWatch(), little, 3.5 * HOUR, noise=0.05) == []
    assert len(feed(LeakWatch(least="1MiB"), little, 3.5 * HOUR, noise=0.05)) == 1


def test_with_a_budget_growth_matters_by_the_room_that_is_left():
    def level(seconds):
        return 3000 + seconds / 60

    assert feed(LeakWatch(), level, 3 * HOUR) == []
    ((raised, _),) = feed(LeakWatch(budget="3200MiB"), level, 3 * HOUR)
    assert raised < 90 * MINUTE  # and the budget is reached after 200


def test_all_windows_scale_with_the_resolution():
    watch = LeakWatch(resolution=0.1, warm_up=0)
    ((raised, up),) = feed(watch, lambda t: 100 + 20 * t, 10.0, every=0.05, noise=0.1)
    assert up
    assert raised < 5.0


def test_a_wrong_reading_now_and_then_changes_nothing():
    watch = LeakWatch()
    chance = random.Random(2)
    changes = []
    for second in range(int(4 * HOUR)):
        size = (300 + second / 60 + chance.gauss(0, 2)) * MIB
        if second % 601 == 7:
            size = chance.choice((0.0, 1e14))
        if watch.add(second, size):
            changes.append(second)
    assert len(changes) == 1


def test_samples_once_a_minute_or_with_gaps_will_do():
    ((raised, _),) = feed(LeakWatch(), lambda t: 300 + t / 60, 6 * HOUR, every=60.0)
    assert raised < 3 * HOUR
    chance = random.Random(3)
    watch, changes, now = LeakWatch(), [], 0.0
    while now < 6 * HOUR:
        if watch.add(now, (300 + now / 60 + chance.gauss(0, 1)) * MIB):
            changes.append(now)
        now += chance.choice((1.0, 1.0, 5.0, 30.0, 400.0))
    assert len(changes) == 1


def test_the_history_is_bounded():
    watch = LeakWatch(resolution=1.0)
    feed(watch, lambda t: 300 + 50 * math.sin(t / 5000), 26 * HOUR, every=24.0)
    kept = [len(tier.kept) for tier in watch._tiers]
    assert kept == [60] * len(_LENGTHS)
    assert all(len(tier.open) <= 60 for tier in watch._tiers)
    buckets = [one for tier in watch._tiers for one in tier.kept]
    assert sum(sys.getsizeof(one) + sum(map(sys.getsizeof, one)) for one in buckets) < 100_000


def test_a_sample_costs_next_to_nothing():
    watch = LeakWatch()
    samples = [(float(second), float(300 * MIB + second % 7)) for second in range(20_000)]
    began = time.process_time()
    for seconds, size in samples:
        watch.add(seconds, size)
    assert (time.process_time() - began) / len(samples) < 50e-6  # 2 us, without development mode


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"share": 0}, ValueError, "share takes a number above 0 and at most 1, not 0"),
        ({"share": 1.5}, ValueError, "share"),
        ({"share": "half"}, TypeError, "share takes a number, not str"),
        ({"share": math.nan}, ValueError, "share"),
        ({"budget": "much"}, ValueError, "budget"),
        ({"least": 0}, ValueError, "least"),
        ({"patience": 0}, ValueError, "patience takes a whole number of 1 and more, not 0"),
        ({"patience": 1.5}, TypeError, "patience takes a whole number, not float"),
        ({"warm_up": -1}, ValueError, "warm_up"),
        ({"resolution": 0}, ValueError, "resolution takes a number above 0, not 0"),
        ({"resolution": math.inf}, ValueError, "resolution"),
    ],
)
def test_misuse_names_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        LeakWatch(**arguments)


@pytest.mark.parametrize(
    "wrong", [(5.0, math.nan), (5.0, math.inf), (5.0, -1.0), (math.nan, 1.0), (math.inf, 1.0), (-math.inf, 1.0)]
)
def test_a_sample_that_cannot_be_is_refused_and_changes_nothing(wrong):
    watch = LeakWatch()
    feed(watch, lambda t: 300 + t / 30, HOUR)
    before = [list(tier.kept) for tier in watch._tiers], list(watch._pending), watch._last
    with pytest.raises(ValueError, match="a finite time in seconds and a finite size in bytes of at least 0"):
        watch.add(*wrong)
    with pytest.raises(TypeError):
        watch.add("now", 5)
    assert ([list(tier.kept) for tier in watch._tiers], list(watch._pending), watch._last) == before


@pytest.mark.parametrize("step", [1.0, HOUR, 30 * 24 * HOUR])
def test_a_clock_that_steps_back_does_not_make_it_deaf(step):
    watch = LeakWatch()
    feed(watch, lambda _: 300, HOUR)
    kept = len(watch._tiers[0].kept)
    since = HOUR - step
    changes = feed(watch, lambda t: 300 + (t - since) / 15, since + 2 * HOUR, since=since)
    assert [up for _, up in changes] == [True]
    assert changes[0][0] - since < HOUR
    assert len(watch._pending) < 10
    assert kept == len(watch._tiers[0].kept) == 60


def test_others_may_go_on_before_each_window_that_is_judged():
    calls = []
    watch = LeakWatch(between=lambda: calls.append(None))
    for second in range(0, 4 * 3600, 10):
        _ = watch.add(float(second), 2e8 + 1e5 * second)
    # 240 looks: each at the shortest window and at that of an hour, and some at the one of five hours.
    assert 400 < len(calls) < 3 * 240
    with pytest.raises(TypeError, match="between"):
        LeakWatch(between=3)
