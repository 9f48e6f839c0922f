"""Guards under every order of events that a seed can think of: see `interleave`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest

from guardrails import breaker, bulkhead, limiter
from guardrails.core.errors import Rejected
from guardrails.core.guard import UNREAD
from guardrails.errors import CircuitOpen
from guardrails.gates.admit import admit
from guardrails.gates.bulkhead import Aimd
from tests.guardrails.interleave import WAYS, explore, sweep
from tests.guardrails.places import LONG, places

GIB = 1024**3

# Places: permits balance, no wake-up is lost, first in first out


def a_bulkhead(clock, rng, max_wait):
    size = rng.choice((1, 2, 3))
    return bulkhead(size, queue=100, max_wait=max_wait, clock=clock), size


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("max_wait", [LONG, 2])
def test_a_bulkheads_places(how, max_wait):
    explore(places(a_bulkhead, max_wait=max_wait), **how)


def test_a_bulkheads_places_are_cancelled_at_every_await_point():
    sweep(places(a_bulkhead), 0)
    sweep(places(a_bulkhead, max_wait=2), 0)


def a_fair_bulkhead(clock, rng, max_wait):
    size = rng.choice((1, 2))
    gate = bulkhead(
        size, queue=100, max_wait=max_wait, priority=lambda number: number % 2, aging=2,
        key=lambda number: number % 3, clock=clock,
    )  # fmt: skip
    return gate, size


def an_adaptive_bulkhead(clock, rng, max_wait):
    return bulkhead(Aimd(initial=2, minimum=1, maximum=4), queue=100, max_wait=max_wait, clock=clock), 4


@pytest.mark.parametrize("how", WAYS)
def test_other_orders_and_sizes(how):
    explore(places(a_fair_bulkhead, fifo=False), **how)
    explore(places(an_adaptive_bulkhead, fits=lambda gate, _: gate.in_flight < gate.limit), **how)


COSTS = (2, 1, 3, 1, 2, 1)


@pytest.fixture
def an_admit(memory):
    kind = type(memory)

    def build(clock, rng, max_wait):
        gate = admit(
            concurrency=3, memory=lambda number: COSTS[number % 6] * GIB, queue=100, max_wait=max_wait,
            sampler=kind(), clock=clock,
        )  # fmt: skip
        return gate, 3

    def fits(gate, number):
        return gate.in_flight < 3 and gate.reserved + COSTS[number % 6] * GIB <= gate._headroom

    def scenario(max_wait=LONG):
        return places(build, max_wait=max_wait, fits=fits)

    return scenario


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("max_wait", [LONG, 2])
def test_admission_by_weight(an_admit, how, max_wait):
    explore(an_admit(max_wait), **how)


def test_admission_is_cancelled_at_every_await_point(an_admit):
    for seed in range(2):
        sweep(an_admit(), seed)


# Breaker: exactly N probes, and each one's place comes back


def half_open(probes, threshold, lease):
    async def scenario(world):
        clock, rng = world.clock, world.rng
        circuit = breaker(
            fail_max=1, open_for=5, probes=probes, success_threshold=threshold, probe_lease=lease, clock=clock
        )  # fmt: skip
        live = []

        def running():
            now, generation = clock.now(), circuit._generation
            return [probe for probe in live if probe[0] == generation and now < probe[1] + lease]

        @circuit
        async def ask(hold, ends):
            me = (circuit._generation, clock.now(), object())
            if circuit.state == "half-open":
                live.append(me)
                assert len(running()) + circuit._probe_successes <= probes
            try:
                await clock.sleep(hold)
                await asyncio.sleep(0)
                if ends == "fails":
                    raise ConnectionError
                if ends == "leaves":
                    raise asyncio.CancelledError
            finally:
                if me in live:
                    live.remove(me)

        async def caller(delay, hold, ends):
            await clock.sleep(delay)
            why = None
            try:
                await ask(hold, ends)
            except CircuitOpen as refusal:
                why = refusal.reason
            except ConnectionError:
                pass
            if why == "half_open":  # refused only if all places are taken
                assert len(running()) + circuit._probe_successes >= probes

        with pytest.raises(ConnectionError):
            await ask(0, "fails")
        assert circuit.state == "open"
        for _ in range(7):
            hold = rng.choice((0, 0, 1, 2, lease, lease + 1))
            ends = rng.choice(("well", "well", "fails", "leaves"))
            world.spawn(caller(rng.choice((5, 5, 5, 6, 7, 11, 12)), hold, ends))
        await world.join()

        # Every place has come back.
        assert not live
        if circuit.state == "open":
            clock.advance(5)
        if circuit.state != "closed":
            taken = circuit._probe_successes if circuit.state == "half-open" else 0
            for _ in range(probes - taken):
                circuit.try_enter(UNREAD)
            with pytest.raises(CircuitOpen):
                circuit.try_enter(UNREAD)

    return scenario


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize(("probes", "threshold"), [(1, 1), (2, 2), (3, 2)])
def test_exactly_so_many_probes(how, probes, threshold):
    explore(half_open(probes, threshold, lease=3), **how)


def test_every_probes_place_comes_back_from_every_await_point():
    for seed in range(2):
        sweep(half_open(2, 2, lease=3), seed)


# Limiter: never more than the rate, nobody starves, first in first out


def rated(*, corrects=False, drains=False):
    async def scenario(world):
        clock, rng = world.clock, world.rng
        per = rng.choice((1, 4))
        limits = {"requests": rng.choice((1, 2, 5)), "tokens": rng.choice((5, 10))}
        if rng.random() < 0.5:
            del limits[rng.choice(("requests", "tokens"))]
        burst = {name: rng.choice((limit, max(1, limit // 2), limit * 2)) for name, limit in limits.items()}
        gate = limiter(**limits, per=per, burst=burst, queue=100, max_wait=LONG, clock=clock)
        arrivals = itertools.count()
        queue, entered, taken, drained = {}, [], [], []

        async def caller(delay, hold, amounts, uses):
            await clock.sleep(delay)
            number = next(arrivals)
            queue[number] = amounts
            try:
                reservation = await gate.acquire(**amounts)
            finally:
                del queue[number]
            entered.append(number)
            record = [clock.now(), dict(amounts)]
            taken.append(record)
            assert not any(begun < clock.now() < ended for begun, ended in drained)
            if uses is None:
                return
            await clock.sleep(hold)
            reservation.correct(**(used := {name: amount * uses for name, amount in amounts.items()}))
            record[1] = used

        async def drainer():
            await clock.sleep(1)
            drained.append((clock.now(), clock.now() + 2))
            gate.drain(2)

        def check():
            assert gate.waiting == len(queue)
            if queue:
                head = min(queue)
                assert max(entered, default=-1) < head, "overtaken"
                there = gate.available()
                assert any(amount > there[name] for name, amount in queue[head].items()), "room, and somebody waits"

        world.when_idle(check)
        for _ in range(7):
            amounts = {name: rng.choice((1, 1, burst[name])) for name in limits}
            uses = rng.choice((None, 0, 0.5)) if corrects else None
            world.spawn(caller(rng.choice((0, 0, 0.5, 1, 3, 4)), rng.choice((0, 1, 3, 4)), amounts, uses))
        if drains:
            world.spawn(drainer())
        await world.join()
        if not world.killed:
            assert sorted(entered) == list(range(7))

        for name, limit in limits.items():
            for first, (begin, _) in enumerate(taken):
                total = 0
                for now, amounts in taken[first:]:
                    total += amounts[name]
                    assert total <= burst[name] + limit / per * (now - begin) + 1e-6, f"too many {name}"
        clock.advance(1000)
        assert gate.waiting == 0
        assert gate.available() == pytest.approx(burst)

    return scenario


@pytest.mark.parametrize("how", [{}, {"kill": 0.05}])
@pytest.mark.parametrize("options", [{}, {"corrects": True}, {"drains": True}])
def test_a_limiters_rate(how, options):
    explore(rated(**options), **how)


def test_a_limiter_is_cancelled_at_every_await_point():
    sweep(rated(corrects=True), 1)


class Throttled(Exception):
    status_code = 429

    def __init__(self, retry_after):
        super().__init__(retry_after)
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        self.response = self


def lanes(world):
    """Keys that come and go, 429s, a rate that adapts, corrections both ways: nobody is forgotten."""

    async def scenario(world):
        clock, rng = world.clock, world.rng
        gate = limiter(
            requests=2, tokens=10, per=1, key=lambda key, cost: key, cost=lambda key, cost: {"tokens": cost},
            max_keys=2, max_wait=rng.choice((3, LONG)), queue=rng.choice((2, 50)), adaptive=rng.random() < 0.5,
            clock=clock,
        )  # fmt: skip

        @gate
        async def ask(key, cost):
            await clock.sleep(rng.choice((0, 0.5, 1)))
            if rng.random() < 0.2:
                raise Throttled(rng.choice((None, 1, 2)))
            if rng.random() < 0.3:
                gate.reservation.correct(tokens=cost * rng.choice((0, 0.5, 2)))

        async def caller(delay, key, cost):
            await clock.sleep(delay)
            with contextlib.suppress(Rejected, Throttled):
                await ask(key, cost)

        def check():
            later = (clock.due or 0) > clock.now() + 1e-6  # than what rounding makes of now
            for lane in gate._lanes:
                assert (len(lane) == 0) == (lane.first is None)
                if lane.first is not None and later:
                    fits = [
                        bucket.fits(amount, clock.now())
                        for bucket, amount in zip(lane.buckets, lane.first.amounts, strict=True)
                    ]
                    assert not all(fits), "room, and somebody waits"

        world.when_idle(check)
        for _ in range(9):
            world.spawn(caller(rng.choice((0, 0, 0.5, 1)), rng.choice("aabc"), rng.choice((1, 3, 10))))
        await world.join()
        assert gate.waiting == 0

    return scenario(world)


@pytest.mark.parametrize("how", WAYS)
def test_nobody_is_forgotten_in_a_lane(how):
    explore(lanes, **how)


def refunded(world):
    """At one moment everything can be given back: afterwards the bucket is as full as it was."""

    async def scenario(world):
        clock, rng = world.clock, world.rng
        gate = limiter(tokens=10, per=10, queue=100, max_wait=LONG, clock=clock)

        async def caller(amount):
            reservation = await gate.acquire(tokens=amount)
            try:
                await asyncio.sleep(0)
            finally:
                reservation.refund()

        for _ in range(6):
            world.spawn(caller(rng.choice((1, 4, 7, 10))))
        await world.join()
        assert (gate.waiting, clock.now()) == (0, 1000)
        assert gate.available() == {"tokens": pytest.approx(10)}

    return scenario(world)


@pytest.mark.parametrize("how", [{}, {"kill": 0.05}])
def test_what_is_refunded_is_there_again(how):
    explore(refunded, **how)


def test_what_is_refunded_is_there_again_after_a_cancellation_at_every_await_point():
    for seed in range(3):
        sweep(refunded, seed)
