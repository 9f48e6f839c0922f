from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace

import anyio
import pytest

from guardrails.core.deadline import deadline_in
from guardrails.core.guard import Strategy
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import guard
from guardrails.errors import CircuitOpen, QueueFull, Rejected
from guardrails.strategies.backoff import DecorrelatedJitter, FullJitter
from guardrails.strategies.budget import RetryBudget
from guardrails.strategies.retry import RetriesExhausted, RetryGaveUp, RetryScheduled, retry
from guardrails.testing import FakeClock
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio


@pytest.fixture
def jumping():
    return FakeClock(autojump=True)


class HTTPError(Exception):
    def __init__(self, status, retry_after=None):
        super().__init__(status)
        self.status_code = status
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        self.response = self


class Flaky:
    """Raises, or returns, what its script says; then 'ok'."""

    def __init__(self, *script):
        self.script = list(script)
        self.calls = 0

    def step(self):
        self.calls += 1
        item = self.script.pop(0) if self.script else "ok"
        if isinstance(item, BaseException):
            raise item
        return item

    def work(self):
        async def work(*args, **kwargs):
            await anyio.lowlevel.checkpoint()
            return self.step()

        return work


# With and without a budget: the pipeline makes the first attempt itself, or leaves it to the guard.
both = pytest.mark.parametrize("budget", [None, 0.1])


@both
async def test_a_failure_is_tried_again(jumping, budget):
    flaky = Flaky(ValueError("one"), ConnectionError("two"))
    assert await retry(attempts=3, budget=budget, clock=jumping)(flaky.work())() == "ok"
    assert flaky.calls == 3
    assert len(jumping.waits) == 2


async def test_bare():
    flaky = Flaky()

    @retry
    async def work(a, *, b):
        return a + b, flaky.step()

    assert await work(1, b=2) == (3, "ok")
    assert work.__name__ == "work"


@both
async def test_the_last_exception_itself_is_raised_with_a_note(jumping, budget):
    errors = [ValueError(1), ValueError(2), ValueError(3)]
    flaky = Flaky(*errors)
    with pytest.raises(ValueError) as caught:
        await retry(attempts=3, budget=budget, clock=jumping)(flaky.work())()
    assert caught.value is errors[2]
    assert caught.value.__context__ is None
    assert caught.value.__notes__ == ["retry: gave up after 3 attempts: no attempts left"]


async def test_notes_do_not_pile_up_on_an_error_that_is_raised_again_and_again(jumping):
    error = ValueError()
    error.add_note("mine")
    for _ in range(3):
        with pytest.raises(ValueError):
            await retry(attempts=2, clock=jumping)(Flaky(error, error).work())()
    assert error.__notes__ == ["mine", "retry: gave up after 2 attempts: no attempts left"]


async def test_an_error_that_takes_no_note_is_raised_without():
    class Frozen(Exception):
        def __setattr__(self, name, value):
            raise AttributeError(name)

    with pytest.raises(Frozen):
        await retry(attempts=1)(Flaky(Frozen()).work())()


@both
@pytest.mark.parametrize("error", [HTTPError(404), HTTPError(401), Rejected("g"), CircuitOpen("b", retry_after=1)])
async def test_what_is_ignored_is_never_tried_again(jumping, budget, error):
    flaky = Flaky(error)
    with decisions() as seen, pytest.raises(type(error)) as caught:
        await retry(budget=budget, clock=jumping)(flaky.work())()
    assert caught.value is error
    assert flaky.calls == 1
    assert seen == []
    assert not hasattr(error, "__notes__")


@both
async def test_cancellation_is_never_tried_again(jumping, budget):
    calls = 0

    async def work():
        nonlocal calls
        calls += 1
        await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await retry(budget=budget, clock=jumping)(work)()
    assert scope.cancelled_caught
    assert calls == 1


async def test_on_narrows(jumping):
    for on, calls in [
        (ValueError, 2),
        ((KeyError, ValueError), 2),
        (KeyError, 1),
        (lambda exc: str(exc) == "x", 2),
        (lambda exc: str(exc) == "y", 1),
    ]:
        flaky = Flaky(ValueError("x"), ValueError("x"))
        with pytest.raises(ValueError):
            await retry(attempts=2, on=on, clock=jumping)(flaky.work())()
        assert flaky.calls == calls, on


