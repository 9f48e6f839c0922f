from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import admit, breaker, guard, timeout
from guardrails.core.guard import Gate
from guardrails.core.outcome import Outcome as Verdict
from guardrails.core.pipeline import Layer
from guardrails.errors import Rejected, TimedOut
from guardrails.strategies.budget import RetryBudget
from guardrails.strategies.hedge import MIN_LATENCIES, HedgeStarted, HedgeWon, Latencies, hedge
from guardrails.strategies.retry import retry
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio


class Attempts:
    """A function whose attempts end when the test says so."""

    def __init__(self):
        self.events = []
        self.answers = {}
        self.cancelled = []
        self.cleanup = None  # what a cancelled attempt does before it goes

    async def work(self, *args):
        number = len(self.events)
        self.events.append(anyio.Event())
        try:
            await self.events[number].wait()
        except BaseException:
            self.cancelled.append(number + 1)
            if self.cleanup is not None:
                await self.cleanup()
            raise
        answer = self.answers[number]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def answer(self, number, answer):
        self.answers[number - 1] = answer
        self.events[number - 1].set()

    @property
    def started(self):
        return len(self.events)


class Outcome:
    """How a call in a task of its own ended."""

    def __init__(self):
        self.result = self.error = None
        self.done = False

    async def of(self, work, *args):
        try:
            self.result = await work(*args)
        except Exception as error:
            self.error = error
        self.done = True


@pytest.fixture
def attempts():
    return Attempts()


@pytest.fixture
def end():
    return Outcome()


async def test_a_quick_answer_starts_nothing(clock, idle, attempts, end):
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(0.2, clock=clock)(attempts.work))
        await idle()
        clock.advance(0.19)
        await idle()
        assert attempts.started == 1
        attempts.answer(1, "one")
        await idle()
        assert end.result == "one"
    assert attempts.cancelled == []


async def test_the_second_attempt_wins_and_the_first_is_cancelled(clock, idle, attempts, end):
    with decisions() as seen:
        async with anyio.create_task_group() as group:
            group.start_soon(end.of, hedge(0.2, name="h", clock=clock)(attempts.work))
            await idle()
            clock.advance(0.2)
            await idle()
            assert attempts.started == 2
            clock.advance(100)
            await idle()
            assert attempts.started == 2  # no more than that
            attempts.answer(2, "two")
    assert end.result == "two"
    assert attempts.cancelled == [1]
    assert seen == [HedgeStarted("h", 2, 0.2), HedgeWon("h", 2)]


async def test_the_first_attempt_may_still_win(clock, idle, attempts, end):
    with decisions() as seen:
        async with anyio.create_task_group() as group:
            group.start_soon(end.of, hedge(0.2, name="h", clock=clock)(attempts.work))
            await idle()
            clock.advance(0.2)
            await idle()
            attempts.answer(1, "one")
    assert end.result == "one"
    assert attempts.cancelled == [2]
    assert seen == [HedgeStarted("h", 2, 0.2)]


async def test_each_further_attempt_starts_a_delay_after_the_one_before(clock, idle, attempts, end):
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(1, attempts=4, clock=clock)(attempts.work))
        await idle()
        clock.advance(1)
        await idle()
        clock.advance(0.5)
        attempts.answer(1, ValueError())  # the next one comes at once, and the one after that a delay later
        await idle()
        assert attempts.started == 3
        clock.advance(0.9)
        await idle()
        assert attempts.started == 3
        clock.advance(0.1)
        await idle()
        assert attempts.started == 4
        attempts.answer(3, "three")
    assert end.result == "three"
    assert sorted(attempts.cancelled) == [2, 4]


@pytest.mark.parametrize("returned", [False, True])
async def test_a_failure_starts_the_next_attempt_at_once(clock, idle, attempts, end, returned):
    failure = SimpleNamespace(status_code=500) if returned else ValueError()
    with decisions() as seen:
        async with anyio.create_task_group() as group:
            group.start_soon(end.of, hedge(0.2, name="h", clock=clock)(attempts.work))
            await idle()
            clock.advance(0.1)
            attempts.answer(1, failure)
            await idle()
            assert attempts.started == 2
            attempts.answer(2, "two")
    assert end.result == "two"
    assert seen == [HedgeStarted("h", 2, 0.0), HedgeWon("h", 2)]


