"""What a limiter lets in, what it refuses, and what it learns."""

from __future__ import annotations

import asyncio
import gc
import math
import pickle
from types import MappingProxyType

import anyio
import pytest

from guardrails import admit, breaker, guard, retry
from guardrails.core.guard import Call
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.errors import Rejected
from guardrails.gates.breaker.break_duration import FromRetryAfter
from guardrails.gates.limiter import Drained, RateLimited, Reservation, limiter
from guardrails.testing import FakeClock
from tests.guardrails.heard import decisions

CALL = Call((), {})


def only(levels):
    (level,) = levels.values()
    return level


@pytest.fixture
def gate(clock):
    """Five at once, then one every two seconds; nobody waits."""
    return limiter(name="gate", requests=5, per=10, queue=0, clock=clock)


# Requests


def test_it_lets_in_the_burst_and_then_at_the_rate(gate, clock):
    assert [gate.try_enter(CALL) is not None for _ in range(6)] == [True] * 5 + [False]
    clock.advance(1.9)
    assert gate.try_enter(CALL) is None
    clock.advance(0.1)
    assert gate.try_enter(CALL) is not None
    clock.advance(1000)
    assert gate.available() == {"requests": 5}


def test_a_call_that_ends_gives_nothing_back(gate):
    for outcome in (SUCCESS, IGNORED, Outcome("failure", OSError()), Outcome("throttled")):
        gate.settle(gate.try_enter(CALL), outcome)
    assert gate.available() == {"requests": 1}


@pytest.mark.anyio
async def test_it_guards_functions_blocks_and_streams(clock):
    gate = limiter(requests=5, per=10, queue=0, clock=clock)

    @gate
    async def double(number):
        return 2 * number

    @gate
    def triple(number):
        return 3 * number

    @gate
    async def count():
        yield 1
        yield 2

    assert await double(2) == 4
    assert triple(2) == 6
    assert [item async for item in count()] == [1, 2]
    async with gate:
        pass
    with gate:
        pass
    with pytest.raises(RateLimited):
        await double(2)
    assert only(gate.available()) == 0


def test_burst_is_what_may_be_taken_at_once(clock):
    gate = limiter(requests=60, per=60, burst=2, queue=0, clock=clock)
    assert [gate.has_capacity(amount) for amount in (1, 2, 3)] == [True, True, False]
    clock.advance(100)
    assert gate.available() == {"requests": 2}


def test_refused_it_says_truly_when_to_come_back(clock):
    gate = limiter(name="gate", requests=5, per=10, queue=0, clock=clock)
    for _ in range(5):
        gate.try_acquire()
    clock.advance(0.5)
    with pytest.raises(RateLimited, match=r"gate: rate limited \(retry after 1.5 s\)") as caught, gate:
        pass
    refusal = caught.value
    assert (refusal.guard, refusal.reason, refusal.retry_after) == ("gate", "rate_limited", 1.5)
    clock.advance(refusal.retry_after - 0.01)
    assert gate.try_acquire() is None
    clock.advance(0.01)
    assert gate.try_acquire() is not None


def test_an_amount_that_can_never_fit_is_refused_at_once(gate):
    with pytest.raises(RateLimited, match="gate: 6 requests asked for, and 5 is all that there can ever be") as caught:
        gate.try_acquire(6)
    assert (caught.value.reason, caught.value.retry_after) == ("amount_too_large", None)
    assert gate.available() == {"requests": 5}


@pytest.mark.anyio
async def test_so_is_one_that_comes_to_a_queue(clock, idle):
    gate = limiter(requests=5, per=10, clock=clock)
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(gate.acquire, 5)
        await idle()
        assert gate.waiting == 1
        with pytest.raises(RateLimited, match="7 requests asked for"):
            await gate.acquire(7)
        with pytest.raises(RateLimited, match="7 requests asked for"):
            await gate._wait((7.0,), (None, None))
        clock.advance(10)


def test_the_error_survives_pickling(gate):
    with pytest.raises(RateLimited) as caught:
        gate.acquire_blocking(6)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (type(copied), copied.reason, str(copied)) == (RateLimited, "amount_too_large", str(caught.value))
    assert isinstance(copied, Rejected)


# Several dimensions