async def test_on_asks_for_what_is_otherwise_ignored(jumping):
    flaky = Flaky(HTTPError(409))
    with decisions() as seen:
        work = retry(on=lambda exc: exc.status_code == 409, wait=1, clock=jumping, name="r")(flaky.work())
        assert await work() == "ok"
    assert seen == [RetryScheduled("r", 2, 1, "ignored")]


async def test_a_refusal_is_tried_again_on_request_and_not_before_its_time(jumping):
    for options in ({"retry_rejected": True}, {"on": CircuitOpen}, {"on": ValueError, "retry_rejected": True}):
        flaky = Flaky(CircuitOpen("b", retry_after=7))
        assert await retry(wait=0, clock=jumping, **options)(flaky.work())() == "ok"
        assert jumping.waits.pop() == 7
    for on in (Exception, lambda exc: True, ValueError):
        with pytest.raises(QueueFull):
            await retry(on=on, clock=jumping)(Flaky(QueueFull("a")).work())()
    assert await retry(wait=3, retry_rejected=True, clock=jumping)(Flaky(QueueFull("a")).work())() == "ok"
    assert jumping.waits == [3]


async def test_a_refusal_with_a_long_wait_is_given_up(jumping):
    with pytest.raises(CircuitOpen) as caught:
        await retry(retry_rejected=True, clock=jumping)(Flaky(CircuitOpen("b", retry_after=61)).work())()
    assert "asked to wait longer" in caught.value.__notes__[0]


# Waits


async def test_the_default_wait_is_full_jitter(jumping):
    work = retry(attempts=9, budget=None, clock=jumping)(Flaky(*[ValueError()] * 9).work())
    with pytest.raises(ValueError):
        await work()
    assert len(jumping.waits) == 8
    assert all(0 <= wait <= 0.1 * 2**n for n, wait in enumerate(jumping.waits))


async def test_other_waits(jumping):
    work = retry(attempts=4, wait=2, clock=jumping)(Flaky(*[ValueError()] * 3).work())
    assert await work() == "ok"
    assert jumping.waits == [2, 2, 2]
    jumping.waits.clear()
    wait = DecorrelatedJitter(1, 100, uniform=lambda low, high: high)
    assert await retry(attempts=4, wait=wait, clock=jumping)(Flaky(*[ValueError()] * 3).work())() == "ok"
    assert jumping.waits == [3, 9, 27]


async def test_retry_after_is_waited_for(jumping):
    flaky = Flaky(HTTPError(429, 5), HTTPError(503, 2.5))
    assert await retry(wait=3, clock=jumping)(flaky.work())() == "ok"
    assert jumping.waits[0] >= 5
    assert jumping.waits[1] == 3
    flaky = Flaky(HTTPError(429, 60))
    assert await retry(wait=0, clock=jumping)(flaky.work())() == "ok"  # just what is allowed
    assert jumping.waits[-1] == 60


async def test_a_wait_stretched_by_retry_after_is_not_the_base_of_the_next(jumping):
    wait = DecorrelatedJitter(1, 100, uniform=lambda low, high: high)
    flaky = Flaky(HTTPError(429, 50), ValueError())
    assert await retry(wait=wait, clock=jumping)(flaky.work())() == "ok"
    assert jumping.waits[1] == 9


@both
async def test_a_longer_retry_after_than_allowed_fails_and_is_not_retried_early(jumping, budget):
    # The openai client (before its PR 3555) fell back to a short wait there.
    error = HTTPError(429, 61)
    flaky = Flaky(error)
    with decisions() as seen, pytest.raises(HTTPError) as caught:
        await retry(name="r", budget=budget, clock=jumping)(flaky.work())()
    assert caught.value is error
    assert flaky.calls == 1
    assert jumping.waits == []
    assert error.__notes__ == ["r: gave up after 1 attempt: asked to wait longer than max_retry_after"]
    assert seen == [RetryGaveUp("r", "retry_after", 1)]
    assert await retry(max_retry_after=100, clock=jumping)(Flaky(HTTPError(429, 61)).work())() == "ok"


async def test_a_wait_that_would_pass_the_deadline_is_not_begun(jumping):
    work = retry(attempts=9, wait=3, clock=jumping, name="r")(Flaky(*[ValueError()] * 9).work())
    with decisions() as seen, pytest.raises(ValueError) as caught, deadline_in(10, clock=jumping):
        await work()
    assert jumping.waits == [3, 3, 3]
    assert caught.value.__notes__ == ["r: gave up after 4 attempts: the wait would pass the deadline"]
    assert seen[-1] == RetryGaveUp("r", "deadline", 4)