async def test_with_no_percentile_known_a_failure_still_starts_the_next(clock, idle, attempts, end):
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(percentile=0.9, clock=clock)(attempts.work))
        await idle()
        attempts.answer(1, ValueError())
        await idle()
        attempts.answer(2, "two")
    assert end.result == "two"


async def test_failures_stop_at_the_number_of_attempts_and_at_the_budget(clock, idle, attempts, end):
    error = ValueError("first")
    budget = RetryBudget(0.01, min_per_second=0, reserve=1, clock=clock)
    work = hedge(0.2, attempts=3, budget=budget, clock=clock)(attempts.work)
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, work)
        await idle()
        attempts.answer(1, error)
        await idle()
        assert attempts.started == 2
        attempts.answer(2, ValueError("second"))  # the budget has no third
    assert end.error is error
    assert attempts.started == 2


class Limited(Exception):
    status_code = 429


@pytest.mark.parametrize("error", [Limited(), Rejected("b")], ids=["throttled", "refused"])
async def test_what_asks_for_less_starts_nothing_at_once(clock, idle, attempts, end, error):
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(0.2, clock=clock)(attempts.work))
        await idle()
        attempts.answer(1, error)
    assert end.error is error
    assert attempts.started == 1


async def test_a_failure_waits_for_the_others(clock, idle, attempts, end):
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(0.2, clock=clock)(attempts.work))
        await idle()
        clock.advance(0.2)
        await idle()
        attempts.answer(1, ValueError())
        await idle()
        assert not end.done
        attempts.answer(2, "two")
    assert end.result == "two"


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
async def test_if_all_fail_the_first_failure_is_raised_itself(clock, idle, attempts, end, order):
    first, second = ValueError("first"), KeyError("second")
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(0.2, clock=clock)(attempts.work))
        await idle()
        clock.advance(0.2)
        await idle()
        attempts.answer(order[0], first)
        await idle()
        attempts.answer(order[1], second)
    assert end.error is first
    assert first.__context__ is None


async def test_a_classify_that_leaves_the_exception_out_does_not_lose_it(clock):
    async def work():
        raise ValueError

    with pytest.raises(ValueError):
        await guard(hedge(1, clock=clock), classify=lambda exc: Verdict("failure"))(work)()


async def test_a_refusal_of_the_hedge_does_not_hide_a_failure(clock, idle, attempts, end):
    error = ValueError()
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(0.2, clock=clock)(attempts.work))
        await idle()
        clock.advance(0.2)
        await idle()
        attempts.answer(2, Rejected("limiter"))
        await idle()
        assert not end.done
        attempts.answer(1, error)
    assert end.error is error


async def test_only_refusals(clock, attempts):
    refusal = Rejected("breaker")

    async def refused():
        raise refusal

    with pytest.raises(Rejected) as caught:
        await hedge(0.2, clock=clock)(refused)()
    assert caught.value is refusal


async def test_the_callers_own_mistake_ends_the_race(clock, idle, attempts, end):
    class NotFound(Exception):
        status_code = 404

    error = NotFound()
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(0.2, clock=clock)(attempts.work))
        await idle()
        clock.advance(0.2)
        await idle()
        attempts.answer(1, error)
    assert end.error is error
    assert attempts.cancelled == [2]


async def test_returned_failures(clock, idle, attempts, end):
    bad, worse, gone = (SimpleNamespace(status_code=status) for status in (503, 500, 404))
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(0.2, clock=clock)(attempts.work))
        await idle()
        clock.advance(0.2)
        await idle()
        attempts.answer(1, bad)
        await idle()
        assert not end.done
        attempts.answer(2, worse)
        await idle()
        assert end.result is bad
        group.start_soon(end.of, hedge(0.2, clock=clock)(attempts.work))
        await idle()
        attempts.answer(3, gone)  # an answer, if not a welcome one
        await idle()
        assert end.result is gone


async def test_two_answers_at_once(clock, idle, attempts, end):
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(0.2, clock=clock)(attempts.work))
        await idle()
        clock.advance(0.2)
        await idle()
        attempts.answer(1, "one")
        attempts.answer(2, "two")
    assert end.result in ("one", "two")


