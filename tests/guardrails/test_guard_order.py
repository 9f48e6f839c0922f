from __future__ import annotations

import itertools

import pytest

from guardrails import admit, breaker, guard, timeout
from guardrails.core.guard import Gate, Position, Strategy
from guardrails.core.order import check_order
from guardrails.core.pipeline import Layer


class At(Layer, Gate):
    def __init__(self, *positions):
        self.positions = positions
        self.name = positions[0].name.lower() if positions else "own"

    def describe(self):
        return self.name

    def try_enter(self, call):
        return 1

    def settle(self, ticket, outcome):
        pass


SINGLE = [position for position in Position if position not in {Position.DEADLINE, Position.TIMEOUT}]


def test_the_right_order_is_accepted():
    check_order([At(position) for position in Position])


@pytest.mark.parametrize(("outer", "inner"), list(itertools.permutations(SINGLE, 2)))
def test_two_guards_are_refused_in_the_wrong_order_only(outer, inner):
    if outer < inner:
        check_order([At(outer), At(inner)])
        return
    with pytest.raises(ValueError, match=f"^{outer.name.lower()} is outside {inner.name.lower()}: ") as caught:
        check_order([At(outer), At(inner)])
    assert "check_order=False" in str(caught.value)
    assert "deadline, fallback, cache, retry, hedge, breaker, limiter, admission, timeout" in str(caught.value)


def test_the_error_says_why_it_is_a_trap():
    with pytest.raises(ValueError, match="hammering a dependency that the breaker already knows to be down"):
        check_order([At(Position.BREAKER), At(Position.RETRY)])


def test_guards_that_do_not_touch_are_checked_too():
    with pytest.raises(ValueError, match="limiter is outside retry: retries would pass the limiter unseen"):
        check_order([At(Position.LIMITER), At(), At(Position.TIMEOUT), At(Position.RETRY)])


def test_a_guard_of_ones_own_may_stand_anywhere():
    for place in range(3):
        layers = [At(Position.BREAKER), At(Position.ADMISSION)]
        layers.insert(place, At())
        check_order(layers)


def test_equal_guards_may_follow_each_other():
    check_order([At(Position.BREAKER), At(Position.BREAKER)])


def test_a_timeout_is_a_deadline_outside_or_a_limit_inside(memory):
    circuit, gate = breaker(), admit(concurrency=1, sampler=memory)
    guard(timeout(9), circuit, gate, timeout(1))
    guard(timeout(9), timeout(1))
    guard(circuit, timeout(2), timeout(1))


def test_a_timeout_in_the_middle_is_refused(memory):
    with pytest.raises(
        ValueError, match="attempt stands between breaker and admit: time spent waiting in our own queue"
    ):
        guard(breaker(), timeout(1, name="attempt"), admit(concurrency=1, sampler=memory))


def test_a_wrong_order_can_be_built_on_purpose(memory):
    pipeline = guard(admit(concurrency=1, sampler=memory), breaker(), check_order=False)
    assert pipeline(lambda: 7)() == 7
    # and what was meant stays meant in a larger pipeline, built or stacked
    guard(timeout(9), pipeline)

    @timeout(9)
    @pipeline
    async def work(): ...


def test_stacked_decorators_are_checked_as_one_pipeline(memory):
    with pytest.raises(ValueError, match="admit is outside breaker: calls that an open breaker refuses would first"):

        @admit(concurrency=1, sampler=memory)
        @breaker(name="breaker")
        def work(): ...


def test_a_strategy_is_checked_like_a_gate():
    class Again(Layer, Strategy):
        name = "again"
        positions = (Position.RETRY,)

        def describe(self):
            return "again"

        async def run(self, call, proceed):
            return await proceed()

    guard(Again(), breaker())
    with pytest.raises(ValueError, match="breaker is outside again"):
        guard(breaker(), Again())