async def test_the_wait_is_over_when_the_clock_says_so(clock, idle):
    flaky = Flaky(ValueError())
    done = []

    async def call():
        done.append(await retry(wait=5, clock=clock)(flaky.work())())

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await idle()
        clock.advance(4.99)
        await idle()
        assert (flaky.calls, done) == (1, [])
        clock.advance(0.01)
        await idle()
        assert (flaky.calls, done) == (2, ["ok"])


# Results


@both
async def test_a_returned_failure_is_tried_again_and_the_last_one_returned(jumping, budget):
    bad = SimpleNamespace(status_code=503, headers={"retry-after": "4"})
    assert await retry(wait=0, budget=budget, clock=jumping)(Flaky(bad).work())() == "ok"
    assert jumping.waits == [4]
    last = SimpleNamespace(status_code=500)
    assert await retry(attempts=2, budget=budget, clock=jumping)(Flaky(bad, last).work())() is last
    gone = SimpleNamespace(status_code=404)
    flaky = Flaky(gone)
    assert await retry(budget=budget, clock=jumping)(flaky.work())() is gone
    assert flaky.calls == 1


@both
async def test_a_returned_failure_can_be_raised(jumping, budget):
    bad = SimpleNamespace(status_code=429, headers={"retry-after": "4"})
    work = retry(attempts=2, raise_results=True, budget=budget, clock=jumping, name="r")(Flaky(bad, bad).work())
    with pytest.raises(RetriesExhausted) as caught:
        await work()
    error = caught.value
    assert (error.guard, error.reason, error.attempts, error.result) == ("r", "attempts", 2, bad)
    assert str(error) == "r: what was returned is a failure; gave up after 2 attempts: no attempts left"
    gone = SimpleNamespace(status_code=404)
    assert await retry(raise_results=True, budget=budget, clock=jumping)(Flaky(gone).work())() is gone


async def test_guards_further_out_see_what_was_returned(jumping):
    seen = []
    bad = SimpleNamespace(status_code=429, headers={"retry-after": "4"})

    class Outer(Strategy):
        name = "outer"
        recovers = True

        def describe(self):
            return "outer"

        async def recover(self, call, outcome, result, proceed):
            seen.append(outcome)

    await guard(Outer(), retry(attempts=1, raise_results=True, clock=jumping))(Flaky(bad).work())()
    assert (seen[0].kind, seen[0].retry_after) == ("throttled", 4)


async def test_on_result_makes_a_failure_of_a_result(jumping):
    flaky = Flaky("empty", "empty")
    work = retry(on_result=lambda result: result == "empty", clock=jumping)(flaky.work())
    assert await work() == "ok"
    assert flaky.calls == 3
    flaky = Flaky("empty", "empty", "empty")
    assert await retry(on_result=lambda result: True, clock=jumping)(flaky.work())() == "empty"


async def test_an_error_in_a_predicate_does_not_hide_the_calls_own(jumping):
    error = ValueError()

    def broken(exc):
        raise KeyError

    with pytest.raises(KeyError) as caught:
        await retry(on=broken, clock=jumping)(Flaky(error).work())()
    assert caught.value.__context__ is error

    def reraises(exc):
        raise exc

    with pytest.raises(ValueError) as caught:
        await retry(on=reraises, clock=jumping)(Flaky(error).work())()
    assert caught.value is error
    assert error.__context__ is None


# Budget


async def test_the_budget_bounds_retries_in_an_outage(jumping):
    guarded = retry(attempts=5, wait=0, budget=0.1, clock=jumping)
    flaky = Flaky(*[ValueError()] * 10_000)
    work = guarded(flaky.work())
    for _ in range(500):
        with pytest.raises(ValueError):
            await work()
    assert 500 < flaky.calls <= 500 + 10 + 50
    with pytest.raises(ValueError) as caught:
        await work()
    assert caught.value.__notes__ == ["retry: gave up after 1 attempt: the retry budget is spent"]


async def test_calls_that_succeed_pay_for_those_that_do_not(jumping):
    budget = RetryBudget(0.1, reserve=0, min_per_second=0, clock=jumping)
    work = retry(budget=budget, clock=jumping)
    good = work(Flaky().work())
    for _ in range(10):
        await good()
    assert await work(Flaky(ValueError()).work())() == "ok"
    with pytest.raises(ValueError):
        await work(Flaky(ValueError()).work())()