async def test_a_group_that_the_call_raises_stays_one(clock):
    error = ExceptionGroup("own", [ValueError()])

    async def work():
        raise error

    with pytest.raises(ExceptionGroup) as caught:
        await hedge(0.2, clock=clock)(work)()
    assert caught.value is error


async def test_context_variables_reach_each_attempt(clock, idle, end):
    variable = contextvars.ContextVar("variable")
    variable.set("caller's")
    seen = []
    release = anyio.Event()

    async def work():
        seen.append(variable.get())
        variable.set("attempt's")
        await release.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(0.2, clock=clock)(work))
        await idle()
        clock.advance(0.2)
        await idle()
        release.set()
    assert seen == ["caller's", "caller's"]
    assert variable.get() == "caller's"


# Cancellation


@pytest.mark.parametrize("hedged", [False, True])
async def test_cancelling_the_caller_cancels_all(clock, idle, attempts, hedged):
    async with anyio.create_task_group() as group:
        group.start_soon(hedge(0.2, clock=clock)(attempts.work))
        await idle()
        if hedged:
            clock.advance(0.2)
            await idle()
        group.cancel_scope.cancel()
    assert sorted(attempts.cancelled) == ([1, 2] if hedged else [1])


async def test_a_loser_is_awaited(clock, idle, attempts, end):
    gone = anyio.Event()

    async def cleanup():
        with anyio.CancelScope(shield=True):
            await gone.wait()

    attempts.cleanup = cleanup
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(0.2, clock=clock)(attempts.work))
        await idle()
        clock.advance(0.2)
        await idle()
        attempts.answer(2, "two")
        await idle()
        assert not end.done
        gone.set()
    assert end.result == "two"


async def test_a_loser_that_fails_on_its_way_out_changes_nothing(clock, idle, attempts, end):
    async def cleanup():
        raise ValueError

    attempts.cleanup = cleanup
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(0.2, clock=clock)(attempts.work))
        await idle()
        clock.advance(0.2)
        await idle()
        attempts.answer(2, "two")
    assert end.result == "two"


class Ledger(Layer, Gate):
    name = "ledger"

    def __init__(self):
        self.inside = set()
        self.ended = []
        self.entered = 0

    def describe(self):
        return "ledger"

    def try_enter(self, call):
        return None

    async def enter(self, call):
        await anyio.lowlevel.checkpoint()
        self.entered += 1
        self.inside.add(self.entered)
        return self.entered

    def settle(self, ticket, outcome):
        self.inside.remove(ticket)
        self.ended.append(outcome.kind)


async def test_a_losers_gates_settle_as_ignored(clock, idle, attempts, end, memory):
    ledger = Ledger()
    circuit = breaker(fail_max=1, clock=clock)
    room = admit(concurrency=2, sampler=memory, clock=clock)
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, guard(hedge(0.2, clock=clock), circuit, ledger, room)(attempts.work))
        await idle()
        clock.advance(0.2)
        await idle()
        attempts.answer(2, "two")
    assert sorted(ledger.ended) == ["ignored", "success"]
    assert circuit.state == "closed"
    async with room:
        async with room:  # both permits are free
            pass


@pytest.mark.parametrize("steps", range(14))
async def test_cancelled_at_every_await_point_each_ticket_is_settled_once(clock, steps, memory):
    ledger = Ledger()
    room = admit(concurrency=3, sampler=memory, clock=clock)
    calls = 0

    async def work():
        nonlocal calls
        calls += 1
        number = calls
        clock.advance(0.2)  # the next one starts
        for _ in range(9 - 3 * number):
            await anyio.lowlevel.checkpoint()
        return number

    async with anyio.create_task_group() as group:
        group.start_soon(guard(hedge(0.2, attempts=3, clock=clock), ledger, room)(work))
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert not ledger.inside
    assert len(ledger.ended) == ledger.entered
    assert ledger.ended.count("success") <= 3
    async with room, room, room:
        pass


asyncio_only = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
    ],
)


