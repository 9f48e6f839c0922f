"""The rate that follows what the dependency says, and reservations that are corrected from inside the call."""

from __future__ import annotations

import math
import weakref

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.core.guard import Call
from guardrails.core.outcome import IGNORED, SUCCESS, Outcome
from guardrails.gates.limiter import AdaptiveRate, RateChanged, limiter
from guardrails.gates.limiter.adaptive import Share
from tests.guardrails.heard import decisions

CALL = Call((), {})
THROTTLED = Outcome("throttled")


def adaptive(clock, **numbers):
    rate = AdaptiveRate(**{"decrease": 0.5, "increase": 0.25, "window": 1, "least": 0.2, **numbers})
    return limiter(name="gate", requests=10, per=1, adaptive=rate, clock=clock)


def once(gate, outcome):
    gate.settle(gate.try_enter(CALL), outcome)


def test_a_throttled_call_lowers_the_rate_and_successes_raise_it_again(clock):
    gate = adaptive(clock)
    with decisions() as seen:
        once(gate, THROTTLED)
        assert gate.share() == 0.5
        for share in (0.75, 1.0, 1.0):
            clock.advance(1)
            once(gate, SUCCESS)
            assert gate.share() == share
    assert [(event.old, event.new) for event in seen if isinstance(event, RateChanged)] == [
        (1.0, 0.5),
        (0.5, 0.75),
        (0.75, 1.0),
    ]


def test_the_bucket_fills_at_the_lower_rate(clock):
    gate = adaptive(clock)
    once(gate, THROTTLED)
    gate.try_acquire(9)
    clock.advance(1)
    assert gate.available() == {"requests": pytest.approx(5)}


def test_once_a_window_whatever_comes(clock):
    gate = adaptive(clock)
    tickets = [gate.try_enter(CALL) for _ in range(4)]
    for ticket in tickets[:2]:
        gate.settle(ticket, THROTTLED)
    assert gate.share() == 0.5
    clock.advance(1)
    for ticket in tickets[2:]:  # they were let in before the rate was lowered: they say nothing about the new one
        gate.settle(ticket, THROTTLED)
    assert gate.share() == 0.5


def test_it_never_falls_below_the_least(clock):
    gate = adaptive(clock)
    for _ in range(10):
        clock.advance(1)
        once(gate, THROTTLED)
    assert gate.share() == 0.2


def test_failures_and_cancellations_say_nothing(clock):
    gate = adaptive(clock)
    once(gate, THROTTLED)
    clock.advance(1)
    for outcome in (Outcome("failure", ValueError()), IGNORED):
        once(gate, outcome)
    assert gate.share() == 0.5


def test_it_adapts_each_key_for_itself(clock):
    gate = limiter(requests=10, per=1, key=lambda user: user, adaptive=True, clock=clock)
    gate.settle(gate.try_enter(Call(("ada",), {})), THROTTLED)
    assert (gate.share(key="ada"), gate.share(key="grace")) == (0.7, 1.0)


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 3)), max_size=50),
    st.floats(0.5, 0.9),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
)
def test_the_share_stays_between_the_least_and_all_of_it(story, decrease, increase, least):
    share = Share(AdaptiveRate(decrease=decrease, increase=increase, window=1, least=least))
    now = 0.0
    changed = -math.inf
    for throttled, seconds in story:
        now += seconds
        before = share.value
        if (share.on_throttled if throttled else share.on_success)(now, now):
            assert now >= changed + 1, "more often than once a window"
            changed = now
            assert (share.value < before) == throttled
        else:
            assert share.value == before
        assert min(least, 1.0) <= share.value <= 1.0


@pytest.mark.parametrize(
    ("numbers", "error", "message"),
    [
        ({"decrease": 0.4}, ValueError, "decrease takes a number of 0.5 to 0.9, not 0.4"),
        ({"decrease": "half"}, TypeError, "decrease takes a number, not str"),
        ({"increase": 0}, ValueError, "increase takes a number above 0 and at most 1, not 0"),
        ({"least": 1.5}, ValueError, "least takes a number above 0 and at most 1, not 1.5"),
        ({"least": True}, TypeError, "least takes a number, not bool"),
        ({"window": 0}, ValueError, "window takes a number of seconds above 0, not 0"),
        ({"window": math.inf}, ValueError, "window takes a number of seconds above 0, not inf"),
        ({"window": None}, TypeError, "window takes a number of seconds, not NoneType"),
    ],
)
def test_misuse_names_the_argument(numbers, error, message):
    with pytest.raises(error) as caught:
        AdaptiveRate(**numbers)
    assert str(caught.value) == message