async def test_two_guards_share_a_budget(jumping):
    budget = RetryBudget(0, reserve=1, min_per_second=0, clock=jumping)
    one, other = (retry(budget=budget, clock=jumping) for _ in range(2))
    assert await one(Flaky(ValueError()).work())() == "ok"
    with pytest.raises(ValueError):
        await other(Flaky(ValueError()).work())()


async def test_what_was_paid_for_a_wait_that_is_cancelled_comes_back(clock, idle):
    guarded = retry(wait=5, clock=clock)
    flaky = Flaky(ValueError())
    async with anyio.create_task_group() as group:
        group.start_soon(guarded(flaky.work()))
        await idle()
        assert guarded.budget.balance == pytest.approx(9.1)  # ten, and a tenth for the call, less one
        group.cancel_scope.cancel()
    assert guarded.budget.balance == pytest.approx(10.1)
    assert flaky.calls == 1


async def test_a_wait_that_is_cancelled_without_a_budget(clock, idle):
    async with anyio.create_task_group() as group:
        group.start_soon(retry(wait=5, budget=None, clock=clock)(Flaky(ValueError()).work()))
        await idle()
        group.cancel_scope.cancel()


async def test_where_the_pipeline_counts_calls_a_first_success_costs_nothing(jumping, monkeypatch):
    assert retry(budget=None).recovers
    monkeypatch.setattr(Strategy, "tally", None, raising=False)
    guarded = retry(budget=0.1, clock=jumping)
    assert guarded.recovers
    assert await guarded(Flaky(ValueError()).work())() == "ok"
    assert not retry(on_result=bool).recovers
    before = guarded.budget.balance
    for _ in range(10):
        guarded.tally()
    assert guarded.budget.balance == pytest.approx(before + 1)


# Events


async def test_events(jumping):
    flaky = Flaky(ValueError(), HTTPError(429), ValueError())
    with decisions() as seen, pytest.raises(ValueError):
        await retry(attempts=3, wait=1, name="r", clock=jumping)(flaky.work())()
    assert seen == [
        RetryScheduled("r", 2, 1, "failure"),
        RetryScheduled("r", 3, 1, "throttled"),
        RetryGaveUp("r", "attempts", 3),
    ]


# Sync


@both
def test_a_sync_function(jumping, budget):
    flaky = Flaky(ValueError(), ValueError())
    assert retry(wait=2, budget=budget, clock=jumping)(flaky.step)() == "ok"
    assert jumping.waits == [2, 2]
    error = ValueError()
    with pytest.raises(ValueError) as caught:
        retry(attempts=2, budget=budget, clock=jumping)(Flaky(ValueError(), error).step)()
    assert caught.value is error
    bad = SimpleNamespace(status_code=500)
    assert retry(attempts=2, budget=budget, clock=jumping)(Flaky(bad).step)() == "ok"


def test_a_sync_function_blocks_its_thread_until_the_clock_says_so(clock):
    flaky = Flaky(ValueError())
    done = []
    thread = threading.Thread(target=lambda: done.append(retry(wait=5, clock=clock)(flaky.step)()))
    thread.start()
    while not clock._threads:
        pass
    clock.advance(5)
    thread.join(10)
    assert done == ["ok"]


def test_ctrl_c_in_a_wait_gives_back_what_was_paid(jumping):
    def interrupted(event, seconds):
        raise KeyboardInterrupt

    jumping.wait_thread = interrupted
    guarded = retry(clock=jumping)
    with pytest.raises(KeyboardInterrupt):
        guarded(Flaky(ValueError()).step)()
    assert guarded.budget.balance == pytest.approx(10.1)


@both
async def test_the_event_loop_is_not_blocked(jumping, budget):
    error = ValueError()
    flaky = Flaky(error)
    with decisions() as seen, pytest.raises(ValueError) as caught:
        retry(name="r", budget=budget, clock=jumping)(flaky.step)()
    assert caught.value is error
    assert flaky.calls == 1
    assert error.__notes__ == ["r: gave up after 1 attempt: waiting here would block the thread's event loop"]
    assert seen == [RetryGaveUp("r", "event_loop", 1)]
    assert await anyio.to_thread.run_sync(retry(clock=jumping)(Flaky(ValueError()).step)) == "ok"


# Memory


