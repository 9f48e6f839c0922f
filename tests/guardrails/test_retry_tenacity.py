"""tenacity's own objects in our retry."""

from __future__ import annotations

import subprocess
import sys
from types import MappingProxyType

import pytest
import tenacity
import tenacity.asyncio.retry

from guardrails.errors import Rejected
from guardrails.strategies.retry import RetryGaveUp, retry
from guardrails.testing import FakeClock
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock():
    return FakeClock(autojump=True)


def failing(error=ValueError):
    async def work(*args, **kwargs):
        work.calls += 1
        raise error

    work.calls = 0
    return work


async def attempts_of(clock, **options):
    work = failing()
    with pytest.raises(ValueError):
        await retry(budget=None, clock=clock, **options)(work)()
    return work.calls


async def test_stop_after_attempt(clock):
    assert await attempts_of(clock, wait=0, stop=tenacity.stop_after_attempt(5)) == 5
    # Both count, if both are given.
    assert await attempts_of(clock, wait=0, attempts=2, stop=tenacity.stop_after_attempt(5)) == 2


async def test_stop_after_delay_on_the_guards_clock_from_the_start_of_the_first_attempt(clock):
    assert await attempts_of(clock, wait=3, stop=tenacity.stop_after_delay(10)) == 5  # at 0, 3, 6, 9, 12
    assert await attempts_of(clock, wait=3, stop=tenacity.stop_before_delay(10)) == 4

    async def slow():
        slow.calls += 1
        clock.advance(6)
        raise ValueError

    slow.calls = 0
    with pytest.raises(ValueError):
        await retry(budget=None, wait=0, stop=tenacity.stop_after_delay(10), clock=clock)(slow)()
    assert slow.calls == 2


async def test_stops_combined(clock):
    both = tenacity.stop_after_delay(10) & tenacity.stop_after_attempt(7)
    either = tenacity.stop_after_delay(10) | tenacity.stop_after_attempt(2)
    assert await attempts_of(clock, wait=3, stop=both) == 7
    assert await attempts_of(clock, wait=3, stop=either) == 2


async def test_a_stop_of_ones_own(clock):
    seen = []

    def stop(state):
        seen.append((state.attempt_number, state.args, state.kwargs, state.upcoming_sleep, state.idle_for))
        return state.outcome.exception() is not None and state.attempt_number == 2

    work = failing()
    with decisions() as events, pytest.raises(ValueError) as caught:
        await retry(wait=3, stop=stop, clock=clock, name="r")(work)(1, b=2)
    assert seen == [(1, (1,), {"b": 2}, 3, 0.0), (2, (1,), {"b": 2}, 3, 3)]
    assert events[-1] == RetryGaveUp("r", "stop", 2)
    assert caught.value.__notes__ == ["r: gave up after 2 attempts: the stop condition holds"]


async def test_a_stop_sees_the_time_that_was_asked_for(clock):
    class Throttled(Exception):
        status_code = 429
        headers = MappingProxyType({"retry-after": "50"})

    work = failing(Throttled)
    with pytest.raises(Throttled):
        await retry(wait=0, stop=tenacity.stop_before_delay(20), clock=clock)(work)()
    assert work.calls == 1


async def test_waits(clock):
    await attempts_of(clock, wait=tenacity.wait_fixed(2))
    await attempts_of(clock, wait=tenacity.wait_exponential(multiplier=1, min=1, max=100), attempts=5)
    await attempts_of(clock, wait=tenacity.wait_fixed(2) + tenacity.wait_fixed(5), attempts=2)
    await attempts_of(clock, wait=tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(9)), attempts=4)
    assert clock.waits == [2, 2, 1, 2, 4, 8, 7, 1, 9, 9]


async def test_wait_exponential_jitter(clock):
    await attempts_of(clock, wait=tenacity.wait_exponential_jitter(multiplier=1, jitter=1, max=10), attempts=7)
    assert [low <= wait <= min(10, low + 1) for low, wait in zip([1, 2, 4, 8, 10, 10], clock.waits, strict=True)] == [
        True
    ] * 6