# Reservations from inside the call


@pytest.mark.anyio
async def test_a_call_corrects_what_it_has_reserved(clock):
    gate = limiter(name="gate", requests=10, tokens=100, per=10, cost=40, clock=clock)

    @gate
    async def ask(used):
        reservation = gate.reservation
        assert (reservation.requests, reservation.tokens) == (1, 40)
        reservation.correct(used)
        assert repr(reservation) == f"<reservation of 1 requests, {used} tokens>"

    await ask(10)
    assert gate.available() == {"requests": 9, "tokens": 90}
    await ask(70)
    assert gate.available() == {"requests": 8, "tokens": 20}
    with pytest.raises(LookupError, match="gate: no call runs here that has a reservation"):
        _ = gate.reservation


@pytest.mark.anyio
async def test_the_innermost_call_of_this_limiter_is_meant(clock):
    outer = limiter(name="outer", tokens=100, per=10, clock=clock)
    inner = limiter(name="inner", tokens=100, per=10, clock=clock)

    @inner
    async def part():
        inner.reservation.correct(1)
        outer.reservation.correct(2)

    @outer
    async def whole(again=True):
        if again:
            await whole(again=False)
        await part()
        with pytest.raises(LookupError):
            _ = inner.reservation

    await whole()
    assert (inner.available(), outer.available()) == ({"tokens": 98}, {"tokens": 96})


def here(gate):
    try:
        return gate.reservation
    except LookupError:
        return None


@pytest.mark.anyio
async def test_each_step_of_a_stream_has_its_reservation_and_the_reader_has_none(clock):
    gate = limiter(tokens=100, per=10, cost=lambda: 10, clock=clock)
    seen = {}

    @gate
    async def stream():
        mine = gate.reservation
        try:
            for number in range(3):
                assert gate.reservation is mine
                yield number
        finally:
            assert gate.reservation is mine
            seen[mine] = True

    @gate
    def items():
        mine = gate.reservation
        for number in range(3):
            assert gate.reservation is mine
            yield number
        seen[mine] = True

    async def step(source):
        await anext(source)

    streams = [stream() for _ in range(3)]
    for each in streams:
        await anext(each)
        assert here(gate) is None
    for each in streams:  # its next step is in a task of its own
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step, each)
    for number in (1, 2, 0):
        await streams[number].aclose()
        assert here(gate) is None
    for _ in items():
        assert here(gate) is None
    assert len(seen) == 4


@pytest.mark.anyio
async def test_a_block_inside_a_stream_is_seen_in_the_steps_of_that_stream_only(clock):
    gate = limiter(tokens=100, per=10, cost=lambda: 10, clock=clock)
    other = limiter(tokens=100, per=10, clock=clock)

    @gate
    async def stream():
        whole = gate.reservation
        async with other:
            mine = other.reservation
            yield
            assert other.reservation is mine
            assert gate.reservation is whole
        assert here(other) is outer
        yield

    async with other:
        outer = other.reservation
        source = stream()
        await anext(source)
        assert other.reservation is outer
        await anext(source)
        await source.aclose()
    assert here(other) is None


def test_dropped_generators_that_hold_a_block_leave_nothing_in_the_context(clock):
    gate = limiter(tokens=10_000, per=10, clock=clock)

    def block():
        with gate:
            yield

    for order in (1, -1):
        sources = [block() for _ in range(200)]
        for source in sources:
            next(source)
        held = weakref.ref(gate.reservation)
        for source in sources[::order]:
            source.close()
        del source, sources
        assert here(gate) is None
        assert held() is None


def test_a_reservation_takes_an_amount_that_its_limiter_knows(clock):
    gate = limiter(name="gate", requests=10, per=10, clock=clock)
    reservation = gate.try_acquire()
    assert reservation.tokens == 0
    with pytest.raises(TypeError, match="correct takes what the call used"):
        reservation.correct()
    with pytest.raises(ValueError, match="gate limits requests only, not 'tokens'"):
        reservation.correct(tokens=3)
    with pytest.raises(ValueError, match="amount takes a number of at least 0, not -1"):
        reservation.correct(-1)
