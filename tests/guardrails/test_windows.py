from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.gates.windows import ConsecutiveFailures, FailureRate

OUTCOMES = st.lists(
    st.sampled_from(["success", "failure", "clear"]) | st.sampled_from(["success", "failure"]), max_size=80
)


@given(st.integers(1, 6), OUTCOMES)
def test_consecutive_failures_equals_a_naive_model(limit, outcomes):
    window, row = ConsecutiveFailures(limit), 0
    for outcome in outcomes:
        row = row + 1 if outcome == "failure" else 0
        assert (getattr(window, outcome)() is True) == (outcome == "failure" and row >= limit)
        assert window.failures == row


@given(st.integers(1, 100), st.integers(1, 30), st.integers(1, 30), OUTCOMES)
def test_failure_rate_equals_a_naive_model(percent, size, min_calls, outcomes):
    min_calls = min(min_calls, size)
    window, known = FailureRate(percent / 100, size=size, min_calls=min_calls), []
    for outcome in outcomes:
        known = [] if outcome == "clear" else [*known, outcome][-size:]
        failures = known.count("failure")
        trips = (
            outcome == "failure"
            and len(known) >= min_calls
            and Fraction(failures, len(known)) >= Fraction(percent, 100)
        )
        assert (getattr(window, outcome)() is True) == trips
        assert window.failures == failures


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_rate_is_reached_exactly(percent):
    window = FailureRate(percent / 100, size=100, min_calls=100)
    for _ in range(100 - percent):
        window.success()
    assert [window.failure() for _ in range(percent)] == [*[False] * (percent - 1), True]


def test_they_describe_themselves():
    assert ConsecutiveFailures(5).describe() == "opens after 5 failures in a row"
    assert (
        FailureRate(0.5, size=100, min_calls=10).describe() == "opens at 50% failures of the last 100 calls, from 10 on"
    )