def test_both_dimensions_must_have_room_and_are_taken_together(clock):
    gate = limiter(requests=2, tokens=100, per=10, queue=0, clock=clock)
    assert gate.try_acquire(tokens=60) is not None
    assert gate.try_acquire(tokens=60) is None
    assert gate.available() == {"requests": 1, "tokens": 40}
    assert gate.try_acquire(40) is not None
    clock.advance(4)
    assert gate.try_acquire(10) is None  # 0.8 of a request
    assert gate.available() == pytest.approx({"requests": 0.8, "tokens": 40})
    clock.advance(1)
    assert gate.try_acquire(10) is not None


def test_a_burst_for_each_dimension(clock):
    gate = limiter(requests=600, tokens=6000, per=60, burst={"tokens": 500}, clock=clock)
    assert gate.available() == {"requests": 600, "tokens": 500}


def test_the_dimension_that_can_never_fit_is_named(clock):
    gate = limiter(requests=5, tokens=200_000, per=10, clock=clock)
    with pytest.raises(RateLimited, match=r"200,000\.5 tokens asked for, and 200,000 is") as caught:
        gate.try_acquire(tokens=200_000.5)
    assert caught.value.reason == "amount_too_large"


# Costs


def test_a_cost_may_be_a_number_a_mapping_or_a_function_of_the_arguments(clock):
    def asked(**more):
        gate = limiter(requests=5, tokens=100, per=10, clock=clock, **more)
        assert isinstance(gate.try_enter(Call(("abc",), {"most": 20})), Reservation)
        return gate.available()

    assert asked() == {"requests": 4, "tokens": 100}
    assert asked(cost=30) == {"requests": 4, "tokens": 70}
    assert asked(cost={"requests": 2, "tokens": 1}) == {"requests": 3, "tokens": 99}
    assert asked(cost=lambda text, most: len(text) + most) == {"requests": 4, "tokens": 77}
    assert asked(cost=lambda text, most: {"requests": len(text)}) == {"requests": 2, "tokens": 100}


def test_with_requests_alone_a_cost_is_a_weight(clock):
    gate = limiter(requests=10, per=10, cost=4, clock=clock)
    assert [gate.try_enter(CALL) is not None for _ in range(3)] == [True, True, False]


def test_a_cost_of_0_costs_nothing(clock):
    gate = limiter(requests=1, per=10, cost=0, clock=clock)
    assert all(gate.try_enter(CALL) for _ in range(10))


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "1", True, None, {"tokens": 1}, {"other": 1}])
def test_a_function_that_returns_no_cost_is_misuse(bad, clock):
    gate = limiter(name="gate", requests=5, per=10, cost=lambda: bad, clock=clock)
    with pytest.raises((TypeError, ValueError), match=r"cost|gate"):
        gate(lambda: None)()
    assert gate.available() == {"requests": 5}


def test_a_block_has_no_arguments_to_compute_a_cost_from(clock):
    gate = limiter(name="gate", requests=5, cost=len, clock=clock)
    with pytest.raises(TypeError, match="gate: cost is a function of the call's arguments, and a block has none"):
        with gate:
            pass
    with pytest.raises(TypeError, match="say here how much to acquire"):
        gate.try_acquire()
    assert gate.try_acquire(2) is not None


@pytest.mark.parametrize(
    "arguments", [{"amount": -1}, {"amount": "1"}, {"tokens": 1}, {"amount": True}, {"amount": 1, "requests": 1}]
)
def test_wrong_amounts_are_misuse(gate, arguments):
    with pytest.raises((TypeError, ValueError), match=r"amount|tokens"):
        gate.try_acquire(**arguments)


# Drains


def test_drained_it_lets_nobody_in_until_then_and_fills_from_empty(gate, clock):
    with decisions() as seen:
        gate.drain(20)
    assert seen == [Drained("gate", 20)]
    clock.advance(19)
    assert gate.available() == {"requests": -0.5}
    with pytest.raises(RateLimited) as caught, gate:
        pass
    assert caught.value.retry_after == pytest.approx(3)  # the drain's end, and the first token
    clock.advance(3)
    assert gate.try_acquire() is not None
    assert gate.available() == pytest.approx({"requests": 0})


@pytest.mark.parametrize("bad", [-1, math.inf, math.nan, "1", True])
def test_a_drain_takes_seconds(gate, bad):
    with pytest.raises(ValueError, match="retry_after takes a number of seconds"):
        gate.drain(bad)


def test_reset_ends_a_drain(gate):
    gate.drain(1000)
    gate.reset()
    assert gate.available() == {"requests": 5}


