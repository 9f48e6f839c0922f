from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guardrails.telemetry.thinning import LeftOut, Thinner


def test_so_many_are_let_through_and_the_rest_is_told_when_the_window_closes():
    thinner = Thinner(limit=2, per=60)
    assert [thinner.take("a", number, now=number)[0] for number in range(5)] == [True, True, False, False, False]
    assert thinner.due == 60
    assert thinner.over(59.9) == []
    assert thinner.over(60) == [LeftOut("a", 3, 4, 60)]
    assert thinner.due is None
    assert thinner.take("a", 9, 61) == (True, [])


def test_each_kind_has_a_window_of_its_own():
    thinner = Thinner(limit=1, per=60)
    assert thinner.take("a", 1, 0)[0]
    assert thinner.take("b", 1, 30)[0]
    assert not thinner.take("b", 2, 31)[0]
    assert thinner.take("a", 2, 60) == (True, [])
    assert thinner.take("c", 1, 90) == (True, [LeftOut("b", 1, 2, 60)])


def test_a_window_that_closes_early_says_how_long_it_was():
    thinner = Thinner(limit=1, per=60, max_kinds=1)
    thinner.take("a", 1, 0)
    thinner.take("a", 2, 1)
    assert thinner.take("b", 1, 5) == (True, [LeftOut("a", 1, 2, 5)])
    assert thinner.close(7) == []


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 30))),
    st.integers(1, 3),
    st.floats(1, 50),
    st.integers(1, 4),
)
def test_nothing_is_lost_and_no_window_lets_more_through(steps, limit, per, max_kinds):
    thinner = Thinner(limit=limit, per=per, max_kinds=max_kinds)
    now, through, told = 0.0, {}, {}
    for number, (kind, pause) in enumerate(steps):
        now += pause
        taken, left_out = thinner.take(kind, number, now)
        assert len(thinner) <= max_kinds
        if taken:
            through.setdefault(kind, []).append(now)
        for each in left_out:
            told[each.kind] = told.get(each.kind, 0) + each.count
            assert each.seconds <= per
    for each in thinner.close(now):
        told[each.kind] = told.get(each.kind, 0) + each.count
    for kind in range(6):
        assert len(through.get(kind, [])) + told.get(kind, 0) == sum(each == kind for each, _ in steps)
        if max_kinds == 4 and len({kind for kind, _ in steps}) <= 4:  # no window was closed early
            times = through.get(kind, [])
            for first, later in zip(times, times[2 * limit :], strict=False):
                assert later - first >= per or later > first + per * 0.999999
    assert thinner.close(now) == []
