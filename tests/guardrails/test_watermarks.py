from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.memory.reading import Scope
from guardrails.memory.watermarks import Watermarks

SCOPES = st.lists(st.builds(Scope, st.just("s"), st.integers(0, 200), st.integers(1, 100)), max_size=4)
MARKS = (
    st.lists(st.integers(1, 100), min_size=3, max_size=3).map(sorted).map(lambda m: Watermarks(*(x / 100 for x in m)))
)


@given(MARKS, st.lists(SCOPES, max_size=20))
def test_the_level_follows_a_naive_model(marks, readings):
    level = "normal"
    for scopes in readings:
        share = max([scope.used / scope.limit for scope in scopes] or [0])
        expected = "normal"
        if share >= marks.critical:
            expected = "critical"
        elif share >= marks.high or (level != "normal" and share >= marks.low):
            expected = "high"
        level = marks.level(level, scopes)
        assert level == expected


@given(MARKS, SCOPES, st.sampled_from(["normal", "high", "critical"]))
def test_more_use_never_lowers_the_level(marks, scopes, before):
    order = ["normal", "high", "critical"]
    more = [Scope(scope.name, scope.used + 1, scope.limit) for scope in scopes]
    assert order.index(marks.level(before, more)) >= order.index(marks.level(before, scopes))


@given(MARKS, SCOPES, st.sampled_from(["normal", "high", "critical"]))
def test_the_same_reading_twice_changes_nothing_more(marks, scopes, before):
    once = marks.level(before, scopes)
    assert marks.level(once, scopes) == once


@given(MARKS, SCOPES, st.integers(0, 200))
def test_what_fits_now_can_ever_fit(marks, scopes, nbytes):
    if marks.fits(scopes, nbytes):
        assert marks.can_ever_fit(scopes, nbytes)
        assert marks.fits(scopes, max(0, nbytes - 1))


def test_it_reopens_below_the_lower_mark_only():
    marks = Watermarks(low=0.8, high=0.85, critical=0.95)
    level, seen = "normal", []
    for used in (84, 85, 84, 80, 79, 84, 95, 94, 80, 79):
        level = marks.level(level, [Scope("s", used, 100)])
        seen.append(level)
    assert seen == ["normal", "high", "high", "high", "normal", "normal", "critical", "high", "high", "normal"]


def test_the_worst_scope_decides():
    marks = Watermarks()
    assert marks.level("normal", [Scope("a", 10, 100), Scope("b", 96, 100)]) == "critical"
    assert not marks.fits([Scope("a", 10, 100), Scope("b", 80, 100)], 10)


def test_without_a_scope_there_is_no_limit():
    assert Watermarks().level("normal", []) == "normal"
    assert Watermarks().fits([], 10**18)


def test_a_limit_of_zero_is_always_critical():
    assert Watermarks().level("normal", [Scope("s", 0, 0)]) == "critical"
    assert Watermarks().fits([Scope("s", 0, 0)], 1) is False


@pytest.mark.parametrize(
    "marks", [(0, 0.5, 0.9), (0.6, 0.5, 0.9), (0.5, 0.9, 0.8), (0.5, 0.9, 1.1), (0.5, float("nan"), 0.9)]
)
def test_marks_that_do_not_rise_are_refused(marks):
    with pytest.raises(ValueError, match="watermarks must rise"):
        Watermarks(*marks)


def test_what_reaches_the_high_mark_exactly_fits():
    marks = Watermarks(low=0.5, high=0.75, critical=0.875)  # shares that a float holds exactly
    scopes = [Scope("a", 50, 100), Scope("b", 10, 40)]
    assert marks.fits(scopes, 20)
    assert not marks.fits(scopes, 21)
    assert marks.can_ever_fit(scopes, 30)
    assert not marks.can_ever_fit(scopes, 31)
