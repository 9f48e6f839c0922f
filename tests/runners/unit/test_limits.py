"""What a worker may not do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.supervision.exit import Exit
from runners.supervision.limits import Limits, Term, both_fit

sizes = st.none() | st.integers(1, 2**40)


@given(sizes, sizes, st.integers(0, 2**41))
def test_budgets(soft, hard, private):
    limits = Limits(soft=soft, hard=hard)
    expected = "fine"
    if soft is not None and private >= soft:
        expected = "replace"
    if hard is not None and private >= hard:
        expected = "kill"
    assert limits.judge(private) == expected
    estimated = limits.judge_estimate(private)
    if expected != "fine":
        assert estimated in ("look_closer", "kill")
    if estimated == "kill":
        assert expected == "kill"


def test_the_exact_reading_is_taken_from_nine_tenths_on():
    limits = Limits(soft=1000, hard=2000)
    assert [limits.judge_estimate(size) for size in (899, 900, 2199)] == ["fine", "look_closer", "look_closer"]
    assert Limits().judge_estimate(2**50) == "fine"
    assert Limits(hard=100).judge_estimate(90) == "look_closer"


def test_far_beyond_the_hard_budget_the_cheap_reading_is_enough():
    assert [Limits(hard=2000).judge_estimate(size) for size in (2199, 2200)] == ["look_closer", "kill"]
    assert Limits(soft=1000).judge_estimate(2**50) == "look_closer"


def test_a_forecast_counts_from_halfway_between_baseline_and_soft_budget():
    limits = Limits(soft=1000)
    assert [limits.worth_a_forecast(size, 600) for size in (799, 800)] == [False, True]
    assert not Limits(hard=1000).worth_a_forecast(2000, 0)


def test_a_replacement_is_due_when_a_load_taken_twice_would_end_after_the_budget_is_reached():
    limits = Limits(soft=1000)
    assert limits.due(4.25, age=100.0, load=2.0)
    assert not limits.due(4.3, age=100.0, load=2.0)
    assert not limits.due(None, age=100.0, load=2.0)
    assert not limits.due(0.0, age=9.9, load=2.0), "too young: it may be about to stop growing"


def test_both_fit_only_with_what_the_others_take_meanwhile():
    assert both_fit(121, 100, 0.0, 5.0)
    assert not both_fit(120, 100, 0.0, 5.0)
    assert not both_fit(140, 100, 4.0, 5.0)
    assert both_fit(121, 100, -50.0, 5.0), "what shrinks may grow again"


@given(st.none() | st.floats(0.1, 1e6), st.none() | st.integers(1, 10**6), st.integers())
def test_a_term_is_at_most_a_tenth_shorter_than_said_and_never_longer(max_age, max_requests, seed):
    limits = Limits(max_age=max_age, max_requests=max_requests)
    term = limits.term(random.Random(seed))
    assert term == limits.term(random.Random(seed))
    if max_age is None:
        assert term.age is None
    else:
        assert max_age * 0.9 <= term.age <= max_age
    if max_requests is None:
        assert term.requests is None
    else:
        assert max(1, int(max_requests * 0.9)) <= term.requests <= max_requests


def test_the_terms_of_workers_that_began_together_differ():
    terms = {Limits(max_age=1000.0, max_requests=1000).term(random.Random(pid)).requests for pid in range(4000, 4010)}
    assert len(terms) > 5


def test_a_term_ends_by_age_or_by_requests():
    term = Term(age=10.0, requests=100)
    assert term.over(9.9, 99) is None
    assert term.over(10.0, 0) == "max_age"
    assert term.over(0.0, 100) == "max_requests"
    assert Term().over(1e9, 10**9) is None


@pytest.mark.parametrize(
    ("in_flight", "busy_for", "since_progress", "abandoned_for", "why"),
    [
        (0, 0.0, 1e9, None, None),
        (1, 5.0, 9.0, None, None),
        (1, 5.0, 11.0, None, "no_progress"),
        (1, 0.0, 9.0, None, None),
        (1, 0.0, 10.5, None, "no_progress"),
        (1, 8.0, 8.0, 2.0, None),
        (1, 8.0, 8.0, 3.5, "abandoned"),
    ],
)
def test_stuck(in_flight, busy_for, since_progress, abandoned_for, why):
    limits = Limits(heartbeat=10.0, cancel_grace=3.0)
    measured = {"busy_for": busy_for, "since_progress": since_progress, "abandoned_for": abandoned_for}
    assert limits.stuck(in_flight=in_flight, **measured) == why


def test_without_a_heartbeat_a_step_may_take_its_time_but_must_begin():
    limits = Limits(cancel_grace=3.0)
    assert limits.stuck(in_flight=1, busy_for=1e6, since_progress=1e6, abandoned_for=None) is None
    assert limits.stuck(in_flight=1, busy_for=0.0, since_progress=3.5, abandoned_for=None) == "not_responding"


# How it ended


@pytest.mark.parametrize(
    ("end", "label", "words"),
    [
        (Exit(0, None, ""), "exit_0", "exited with status 0 without having been asked to"),
        (Exit(7, None, ""), "exit_7", "exited with status 7"),
        (
            Exit(-9, None, ""),
            "sigkill",
            "was killed by SIGKILL; by the kernel if memory ran out, or by another program",
        ),
        (Exit(-11, None, ""), "sigsegv", "was killed by SIGSEGV; a crash in native code"),
        (Exit(-6, None, ""), "sigabrt", "was killed by SIGABRT; native code gave up"),
        (Exit(-15, None, ""), "sigterm", "was killed by SIGTERM"),
        (Exit(-9, "hard_budget", "x"), "hard_budget", "was ended by the runner (hard_budget)"),
        (Exit(-123, None, ""), "signal 123", "was killed by signal 123"),
    ],
)
def test_exits_in_words(end, label, words):
    assert (end.label, end.describe()) == (label, words)


@given(st.integers(-200, 300), st.none() | st.text())
def test_every_exit_has_words(code, reason):
    end = Exit(code, reason, "")
    assert isinstance(end.label, str)
    assert end.describe()