def test_a_throttled_call_drains_by_itself_when_it_says_for_how_long(gate, clock):
    ticket, other = gate.try_enter(CALL), gate.try_enter(CALL)
    gate.settle(ticket, Outcome("throttled", OSError()))
    assert gate.available() == {"requests": 3}
    with decisions() as seen:
        gate.settle(other, Outcome("throttled", OSError(), 30.0))
    assert Drained("gate", 30.0) in seen
    clock.advance(30)
    assert gate.available() == {"requests": 0}


def test_only_throttled_calls_drain_and_only_if_wanted(clock):
    gate = limiter(requests=5, clock=clock)
    gate.settle(gate.try_enter(CALL), Outcome("failure", OSError(), 30.0))
    assert gate.available() == {"requests": 4}
    gate = limiter(requests=5, drain_on_throttle=False, clock=clock)
    gate.settle(gate.try_enter(CALL), Outcome("throttled", OSError(), 30.0))
    assert gate.available() == {"requests": 4}


class TooMany(Exception):
    status_code = 429
    headers = MappingProxyType({"retry-after": "7"})


@pytest.mark.anyio
async def test_a_429_drains_the_whole_way_through_a_pipeline(gate, clock):
    @gate
    async def call():
        raise TooMany

    with pytest.raises(TooMany):
        await call()
    with pytest.raises(RateLimited) as caught:
        await call()
    assert caught.value.retry_after == 9


# In a pipeline


@pytest.mark.anyio
async def test_a_call_that_is_refused_further_in_gets_its_tokens_back(gate, memory, clock):
    inner = admit(concurrency=1, queue=0, sampler=memory)
    tokens = limiter(requests=5, tokens=100, per=10, cost=30, clock=clock)
    call = guard(gate, tokens, inner)(anyio.lowlevel.checkpoint)
    async with inner:
        with pytest.raises(Rejected, match="admit"):
            await call()
    assert gate.available() == {"requests": 5}
    assert tokens.available() == {"requests": 5, "tokens": 100}
    await call()
    assert gate.available() == {"requests": 4}
    assert tokens.available() == {"requests": 4, "tokens": 70}


@pytest.mark.anyio
async def test_a_cancelled_call_keeps_its_tokens(gate):
    with anyio.CancelScope() as scope:
        async with gate:
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert gate.available() == {"requests": 4}


def test_its_refusals_do_not_open_a_breaker_outside(gate, clock):
    circuit = breaker(fail_max=1, clock=clock)
    call = guard(circuit, gate)(lambda: None)
    for _ in range(5):
        call()
    for _ in range(3):
        with pytest.raises(RateLimited):
            call()
    assert circuit.state == "closed"


def test_it_belongs_inside_the_breaker(gate, clock):
    with pytest.raises(ValueError, match="would first wait for the rate"):
        guard(gate, breaker())


def test_it_describes_itself(clock):
    gate = limiter(name="api", requests=500, tokens=2e5, burst={"requests": 10}, clock=clock)
    assert gate.describe() == (
        "limiter 'api': 500 requests (burst 10) and 200,000 tokens per 60 s, 1000 may wait for 30 s"
    )
    assert repr(gate) == f"<{gate.describe()}>"
    tiered = limiter(tiers={"free": 2.5, "pro": 60}, tier=len, key=len, queue=3, max_wait=1.5)
    assert tiered.describe() == (
        "limiter 'limiter': free 2.5 requests; pro 60 requests per 60 s for each key, 3 may wait for 1.5 s"
    )


# Events


@pytest.mark.anyio
async def test_events(clock, idle):
    gate = limiter(name="gate", requests=1, per=10, queue=1, clock=clock)
    tokens = limiter(name="tokens", tokens=1, per=10, queue=0, cost=1, clock=clock)
    with decisions() as seen:
        async with anyio.create_task_group() as tasks:
            await gate(anyio.lowlevel.checkpoint)()
            tasks.start_soon(gate(anyio.lowlevel.checkpoint))
            await idle()
            with pytest.raises(RateLimited):
                await gate(anyio.lowlevel.checkpoint)()
            clock.advance(10)
        await tokens(anyio.lowlevel.checkpoint)()
    texts = [str(event) for event in seen]
    assert texts == [
        "CallAdmitted(source='gate', waited=0.0)",
        "CallSettled(source='gate', outcome='success')",
        "CallRejected(source='gate', reason='queue_full', retry_after=20.0)",
        "CallAdmitted(source='gate', waited=10.0)",
        "CallSettled(source='gate', outcome='success')",
        "CallAdmitted(source='tokens', waited=0.0)",
        "CallSettled(source='tokens', outcome='success')",
    ]


