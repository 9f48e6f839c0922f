"""What a worker may not do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.supervision.exit import Exit
from runners.supervision.limits import Limits

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
    if expected != "fine":
        assert limits.judge_estimate(private) == "look_closer"


def test_the_exact_reading_is_taken_from_nine_tenths_on():
    limits = Limits(soft=1000, hard=2000)
    assert [limits.judge_estimate(size) for size in (899, 900, 5000)] == ["fine", "look_closer", "look_closer"]
    assert Limits().judge_estimate(2**50) == "fine"
    assert Limits(hard=100).judge_estimate(90) == "look_closer"


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
        (Exit(0, None, ""), "exit_0", "exited with status 0"),
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