async def test_a_wait_that_looks_at_the_exception(clock):
    await attempts_of(clock, wait=tenacity.wait_exception(lambda exc: 4.5), attempts=2)
    await attempts_of(clock, wait=lambda state: -1, attempts=2)  # no less than none
    assert clock.waits == [4.5, 0]


async def test_retry_after_goes_before_a_tenacity_wait(clock):
    class Throttled(Exception):
        status_code = 429
        headers = MappingProxyType({"retry-after": "5"})

    with pytest.raises(Throttled):
        await retry(attempts=2, wait=tenacity.wait_none(), clock=clock)(failing(Throttled))()
    assert clock.waits == [5]


async def test_conditions(clock):
    for condition, calls in [
        (tenacity.retry_if_exception_type(ValueError), 3),
        (tenacity.retry_if_exception_type(KeyError), 1),
        (tenacity.retry_if_not_exception_type(ValueError), 1),
        (tenacity.retry_if_exception_type(KeyError) | tenacity.retry_if_exception_message(match="^$"), 3),
        (tenacity.retry_if_exception_type(ValueError) & tenacity.retry_if_exception_message(message="x"), 1),
        ((KeyError, tenacity.retry_if_exception(lambda exc: True)), 3),
    ]:
        assert await attempts_of(clock, on=condition) == calls, condition


async def test_conditions_on_results(clock):
    async def work():
        work.calls += 1
        return None if work.calls < 3 else "found"

    work.calls = 0
    missing = tenacity.retry_if_result(lambda result: result is None)
    assert await retry(on=missing, clock=clock)(work)() == "found"
    assert work.calls == 3
    work.calls = -10
    assert await retry(on=missing, clock=clock)(work)() is None
    assert work.calls == -7


async def test_a_condition_on_all_exceptions_does_not_mean_our_refusals(clock):
    work = failing(Rejected("g"))
    with pytest.raises(Rejected):
        await retry(on=tenacity.retry_if_exception_type(), clock=clock)(work)()
    assert work.calls == 1


def test_sync(clock):
    def work():
        work.calls += 1
        raise ValueError

    work.calls = 0
    with pytest.raises(ValueError):
        retry(wait=tenacity.wait_fixed(3), stop=tenacity.stop_after_delay(10), clock=clock)(work)()
    assert work.calls == 5


async def test_streams(clock):
    async def items():
        items.calls += 1
        raise ValueError
        yield

    items.calls = 0
    guarded = retry(
        wait=tenacity.wait_fixed(3),
        stop=tenacity.stop_after_delay(10),
        on=tenacity.retry_if_exception_type(),
        clock=clock,
    )(items)
    with pytest.raises(ValueError):
        [item async for item in guarded()]
    assert items.calls == 5


def test_describe():
    guarded = retry(
        stop=tenacity.stop_after_delay(9), wait=tenacity.wait_fixed(1), on=tenacity.retry_if_exception_type(), name="r"
    )
    assert (
        guarded.describe() == "retry 'r': stop_after_delay, wait_fixed, budget 0.1 of the calls, on "
        "retry_if_exception_type"
    )


def test_an_async_condition_is_refused():
    with pytest.raises(TypeError, match=r"on takes .* not an async one"):
        retry(on=tenacity.asyncio.retry.retry_if_exception(lambda exc: True))


def test_tenacity_is_not_imported_for_those_who_do_not_use_it():
    code = (
        "import sys; from guardrails.strategies.retry import retry; retry(on=ValueError); "
        "print('tenacity' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


async def test_tenacity_does_not_retry_async_generators_and_we_do(clock):
    def source():
        async def items():
            source.calls += 1
            if source.calls == 1:
                raise ValueError
            yield 1

        return items

    source.calls = 0
    theirs = tenacity.retry(stop=tenacity.stop_after_attempt(3))(source())
    with pytest.raises(ValueError):
        [item async for item in theirs()]
    source.calls = 0
    assert [item async for item in retry(clock=clock)(source())()] == [1]
