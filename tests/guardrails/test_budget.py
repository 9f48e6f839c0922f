from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.strategies.budget import RetryBudget, budget_of
from guardrails.testing import FakeClock


def spend(budget):
    number = 0
    while budget.withdraw():
        number += 1
    return number


def test_it_starts_with_its_reserve(clock):
    budget = RetryBudget(0.1, clock=clock)
    assert budget.balance == 10
    assert spend(budget) == 10


def test_ten_calls_at_a_tenth_pay_for_one(clock):
    budget = RetryBudget(0.1, reserve=0, min_per_second=0, clock=clock)
    count = budget.count_calls()
    for number in range(1, 31):
        count()
        assert budget.withdraw() is (number % 10 == 0)


def test_time_pays_for_those_who_make_few_calls_up_to_the_reserve(clock):
    budget = RetryBudget(0, min_per_second=2, reserve=3, clock=clock)
    assert spend(budget) == 3
    clock.advance(0.5)
    assert spend(budget) == 1
    clock.advance(3600)
    assert spend(budget) == 3


def test_time_adds_nothing_to_what_calls_have_earned(clock):
    budget = RetryBudget(1, reserve=2, most=50, clock=clock)
    count = budget.count_calls()
    for _ in range(20):
        count()
    assert budget.balance == 22
    clock.advance(1000)
    assert budget.balance == 22


def test_what_calls_earn_is_bounded(clock):
    budget = RetryBudget(0.5, most=20, clock=clock)
    count = budget.count_calls()
    for _ in range(1000):
        count()
    assert spend(budget) == 20


def test_an_attempt_not_made_is_given_back(clock):
    budget = RetryBudget(0, reserve=1, most=1, min_per_second=0, clock=clock)
    assert budget.withdraw()
    budget.give_back()
    assert spend(budget) == 1
    budget.give_back()
    budget.give_back()
    assert budget.balance == 1


def test_looking_is_no_call(clock):
    budget = RetryBudget(1, reserve=0, clock=clock)
    count = budget.count_calls()
    count()
    assert [budget.balance for _ in range(5)] == [1] * 5


def test_a_call_that_both_retry_and_hedge_see_brings_its_share_once(clock):
    budget = RetryBudget(1, reserve=0, clock=clock)
    attempt = budget.count_attempts()
    attempt()
    assert budget.balance == 1  # a hedge alone
    call = budget.count_calls()
    for _ in range(3):
        call()
        attempt()
    assert budget.balance == 4


steps = st.lists(
    st.one_of(
        st.tuples(st.just("calls"), st.integers(1, 60)),
        st.tuples(st.just("wait"), st.floats(0, 20)),
        st.tuples(st.just("retries"), st.integers(1, 40)),
        st.tuples(st.just("back"), st.just(1)),
    ),
    max_size=60,
)


@given(
    st.floats(0, 1),
    st.floats(0, 5),
    st.floats(0, 20),
    st.floats(0, 50),
    steps,
)
def test_in_no_window_are_there_more_than_share_and_minimum(share, per_second, reserve, more, steps):
    clock = FakeClock()
    budget = RetryBudget(share, min_per_second=per_second, reserve=reserve, most=reserve + more, clock=clock)
    count = budget.count_calls()
    # After each step: the time, the calls so far, the attempts so far.
    marks = [(clock.now(), 0, 0)]
    calls = made = 0
    for what, amount in steps:
        if what == "calls":
            for _ in range(amount):
                count()
            calls += amount
        elif what == "wait":
            clock.advance(amount)
        elif what == "back":
            if made:
                budget.give_back()
                made -= 1
        else:
            made += sum(budget.withdraw() for _ in range(amount))
        marks.append((clock.now(), calls, made))
        assert 0 <= budget.balance <= reserve + more
    for number, (began, calls_before, made_before) in enumerate(marks):
        saved = reserve if number == 0 else reserve + more
        for ended, calls_then, made_then in marks[number:]:
            most = saved + share * (calls_then - calls_before) + per_second * (ended - began)
            assert made_then - made_before <= most + 1e-6


@given(st.floats(0.01, 1), st.lists(st.integers(0, 30), max_size=30))
def test_when_it_is_looked_at_makes_no_difference(share, calls):
    lazy, eager = (RetryBudget(share, reserve=0, min_per_second=0, most=5, clock=FakeClock()) for _ in range(2))
    count_lazy, count_eager = lazy.count_calls(), eager.count_calls()
    for number in calls:
        for _ in range(number):
            count_lazy()
            count_eager()
            _ = eager.balance
    assert lazy.balance == pytest.approx(eager.balance)


def test_threads_share_it(clock):
    budget = RetryBudget(0.5, reserve=0, most=1e9, min_per_second=0, clock=clock)
    count = budget.count_calls()
    made = []

    def work():
        number = 0
        for _ in range(4000):
            count()
            number += budget.withdraw()
        made.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(made) + spend(budget) == 8000


def test_it_says_what_it_is(clock):
    budget = RetryBudget(0.1, clock=clock)
    assert budget.describe() == "budget 0.1 of the calls"
    assert repr(budget) == "<RetryBudget: 0.1 of the calls, 1 a second, balance 10>"


def test_what_a_guard_is_given(clock):
    shared = RetryBudget(clock=clock)
    assert budget_of(shared, clock) is shared
    assert budget_of(None, clock) is None
    assert budget_of(0.25, clock).share == 0.25
    with pytest.raises(
        TypeError, match="budget takes a share of the calls from 0 to 1, a RetryBudget or None, not str"
    ):
        budget_of("10%", clock)
    with pytest.raises(TypeError, match="not bool"):
        budget_of(True, clock)
    with pytest.raises(ValueError, match=r"0.1 is one in ten\), not 10"):
        budget_of(10, clock)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"share takes a share of the calls from 0 to 1 .* not 20"):
        RetryBudget(20)
    with pytest.raises(ValueError, match="min_per_second takes a number from 0 on"):
        RetryBudget(min_per_second=-1)
    with pytest.raises(ValueError, match="reserve takes a number from 0 on"):
        RetryBudget(reserve=float("nan"))
    with pytest.raises(TypeError, match="share takes a number, not str"):
        RetryBudget("0.1")
    with pytest.raises(ValueError, match="most takes at least reserve, 10, not 5"):
        RetryBudget(most=5)