@asyncio_only
@pytest.mark.parametrize("steps", range(14))
async def test_cancelled_asyncios_way_at_every_await_point(anyio_backend, clock, steps):
    ledger = Ledger()
    calls = 0

    async def work():
        nonlocal calls
        calls += 1
        clock.advance(0.2)
        for _ in range(4):
            await asyncio.sleep(0)
        return calls

    task = asyncio.create_task(guard(hedge(0.2, clock=clock), ledger)(work)())
    for _ in range(steps):
        await asyncio.sleep(0)
    stopped = task.cancel()
    try:
        assert await task in (1, 2)
        assert not stopped
    except asyncio.CancelledError:
        assert stopped
    assert not ledger.inside
    assert len(ledger.ended) == ledger.entered


@asyncio_only
async def test_asyncios_own_timeout_around_it(anyio_backend, clock, attempts):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await hedge(0.2, clock=clock)(attempts.work)()
    assert attempts.cancelled == [1]
    assert asyncio.current_task().cancelling() == 0


@asyncio_only
async def test_an_attempt_that_is_cancelled_by_its_own_code_is_seen_by_the_caller(anyio_backend, clock):
    async def work():
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    with pytest.raises(asyncio.CancelledError):
        await hedge(0.2, clock=clock)(work)()
    assert asyncio.current_task().cancelling() == 0


# Other guards


async def test_each_attempt_has_its_own_timeout(clock, idle, attempts, end):
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, guard(hedge(1, clock=clock), timeout(3, clock=clock))(attempts.work))
        await idle()
        clock.advance(1)
        await idle()
        clock.advance(2)  # the first one's three seconds are over
        await idle()
        assert attempts.cancelled == [1]
        assert not end.done
        clock.advance(1)
    assert attempts.cancelled == [1, 2]
    assert isinstance(end.error, TimedOut)


async def test_a_deadline_around_it(clock, idle, attempts, end):
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, guard(timeout(3, clock=clock), hedge(1, clock=clock))(attempts.work))
        await idle()
        clock.advance(1)
        await idle()
        clock.advance(2)
    assert sorted(attempts.cancelled) == [1, 2]
    assert isinstance(end.error, TimedOut)


async def test_inside_a_retry(clock, idle, attempts, end):
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, guard(retry(wait=0, clock=clock), hedge(1, clock=clock))(attempts.work))
        await idle()
        clock.advance(1)
        await idle()
        attempts.answer(1, ValueError())
        attempts.answer(2, ValueError())
        await idle()
        assert attempts.started == 3
        attempts.answer(3, "three")
    assert end.result == "three"


# Budget


async def test_the_budget_bounds_hedges(clock, idle):
    budget = RetryBudget(0, reserve=1, min_per_second=0, clock=clock)
    work = hedge(1, attempts=3, budget=budget, clock=clock)
    one, other = Attempts(), Attempts()
    async with anyio.create_task_group() as group:
        group.start_soon(Outcome().of, work(one.work))
        await idle()
        group.start_soon(Outcome().of, work(other.work))
        await idle()
        for _ in range(4):
            clock.advance(1)
            await idle()
        assert one.started + other.started == 3
        group.cancel_scope.cancel()


async def test_calls_pay_for_hedges(clock):
    guarded = hedge(1, budget=RetryBudget(0.25, reserve=0, clock=clock), clock=clock)

    async def work():
        pass

    for _ in range(8):
        await guarded(work)()
    assert guarded.budget.balance == 2


async def test_no_budget(clock, idle, attempts):
    async with anyio.create_task_group() as group:
        group.start_soon(hedge(1, budget=None, clock=clock)(attempts.work))
        await idle()
        clock.advance(1)
        await idle()
        assert attempts.started == 2
        group.cancel_scope.cancel()


async def test_a_budget_shared_with_the_retry_around_it_counts_a_call_once(clock):
    budget = RetryBudget(0.5, reserve=0, clock=clock)

    async def work():
        pass

    guarded = guard(retry(budget=budget, clock=clock), hedge(1, budget=budget, clock=clock))(work)
    for _ in range(4):
        await guarded()
    assert budget.balance == 2


# The percentile


def taking(clock, seconds):
    async def work():
        clock.advance(seconds)

    return work


async def test_the_delay_is_a_percentile_of_the_latencies(clock):
    guarded = hedge(percentile=0.9, clock=clock)
    for number in range(1, 101):
        assert (guarded.delay is None) is (number <= MIN_LATENCIES)
        await guarded(taking(clock, number / 100))()
    assert guarded.delay == pytest.approx(0.9)