async def test_a_failed_call_leaves_no_reference_cycle(jumping):
    class Own(Exception):
        pass

    async def work():
        raise Own

    async def items():
        raise Own
        yield

    async def read():
        async for _ in retry(attempts=2, clock=jumping)(items)():
            pass

    gc.disable()
    try:
        for call in (retry(attempts=2, clock=jumping, on_result=bool)(work), read):
            try:
                await call()
            except Own as error:
                alive = weakref.ref(error)
                del error
            await anyio.lowlevel.checkpoint()
            assert alive() is None
    finally:
        gc.enable()


# The face


def test_describe():
    assert retry().describe() == "retry 'retry': 3 attempts, full jitter 0.1 to 20 s, budget 0.1 of the calls"
    guarded = retry(attempts=1, wait=2, budget=None, on=(ValueError, lambda exc: True), name="r")
    assert guarded.describe() == "retry 'r': 1 attempt, 2 s apart, no budget, on ValueError or a predicate"
    assert repr(guarded) == f"<{guarded.describe()}>"


def test_a_kind_that_cannot_be_retried_is_refused():
    def items():
        yield 1

    with pytest.raises(TypeError, match=r"retry cannot drive .*items, a generator"):
        retry()(items)


async def test_a_block_cannot_be_retried():
    with pytest.raises(TypeError, match="cannot guard a block"):
        async with retry():
            pass


async def async_predicate(*args):
    return True


class Async:
    async def __call__(self, state):
        return True


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attempts": 0}, ValueError, "attempts takes a number from 1 on"),
        ({"attempts": 2.5}, TypeError, "attempts takes a whole number, not float"),
        ({"attempts": True}, TypeError, "attempts takes a whole number, not bool"),
        ({"wait": -1}, ValueError, "wait takes a number of seconds from 0 on, not -1"),
        ({"wait": "1"}, TypeError, "wait takes seconds, a Backoff or a wait of tenacity, not str"),
        ({"wait": FullJitter}, TypeError, "wait takes .* not the class FullJitter"),
        ({"wait": Async()}, TypeError, "wait takes .* not an async one"),
        ({"stop": 3}, TypeError, "stop takes a stop of tenacity, not int"),
        ({"stop": async_predicate}, TypeError, "stop takes .* not an async one"),
        ({"budget": 10}, ValueError, "budget takes a share"),
        ({"budget": "x"}, TypeError, "budget takes a share"),
        ({"on": ()}, ValueError, "on takes at least one"),
        ({"on": BaseException}, TypeError, "on takes types of Exception, not BaseException"),
        ({"on": 429}, TypeError, "on takes exception types, functions of an exception, or conditions"),
        ({"on": async_predicate}, TypeError, "on takes .* not an async one"),
        ({"on_result": 1}, TypeError, "on_result takes a function of the result, not int"),
        ({"max_retry_after": -1}, ValueError, "max_retry_after takes a number of seconds from 0 on"),
        ({"max_retry_after": None}, TypeError, "max_retry_after takes a number of seconds, not NoneType"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        retry(**options)


def test_a_number_in_place_of_a_function_is_refused():
    with pytest.raises(TypeError, match=r"write retry\(attempts=3\)"):
        retry(3)


@both
async def test_a_classify_that_leaves_the_exception_out_does_not_lose_it(jumping, budget):
    error = ValueError()
    guarded = guard(retry(attempts=2, budget=budget, clock=jumping), classify=lambda exc: Outcome("failure"))
    with pytest.raises(ValueError) as caught:
        await guarded(Flaky(KeyError(), error).work())()
    assert caught.value is error

    async def items():
        raise error
        yield

    with pytest.raises(ValueError):
        [item async for item in guarded(items)()]


def test_an_outcome_of_ones_own_is_retried_as_the_pipeline_judges_it(jumping):
    def judge(exc):
        return Outcome("ignored", exc)

    flaky = Flaky(ValueError())
    with pytest.raises(ValueError):
        guard(retry(clock=jumping), classify=judge)(flaky.step)()
    assert flaky.calls == 1


async def test_a_retry_that_the_deadline_refuses_costs_the_budget_nothing(clock):
    budget = RetryBudget(0.1, min_per_second=0, reserve=1, clock=clock)
    calls = []

    @retry(attempts=3, wait=5, budget=budget, clock=clock)
    async def work():
        calls.append(1)
        raise ValueError

    with pytest.raises(ValueError), deadline_in(1, clock=clock):
        await work()
    assert len(calls) == 1
    assert budget.balance >= 1
