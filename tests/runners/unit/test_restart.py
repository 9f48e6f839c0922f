"""When crashed workers are started again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runners.supervision.restart import RestartPolicy

times = st.lists(st.floats(0, 1000), min_size=1, max_size=60).map(sorted)


def test_at_once_then_doubling_then_failed():
    policy = RestartPolicy(intensity=4, period=60, backoff=0.1, max_backoff=0.3, probe_interval=7)
    decisions = [policy.crashed(now) for now in range(6)]
    assert [d.delay for d in decisions] == [0.0, 0.1, 0.2, 0.3, 7, 7]
    assert [d.failed for d in decisions] == [False] * 4 + [True] * 2


def test_crashes_longer_ago_than_the_period_do_not_count():
    policy = RestartPolicy(intensity=1, period=10)
    assert not any(policy.crashed(now).failed for now in range(0, 200, 10))
    assert policy.crashed(199).failed


def test_a_worker_that_had_answered_is_followed_at_once_and_still_counts():
    policy = RestartPolicy(intensity=4, period=60, backoff=0.1, probe_interval=7)
    assert [policy.crashed(now, productive=True).delay for now in range(4)] == [0.0] * 4
    assert policy.crashed(4, productive=True).failed


def test_only_crashes_in_a_row_without_an_answer_make_the_delay_grow():
    policy = RestartPolicy(intensity=100, backoff=0.1)
    useful = [False, False, False, True, False, False]
    assert [policy.crashed(0, productive=it).delay for it in useful] == [0.0, 0.1, 0.2, 0.0, 0.1, 0.2]


def test_recovered_forgives():
    policy = RestartPolicy(intensity=0)
    assert policy.crashed(0).failed
    policy.recovered()
    assert policy._crashes == type(policy._crashes)()
    assert RestartPolicy(intensity=1).crashed(1).delay == 0.0


@given(times, st.integers(0, 5), st.floats(1, 100), st.floats(0.5, 1.0))
def test_failed_exactly_when_there_were_more_crashes_in_the_period(when, intensity, period, jitter):
    policy = RestartPolicy(intensity=intensity, period=period)
    for number, now in enumerate(when):
        decision = policy.crashed(now, jitter)
        recent = sum(earlier > now - period for earlier in when[: number + 1])
        assert decision.failed == (recent > intensity)
        assert len(policy._crashes) == recent


@given(st.integers(1, 3000), st.floats(0.001, 10), st.floats(0.01, 100), st.floats(0.5, 1.0))
def test_delays_are_bounded_however_many_crashes(count, backoff, most, jitter):
    policy = RestartPolicy(intensity=10_000, backoff=backoff, max_backoff=most)
    delays = [policy.crashed(0.0, jitter).delay for _ in range(count)]
    assert delays == sorted(delays)
    assert 0.0 <= delays[-1] <= most * jitter