# aiolimiter's words


@pytest.mark.anyio
async def test_the_words_of_aiolimiter(clock):
    gate = limiter(4, 8, clock=clock)
    assert (gate.max_rate, gate.time_period) == (4, 8)
    assert limiter(max_rate=4, time_period=8).describe() == gate.describe()
    async with gate:
        pass
    await gate.acquire()
    await gate.acquire(1.5)
    assert not gate.has_capacity()
    assert gate.has_capacity(0.5)
    assert not gate.has_capacity(0.6)
    await gate.acquire(0)
    with pytest.raises(AttributeError, match="limiter has several rates"):
        limiter(requests=1, tokens=1).max_rate  # noqa: B018
    with pytest.raises(AttributeError, match="several rates"):
        limiter(tiers={"free": 1}).max_rate  # noqa: B018


def test_a_limiter_may_be_used_by_one_loop_after_another(clock):
    gate = limiter(requests=100, clock=clock)

    async def use():
        await gate.acquire()

    for _ in range(3):
        asyncio.run(use())
    assert gate.available() == {"requests": 97}


# Misuse


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "limiter takes a limit"),
        ({"requests": 0}, ValueError, "requests takes a number above 0"),
        ({"requests": math.inf}, ValueError, "requests takes"),
        ({"requests": "5"}, TypeError, "requests takes a number, not str"),
        ({"requests": True}, TypeError, "requests takes"),
        ({"tokens": -1}, ValueError, "tokens takes"),
        ({"max_rate": 5, "requests": 5}, ValueError, "max_rate and requests are the same"),
        ({"requests": 5, "per": 0}, ValueError, "per takes a number above 0"),
        ({"requests": 5, "per": None}, TypeError, "per takes"),
        ({"requests": 5, "burst": 0}, ValueError, "burst takes"),
        ({"requests": 5, "burst": {"tokens": 1}}, ValueError, "burst takes numbers for requests only"),
        ({"requests": 5, "tokens": 5, "burst": 5}, TypeError, "burst takes a mapping where there are two"),
        ({"requests": 5, "queue": -1}, ValueError, "queue takes a whole number of at least 0"),
        ({"requests": 5, "queue": 1.5}, ValueError, "queue takes"),
        ({"requests": 5, "max_keys": 0}, ValueError, "max_keys takes"),
        ({"requests": 5, "max_wait": 0}, ValueError, "pass queue=0"),
        ({"requests": 5, "max_wait": "1"}, TypeError, "max_wait takes"),
        ({"requests": 5, "max_wait": True}, TypeError, "max_wait takes"),
        ({"requests": 5, "key": "user"}, TypeError, "key takes a function of the call's arguments, not str"),
        ({"requests": 5, "key": breaker()}, TypeError, "key takes a function of the call's arguments, not Breaker"),
        ({"requests": 5, "adaptive": 0.5}, TypeError, "adaptive takes True or an AdaptiveRate, not float"),
        (
            {"requests": 5, "cost": 6},
            ValueError,
            "cost can never be paid in requests: a bucket holds 5, and every call",
        ),
        ({"requests": 5, "cost": -1}, ValueError, "cost takes"),
        ({"requests": 5, "cost": "1"}, TypeError, "cost takes"),
        ({"requests": 5, "cost": {"tokens": 1}}, ValueError, "limiter limits requests only, not 'tokens'"),
        ({"requests": 5, "burst": 0.5}, ValueError, "raise burst"),
        ({"requests": 5, "tier": len}, ValueError, "tier needs tiers"),
        ({"requests": 5, "default_tier": "free"}, ValueError, "default_tier needs tiers"),
        ({"requests": 5, "tiers": {"free": 1}}, ValueError, "requests and tiers exclude each other"),
        ({"burst": 5, "tiers": {"free": 1}}, ValueError, "burst and tiers exclude each other"),
        ({"tiers": {}}, TypeError, "tiers takes a mapping of at least one tier"),
        ({"tiers": {None: 1}}, TypeError, "tiers takes"),
        ({"tiers": [1]}, TypeError, "tiers takes"),
        ({"tiers": {"free": 0}}, ValueError, r"tiers\['free'\] takes a number above 0"),
        ({"tiers": {"free": {"calls": 1}}}, ValueError, r"tiers\['free'\] takes a number of requests, or a mapping"),
        ({"tiers": {"free": {}}}, ValueError, r"tiers\['free'\] takes"),
        ({"tiers": {"free": 1, "pro": {"tokens": 1}}}, ValueError, "the same dimensions for every tier"),
        ({"tiers": {"free": 1}, "default_tier": "pro"}, ValueError, "default_tier takes one of 'free', not 'pro'"),
        ({"tiers": {"free": 1}, "tier": "free"}, TypeError, "tier takes a function"),
    ],
)
def test_misuse_is_an_error_at_construction_that_names_the_argument(arguments, error, message):
    with pytest.raises(error, match=message):
        limiter(**arguments)