async def test_until_it_is_known_the_delay_given_holds_if_any(clock, idle, attempts, end):
    assert hedge(0.3, percentile=0.9, clock=clock).delay == 0.3
    async with anyio.create_task_group() as group:
        group.start_soon(end.of, hedge(percentile=0.9, clock=clock)(attempts.work))
        await idle()
        clock.advance(1000)
        await idle()
        assert attempts.started == 1
        attempts.answer(1, "one")
    assert end.result == "one"


async def test_failures_and_cancelled_callers_say_nothing_about_the_latency(clock, idle, attempts):
    guarded = hedge(1000, percentile=0.5, clock=clock)

    async def failing():
        raise ValueError

    async def bad():
        return SimpleNamespace(status_code=500)

    for _ in range(MIN_LATENCIES):
        with pytest.raises(ValueError):
            await guarded(failing)()
        await guarded(bad)()
        async with anyio.create_task_group() as group:
            group.start_soon(guarded(attempts.work))
            await idle()
            group.cancel_scope.cancel()
    assert guarded.delay == 1000
    for _ in range(MIN_LATENCIES):
        await guarded(taking(clock, 2))()
    assert guarded.delay == 2


async def test_the_slow_first_attempt_that_lost_counts(clock, idle):
    # Else only quick answers would be seen, and the percentile would sink until every call is asked twice.
    guarded = hedge(5, percentile=0.5, budget=None, clock=clock)
    for _ in range(MIN_LATENCIES):
        attempts, end = Attempts(), Outcome()
        async with anyio.create_task_group() as group:
            group.start_soon(end.of, guarded(attempts.work))
            await idle()
            clock.advance(5)
            await idle()
            attempts.answer(2, "two")
    assert guarded.delay == 5


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.integers(1, 20), st.floats(0.01, 0.99))
def test_latencies_equal_a_naive_model(values, size, share):
    latencies = Latencies(size)
    for value in values:
        latencies.add(value)
    kept = sorted(values[-size:])
    found = latencies.percentile(share)
    assert len(latencies) == len(kept)
    assert found in kept
    assert sum(value <= found for value in kept) >= share * len(kept) - 1e-9
    assert sum(value < found for value in kept) <= share * len(kept) + 1e-9


# The face


async def test_a_failed_call_leaves_no_reference_cycle(clock):
    class Own(Exception):
        pass

    async def work():
        raise Own

    gc.collect()
    gc.disable()
    try:
        try:
            await hedge(1, clock=clock)(work)()
        except Own as error:
            alive = weakref.ref(error)
            del error
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        assert alive() is None
    finally:
        gc.enable()


def test_describe():
    guarded = hedge(0.2, name="h")
    assert guarded.describe() == "hedge 'h': another attempt after 0.2 s, 2 at most, budget 0.1 of the calls"
    assert repr(guarded) == f"<{guarded.describe()}>"
    assert hedge(percentile=0.95, attempts=3, budget=None).describe() == (
        "hedge 'hedge': another attempt after percentile 0.95 of the latency, 3 at most, no budget"
    )


async def test_sync_functions_are_refused():
    def items():
        yield 1

    with pytest.raises(TypeError, match=r"hedge cannot drive .*items, a generator"):
        hedge(1)(items)
    with pytest.raises(TypeError, match=r"hedge cannot drive .*lambda.*, a sync function"):
        hedge(1)(lambda: 1)


async def test_order_is_checked():
    with pytest.raises(ValueError, match="outside"):
        guard(breaker(), hedge(1))
    guard(retry(), hedge(1), breaker())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "hedge takes delay .seconds. or percentile"),
        ({"delay": 0}, ValueError, "delay takes a number of seconds above 0"),
        ({"delay": "1"}, TypeError, "delay takes a number of seconds, not str"),
        ({"percentile": 95}, ValueError, "percentile takes a share above 0 and below 1 .* not 95"),
        ({"percentile": True}, TypeError, "percentile takes a number, not bool"),
        ({"delay": 1, "attempts": 1}, ValueError, "attempts takes a number from 2 on"),
        ({"delay": 1, "attempts": 2.0}, TypeError, "attempts takes a whole number, not float"),
        ({"delay": 1, "budget": 2}, ValueError, "budget takes a share"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        hedge(**options)
