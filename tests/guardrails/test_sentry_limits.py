"""How much may be sent: the arithmetic."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from guardrails.telemetry.sentry.limits import MAX_KINDS, Allowance


class Now:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_so_many_alike_then_one_at_a_time_with_what_was_held_back():
    now = Now()
    allowance = Allowance(3, 30, 300.0, now)
    assert [allowance.admit("a") for _ in range(1000)] == [0, 0, 0, *[None] * 997]
    assert allowance.held_back == 997
    now.now += 99.9
    assert allowance.admit("a") is None
    now.now += 0.1
    assert allowance.admit("a") == 998
    assert allowance.admit("a") is None
    now.now += 300
    assert [allowance.admit("a") for _ in range(4)] == [1, 0, 0, None]


def test_so_many_in_all():
    now = Now()
    allowance = Allowance(3, 5, 300.0, now)
    assert [allowance.admit(kind) for kind in "abcdefg"] == [0, 0, 0, 0, 0, None, None]
    now.now += 60
    # What is refused for all of them takes nothing from its own.
    assert [allowance.admit("f"), allowance.admit("g")] == [1, None]


STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 20)), max_size=120)


@given(STEPS, st.integers(1, 4), st.integers(0, 6), st.sampled_from([1.0, 7.0, 60.0]))
def test_no_window_has_more_than_twice_and_everything_is_counted_once(steps, alike, more, per):
    now = Now()
    in_all = alike + more
    allowance = Allowance(alike, in_all, per, now)
    passed, told, of = [], dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)
    for kind, pause in steps:
        now.now += pause
        of[kind] += 1
        held_back = allowance.admit(kind)
        if held_back is not None:
            passed.append((now.now, kind))
            told[kind] += 1 + held_back
    for start, _ in passed:
        window = [kind for at, kind in passed if start <= at < start + per]
        assert len(window) <= 2 * in_all
        assert all(window.count(kind) <= 2 * alike for kind in "abc")
    assert len(passed) + allowance.held_back == len(steps)
    for kind in "abc":
        now.now += 10 * per
        if of[kind]:
            assert told[kind] + (allowance.admit(kind) or 0) == of[kind]


def test_it_remembers_a_bounded_number_of_kinds():
    allowance = Allowance(1, 1_000_000, 60.0, Now())
    for number in range(MAX_KINDS + 1):
        assert allowance.admit(number) == 0
    assert allowance.admit(MAX_KINDS) is None
    assert allowance.admit(0) == 0  # forgotten
    assert len(allowance._kinds) == MAX_KINDS


def test_threads_share_one_allowance():
    allowance = Allowance(10, 10, 60.0, Now())
    passed = []
    threads = [
        threading.Thread(target=lambda: passed.extend(allowance.admit("a") for _ in range(200))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([one for one in passed if one is not None]) == 10
    assert allowance.held_back == 1590