def test_bare_it_is_refused_for_it_has_no_default_rate():
    with pytest.raises(TypeError, match=r"limiter has no default rate: call it first"):

        @limiter
        def call(): ...


def test_it_goes_away_with_its_owner(clock):
    gc.collect()
    gate = limiter(requests=5, clock=clock)
    with gate:
        pass
    number = id(gate._lane)
    del gate
    gc.collect()
    assert all(id(thing) != number or type(thing).__name__ != "Lane" for thing in gc.get_objects())


# What a server asks for


class Throttled(Exception):
    status_code = 429

    def __init__(self, asked):
        super().__init__(asked)
        self.headers = {"Retry-After": asked}


DAY = 86_400.0
ABSURD = ["1e308", "9" * 400, "inf", "nan", "-1e308", "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 99999 23:59:59 GMT"]


@pytest.mark.parametrize("asked", ABSURD, ids=lambda asked: asked[:12])
def test_an_absurd_retry_after_closes_a_limiter_for_a_day_at_most(gate, clock, asked):
    @gate
    def work():
        raise Throttled(asked)

    with pytest.raises(Throttled):
        work()
    clock.advance(DAY)
    clock.advance(100)
    assert gate.available() == pytest.approx({"requests": 5})
    for _ in range(5):
        assert gate.try_acquire() is not None
    assert gate.try_acquire() is None  # nor does it let everything in


@pytest.mark.parametrize("asked", ABSURD, ids=lambda asked: asked[:12])
def test_reset_heals_a_limiter_of_an_absurd_retry_after(gate, clock, asked):
    @gate
    def work():
        raise Throttled(asked)

    with pytest.raises(Throttled):
        work()
    gate.drain(1e308)
    gate.reset()
    assert gate.available() == {"requests": 5}
    for _ in range(5):
        assert gate.try_acquire() is not None
    assert gate.try_acquire() is None
    clock.advance(2)
    assert gate.available() == pytest.approx({"requests": 1})


def test_the_longest_drain_is_adjustable(clock):
    gate = limiter(requests=5, per=10, max_retry_after=60, clock=clock)
    for drain in (lambda: gate.drain(1e308), lambda: gate.drain(10**400)):
        gate.reset()
        drain()
        clock.advance(61)
        assert gate.available() == pytest.approx({"requests": 0.5})
    with pytest.raises(ValueError, match="max_retry_after must be at most 86400, a day"):
        limiter(requests=5, max_retry_after=DAY + 1)
    with pytest.raises(ValueError, match="max_retry_after"):
        limiter(requests=5, max_retry_after=0)


@pytest.mark.parametrize("used", [1e308, 10**299], ids=["float", "int"])
def test_an_absurd_usage_closes_a_limiter_for_a_day_at_most(clock, used):
    gate = limiter(tokens=10, per=1, clock=clock)
    first = gate.try_acquire(1)
    first.correct(used / 2)
    first.correct(used)
    clock.advance(DAY)
    assert gate.available() == pytest.approx({"tokens": 0})
    second = gate.try_acquire(0)
    second.correct(used)
    assert gate.try_acquire(0) is None
    gate.reset()
    assert gate.available() == {"tokens": 10}
    clock.advance(1)
    assert gate.try_acquire(10) is not None
    assert gate.try_acquire(1) is None


def test_a_breaker_and_a_retry_wait_for_a_capped_time_too(clock):
    circuit = breaker(open_for=FromRetryAfter(cap=3600), fail_max=1, clock=clock)
    circuit.settle(circuit.try_enter(Call((), {})), Outcome("failure", None, 1e308))
    assert circuit.state == "open"
    clock.advance(3600)
    circuit.settle(circuit.try_enter(Call((), {})), SUCCESS)
    calls = []

    @retry(attempts=2, max_retry_after=10**6, budget=None, clock=FakeClock(autojump=True))
    def work():
        calls.append(1)
        raise Throttled("1e308")

    with pytest.raises(Throttled):
        work()
    assert len(calls) == 2
