"""Twelve kinds of histories whatever the seed, and days made of recorded loads of real runners."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.memory_histories import recorded
from benchmarks.memory_histories.replay import judge_kind, leaking, play, two_processes, watch_kind
from benchmarks.memory_histories.synthetic import HOUR, KINDS
from guardrails.memory.leak import verdict

RECORDED = recorded.read()
REAL_LEAK = "leaky leaky"
MINUTE = 60.0

#: Minutes from the beginning of a leak within which there is an alarm.
WITHIN = {"slow leak, 1 MiB/min under 20 MiB": 240, "fast leak": 30, "leak that stops": 240}


@pytest.mark.parametrize("kind", KINDS)
def test_the_verdict_is_right_with_a_hundred_seeds(kind):
    every = 300.0 if kind == "daily wave" else 60.0
    assert judge_kind(KINDS[kind], range(100), every).wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_watch_raises_an_alarm_for_leaks_and_for_nothing_else(kind):
    # More seeds: python -m benchmarks.memory_histories report
    score = watch_kind(KINDS[kind], range(1))
    assert (score.false, score.missed) == ([], [])
    assert all(after < WITHIN[kind] * MINUTE for after in score.after)
    assert bool(score.after) is (kind in WITHIN)


def test_of_two_processes_the_one_that_leaks_is_named():
    heard = {name: play(samples) for name, samples in two_processes(1).items()}
    assert heard["steady"].alarms == []
    assert len(heard["leaking"].alarms) == 1


def test_what_was_recorded_is_there():
    assert {"embed", "generate", "pool", "render", "parse", "cycles", "cached", "calm"} <= {
        name.split()[0] for name in RECORDED
    }
    assert all(len(sizes) > 250 and min(sizes) > 1000 for sizes in RECORDED.values())


@pytest.mark.parametrize("name", sorted(set(RECORDED) - {REAL_LEAK}))
def test_a_day_of_a_real_load_raises_no_alarm(name):
    assert play(recorded.day(RECORDED[name], 1)).alarms == []


@pytest.mark.parametrize("name", ["embed embed", "generate llama", "cycles cycles"])
def test_nor_does_it_with_a_daily_wave_of_30_per_cent(name):
    assert play(recorded.day(RECORDED[name], 2, wave=0.3)).alarms == []


def test_a_real_leak_in_a_real_runner_raises_one():
    sizes = RECORDED[REAL_LEAK]
    ((when, found), *_) = play(recorded.samples(sizes)).alarms
    assert when < 7 * MINUTE
    assert found.reaches("512MiB").low < 20 * MINUTE
    assert verdict(recorded.samples(sizes[:500])).leaking


@pytest.mark.parametrize("name", ["embed embed", "generate llama", "cycles cycles"])
def test_a_leak_under_a_real_load_raises_one(name):
    day = recorded.day(RECORDED[name], 3, hours=6)
    alarms = play(leaking(day, 1.0)).alarms
    assert HOUR < alarms[0][0] < 3 * HOUR


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_the_verdict_on_a_recording_is_that_of_its_load(name):
    # What fills, or warms up, is at rest in its second half.
    sizes = RECORDED[name]
    late = verdict(itertools.islice(recorded.samples(sizes), len(sizes) // 3, len(sizes) - 40))
    assert late.leaking is (name == REAL_LEAK), late
