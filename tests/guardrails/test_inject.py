"""Faults on purpose: each stands in for the dependency's own, and every guard outside sees it as such."""

from __future__ import annotations

import logging
import math
import random
import threading
import traceback
from contextlib import ExitStack

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import breaker, guard, retry, timeout
from guardrails.core.errors import Failed, TimedOut
from guardrails.core.guard import Position
from guardrails.core.outcome import classify
from guardrails.strategies.inject import FaultInjected, InjectedError, InjectionSwitched, inject
from guardrails.strategies.inject.rules import again
from tests.guardrails.heard import decisions

pytestmark = pytest.mark.anyio


async def work(value="real"):
    await anyio.lowlevel.checkpoint()
    return value


async def counted(n=3):
    for number in range(n):
        yield number


def drained(stream):
    async def drain():
        return [item async for item in stream]

    return drain()


# Latency


@pytest.mark.parametrize(
    ("latency", "low", "high"),
    [(2, 2, 2), ((1, 3), 1, 3), (lambda value: 4.0 if value == "real" else 0.0, 4, 4), (lambda: 5, 5, 5)],
)
async def test_a_call_takes_longer(clock, idle, latency, low, high):
    guarded = inject(latency=latency, clock=clock, seed=7)(work)
    ended = []

    async def call():
        ended.append(await guarded("real"))

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await idle()
        clock.advance(low - 0.01)
        await idle()
        assert not ended
        clock.advance(high - low + 0.02)
        await idle()
        assert ended == ["real"]


async def test_a_hang_lasts_until_the_attempt_is_cut_off(clock, idle):
    circuit = breaker(fail_max=1, clock=clock)
    guarded = guard(circuit, timeout(5, clock=clock), inject(latency=math.inf, clock=clock))(work)
    ended = []

    async def call():
        with pytest.raises(TimedOut):
            await guarded()
        ended.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await idle()
        clock.advance(4.9)
        await idle()
        assert not ended
        clock.advance(0.2)
    assert ended
    assert circuit.state == "open"


async def test_latency_comes_before_the_error_and_the_result(clock, idle):
    for chaos in (inject(latency=1, error=OSError, clock=clock), inject(latency=1, result="other", clock=clock)):
        ended = []

        async def call(chaos=chaos, ended=ended):
            try:
                ended.append(await chaos(work)())
            except OSError as exc:
                ended.append(str(exc))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await idle()
            assert not ended
            clock.advance(1)
        assert ended in (["injected by inject"], ["other"])


def test_a_sync_call_takes_longer_too(clock):
    def local(a, *, b):
        return a + b

    ended = []
    guarded = inject(latency=2, clock=clock)(local)
    thread = threading.Thread(target=lambda: ended.append(guarded(1, b=2)))
    thread.start()
    while not clock._threads:  # until it waits
        pass
    assert not ended
    clock.advance(2)
    thread.join()
    assert ended == [3]


def test_no_latency_is_no_wait(clock):
    assert inject(latency=0, clock=clock)(lambda: 1)() == 1


@pytest.mark.parametrize("latency", [math.inf, 1e300, 1e9])
async def test_a_hang_on_the_machines_own_clock(idle, latency):
    ended = []

    async def call():
        ended.append(await inject(latency=latency)(work)())

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await idle()
        group.cancel_scope.cancel()
    assert not ended


@pytest.mark.parametrize("switched", ["by hand", "for a block"])
def test_a_thread_that_hangs_goes_on_when_the_game_is_over(switched):
    chaos = inject(latency=math.inf, error=ConnectionError, enabled=switched == "by hand")
    ended = []

    def call():
        try:
            chaos(lambda: 1)()
        except ConnectionError:
            ended.append(True)

    thread = threading.Thread(target=call)
    with ExitStack() if switched == "by hand" else chaos.active():
        thread.start()
        while not chaos._switch._asleep:
            pass
    if switched == "by hand":
        chaos.disable()
    thread.join()
    assert ended == [True]
    assert not chaos._switch._asleep


async def test_no_latency_outlasts_the_game_day(clock, idle):
    chaos = inject(latency=math.inf, for_seconds=60, clock=clock)
    ended = []

    async def call():
        ended.append(await chaos(work)())

    clock.advance(50)
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await idle()
        clock.advance(9)
        await idle()
        assert not ended
        clock.advance(1)
    assert ended == ["real"]
    assert not chaos.enabled


async def test_a_hit_call_can_be_cancelled_while_it_waits(clock):
    circuit = breaker(fail_max=1, clock=clock)
    for chaos in (inject(latency=math.inf, clock=clock), inject(latency=3, clock=clock)):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await guard(circuit, chaos)(work)()
        assert scope.cancelled_caught
    assert circuit.state == "closed"
    assert circuit.fail_counter == 0


# Errors


class NeedsMore(Exception):
    def __init__(self, message, *, code):
        super().__init__(message)
        self.code = code


class Uncopied(Exception):
    def __reduce_ex__(self, protocol):
        return (str, ("no exception",))


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ConnectionError, ConnectionError, "injected by bad day"),
        (ConnectionError("down"), ConnectionError, "down"),
        (NeedsMore("no", code=3), NeedsMore, "no"),
        (lambda value: KeyError(f"{value}"), KeyError, "'real'"),
        (lambda: KeyError(1), KeyError, "1"),
        (500, InjectedError, "bad day: injected HTTP 500"),
    ],
)
async def test_each_error_is_another_object(error, kind, text):
    guarded = inject(error=error, name="bad day")(work)
    caught = []
    for _ in range(3):
        with pytest.raises(kind) as info:
            await guarded("real")
        assert str(info.value) == text
        caught.append(info.value)
    assert len(set(map(id, caught))) == 3
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in caught}) == 1
    if isinstance(error, Exception):
        assert all(one is not error and one.__dict__ == error.__dict__ for one in caught)
        assert error.__traceback__ is None


def test_a_copy_keeps_its_cause_and_loses_the_traceback():
    cause = KeyError("why")
    try:
        raise ValueError("x") from cause
    except ValueError as exc:
        copied, traced = again(exc), exc.__traceback__
    assert traced is not None
    assert copied.__cause__ is cause
    assert copied.__suppress_context__
    assert copied.__traceback__ is None
    assert not again(ValueError("y")).__suppress_context__


@pytest.mark.parametrize(
    ("status", "retry_after", "kind", "wait", "headers"),
    [
        (429, None, "throttled", None, {}),
        (429, 7, "throttled", 7.0, {"retry-after": "7"}),
        (503, 0.25, "throttled", 0.25, {"retry-after": "1", "retry-after-ms": "250"}),
        (503, None, "failure", None, {}),
        (529, 1e6, "throttled", 86_400.0, {"retry-after": "1000000"}),  # a day is the most that guards take
        (404, None, "ignored", None, {}),
    ],
)
async def test_a_status_is_understood_by_the_guards_outside(status, retry_after, kind, wait, headers):
    guarded = inject(error=status, retry_after=retry_after)(work)
    with pytest.raises(InjectedError) as info:
        await guarded()
    assert isinstance(info.value, Failed)
    assert (info.value.status_code, info.value.headers, info.value.guard) == (status, headers, "inject")
    outcome = classify(info.value)
    assert (outcome.kind, outcome.retry_after) == (kind, wait)
    info.value.headers["mine"] = "x"
    with pytest.raises(InjectedError) as other:
        await guarded()
    assert other.value.headers == headers


async def test_an_injected_error_counts_as_the_dependencys_own(clock):
    circuit = breaker(fail_max=3, clock=clock)
    guarded = guard(circuit, timeout(5, clock=clock), inject(error=ConnectionError))(work)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await guarded()
    assert circuit.state == "open"


async def test_retry_gets_past_a_fault():
    chaos = inject(error=503, max_faults=2)
    guarded = guard(retry(attempts=3, wait=0), breaker(), chaos)(work)
    assert await guarded() == "real"
    assert not chaos.enabled


async def test_a_function_that_makes_no_exception_is_named():
    for error in (lambda: "no", lambda: KeyboardInterrupt("x")):
        with pytest.raises(TypeError, match="error's function made a"):
            await inject(error=error)(work)()


# Results


async def test_another_result():
    made = []

    async def slow(value):
        await anyio.lowlevel.checkpoint()
        return value * 2

    assert await inject(result=None)(work)() is None
    assert await inject(result=made)(work)() is made
    assert await inject(result=lambda: "fresh")(work)("x") == "fresh"
    assert await inject(result=slow)(work)("x") == "xx"
    assert inject(result=lambda a: a + 1)(lambda a: a)(1) == 2
    assert inject(result=5)(lambda: 1)() == 5


async def test_a_result_that_is_a_failure_counts_as_one(clock):
    class Response:
        status_code = 503

    circuit = breaker(fail_max=1, clock=clock)
    guarded = guard(circuit, inject(result=Response))(work)
    assert isinstance(await guarded(), Response)
    assert circuit.state == "open"


async def test_a_result_of_the_wrong_kind_is_named():
    with pytest.raises(TypeError, match="for streams only"):
        await inject(result=counted)(work)(2)
    for result in (work, counted):
        with pytest.raises(TypeError, match="async result cannot stand in for a sync function"):
            inject(result=result)(lambda value: 1)(1)


# Which calls


@given(st.integers(), st.floats(0, 1))
def test_the_rate_holds_and_a_seed_repeats_the_day(seed, rate):
    def hits(source):
        chaos = inject(result=1, rate=rate, **source)(lambda: 0)
        return [chaos() for _ in range(400)]

    drawn = hits({"seed": seed})
    assert drawn == hits({"seed": seed})
    assert drawn == hits({"random": random.Random(seed)})
    assert abs(sum(drawn) - 400 * rate) <= 70  # seven standard deviations


@pytest.mark.parametrize(("rate", "expected"), [(0, 0), (1, 100), (1.0, 100)])
def test_no_call_or_all(rate, expected):
    assert sum(inject(result=1, rate=rate)(lambda: 0)() for _ in range(100)) == expected


def test_a_rate_of_nothing_hits_nobody_whatever_is_drawn():
    class Least(random.Random):
        def random(self):
            return 0.0

    assert inject(result=1, rate=0, random=Least())(lambda: 0)() == 0
    assert inject(result=1, rate=0.001, random=Least())(lambda: 0)() == 1


def test_the_rate_is_a_share_of_the_calls_that_match():
    chaos = inject(result="hit", when=lambda tenant: tenant == "canary", rate=0.5, seed=1)
    guarded = chaos(lambda tenant: "real")
    assert {guarded("other") for _ in range(50)} == {"real"}
    assert 10 < [guarded("canary") for _ in range(50)].count("hit") < 40


@pytest.mark.parametrize(
    "broken",
    [
        {"when": lambda: 1 / 0},
        {"latency": lambda: 1 / 0},
        {"latency": lambda: -1},
        {"latency": lambda: "soon"},
        {"latency": lambda: math.nan},
    ],
)
async def test_a_broken_rule_is_logged_and_hits_nobody(caplog, broken):
    chaos = inject(**{"latency": 1, "name": "game", **broken})
    with caplog.at_level(logging.ERROR, "guardrails.inject"), decisions() as seen:
        assert await chaos(work)() == "real"
    assert "a function given to game failed" in caplog.text
    assert seen == []
    assert chaos.faults == 0


# On and off


async def test_it_is_switched_at_run_time():
    chaos = inject(error=OSError, enabled=False, name="x")
    guarded, stream, plain = chaos(work), chaos(counted), chaos(lambda: 1)
    assert (await guarded(), await drained(stream()), plain()) == ("real", [0, 1, 2], 1)
    with decisions() as seen:
        chaos.enable()
        chaos.enable()
        assert chaos.enabled
        for call in (guarded, lambda: drained(stream())):
            with pytest.raises(OSError, match="injected"):
                await call()
        with pytest.raises(OSError, match="injected"):
            plain()
        assert chaos.faults == 3
        chaos.disable()
        chaos.disable()
    assert (await guarded(), await drained(stream()), plain()) == ("real", [0, 1, 2], 1)
    fault = FaultInjected("x", "error", 0.0)
    assert seen == [
        InjectionSwitched("x", True, "enabled"),
        *[fault] * 3,
        InjectionSwitched("x", False, "disabled"),
    ]


def test_a_block_of_chaos_ends_with_the_block():
    chaos = inject(result=1, enabled=False)
    guarded = chaos(lambda: 0)
    with pytest.raises(KeyError), chaos.active():
        assert guarded() == 1
        raise KeyError
    assert guarded() == 0
    # Two that overlap, as two tests or two operators would: the last one out switches it off.
    first, second = ExitStack(), ExitStack()
    first.enter_context(chaos.active())
    second.enter_context(chaos.active())
    first.close()
    assert guarded() == 1
    second.close()
    assert guarded() == 0


def test_a_block_leaves_it_on_where_it_was_on_by_hand_and_off_where_it_was_called_off():
    chaos = inject(result=1)
    with chaos.active():
        pass
    assert chaos.enabled
    with chaos.active():
        chaos.disable()
        assert not chaos.enabled
    assert not chaos.enabled
    with chaos.active():
        chaos.disable()
        chaos.enable()
    assert chaos.enabled
    with chaos.active():
        chaos.disable()
        with chaos.active():
            assert chaos.enabled
        assert not chaos.enabled


def test_it_ends_by_itself_after_a_time(clock):
    chaos = inject(result=1, for_seconds=60, clock=clock, name="day")
    guarded = chaos(lambda: 0)
    clock.advance(59.9)
    assert guarded() == 1
    clock.advance(0.1)
    assert not chaos.enabled
    with decisions() as seen:
        assert [guarded(), guarded()] == [0, 0]
    assert seen == [InjectionSwitched("day", False, "for_seconds")]
    chaos.enable()
    assert chaos.faults == 0
    assert guarded() == 1
    clock.advance(60)
    with chaos.active():  # counts from now, too
        clock.advance(59)
        assert guarded() == 1
    assert guarded() == 0
    chaos.enable()
    clock.advance(59)
    with chaos.active():  # makes no game day longer that is on already
        pass
    assert guarded() == 1
    clock.advance(1)
    assert not chaos.enabled


def test_it_ends_by_itself_after_a_number_of_faults():
    chaos = inject(result=1, max_faults=2, name="day")
    guarded = chaos(lambda: 0)
    with decisions() as seen:
        assert [guarded() for _ in range(4)] == [1, 1, 0, 0]
    fault = FaultInjected("day", "result", 0.0)
    assert seen == [fault, fault, InjectionSwitched("day", False, "max_faults")]
    assert chaos.faults == 2


def test_not_one_fault_too_many_with_many_threads():
    chaos = inject(result=1, max_faults=50)
    guarded = chaos(lambda: 0)
    hits = []
    threads = [threading.Thread(target=lambda: hits.extend(guarded() for _ in range(200))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(hits) == 50


def test_a_call_that_is_drawn_while_it_is_switched_off_is_not_hit():
    chaos = inject(result=1, when=lambda: chaos.disable() or True)
    assert chaos(lambda: 0)() == 0


# Streams


async def test_a_stream_fails_before_its_first_item():
    opened = []

    async def source():
        opened.append(True)
        yield 1

    with pytest.raises(InjectedError):
        await drained(inject(error=503)(source)())
    assert not opened
    stream = guard(retry(attempts=2, wait=0), inject(error=503, max_faults=1))(source)
    assert await drained(stream()) == [1]


@pytest.mark.parametrize(("after", "expected"), [(1, [0]), (2, [0, 1])])
async def test_a_stream_breaks_in_the_middle(after, expected):
    closed = []

    async def source():
        try:
            for number in range(3):
                yield number
        finally:
            closed.append(True)

    items = []
    with pytest.raises(ConnectionError):
        async for item in inject(error=ConnectionError, after_items=after)(source)():
            items.append(item)
    assert items == expected
    assert closed == [True]


async def test_a_stream_that_is_not_drawn_is_whole():
    for after in (0, 1):
        assert await drained(inject(error=OSError, rate=0, after_items=after)(counted)()) == [0, 1, 2]


async def test_a_stream_that_is_over_before_the_fault_is_whole():
    chaos = inject(error=OSError, after_items=4)
    assert await drained(chaos(counted)()) == [0, 1, 2]
    assert chaos.faults == 0
    with pytest.raises(OSError, match="injected"):  # it has its three items, but not its end
        await drained(inject(error=OSError, after_items=3)(counted)())


async def test_a_stream_goes_on_with_other_items():
    async def others(n):
        yield "a"
        yield "b"

    class Once:
        def __init__(self):
            self.left = 1

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return "only"

    assert await drained(inject(result=others, after_items=2)(counted)(3)) == [0, 1, "a", "b"]
    assert await drained(inject(result="end", after_items=1)(counted)()) == [0, "end"]
    assert await drained(inject(result=lambda: [1, 2])(counted)()) == [[1, 2]]
    assert await drained(inject(result=Once)(counted)()) == ["only"]


async def test_a_stream_stalls_and_goes_on(clock, idle):
    items = []

    async def read(stream):
        async for item in stream:
            items.append(item)

    async with anyio.create_task_group() as group:
        group.start_soon(read, inject(latency=3, after_items=1, clock=clock)(counted)())
        await idle()
        assert items == [0]
        clock.advance(3)
        await idle()
        assert items == [0, 1, 2]


async def test_an_idle_timeout_sees_the_stall(clock, idle):
    stream = guard(timeout(idle=2, clock=clock), inject(latency=math.inf, after_items=1, clock=clock))(counted)
    items = []

    async def read():
        with pytest.raises(TimedOut, match="no further item"):
            async for item in stream():
                items.append(item)

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await idle()
        clock.advance(2)
    assert items == [0]


async def test_what_the_reader_sends_and_throws_reaches_the_source():
    async def echo():
        got = []
        while len(got) < 3:
            try:
                got.append((yield list(got)))
            except ValueError as exc:
                got.append(str(exc))

    for chaos in (inject(latency=0), inject(error=OSError, after_items=1)):
        stream = chaos(echo)()
        assert await anext(stream) == []
        # Where the fault is due next, what was thrown goes first: it belongs to the item that the reader has.
        assert await stream.athrow(ValueError("thrown")) == ["thrown"]
        if chaos._kind == "latency":
            assert await stream.asend("sent") == ["thrown", "sent"]
        else:
            with pytest.raises(OSError, match="injected"):
                await stream.asend("sent")
        await stream.aclose()


async def test_a_stream_that_is_closed_early_closes_its_source():
    closed = []

    async def source():
        try:
            yield 1
            yield 2
        finally:
            closed.append("source")

    async def others():
        try:
            yield 3
            yield 4
        finally:
            closed.append("others")

    for chaos in (inject(latency=0), inject(result=others)):
        stream = chaos(source)()
        await anext(stream)
        await stream.aclose()
    assert closed == ["source", "others"]


# Its place


async def test_it_is_innermost():
    chaos = inject(error=OSError)
    assert chaos.positions == (Position.INJECT,)
    guard(timeout(1), retry(), breaker(), timeout(2), chaos, inject(latency=1))
    for inside in (breaker(), timeout(1), retry()):
        with pytest.raises(ValueError, match=r"inject is outside \w+: it would never see the faults"):
            guard(chaos, inside)
        with pytest.raises(ValueError, match="it would never see the faults"):
            chaos(inside(work))
    guard(chaos, breaker(), check_order=False)


def test_what_it_cannot_hit_is_refused():
    chaos = inject(error=OSError)

    def numbers():
        yield 1

    with pytest.raises(TypeError, match=r"inject cannot drive .*numbers, a generator"):
        chaos(numbers)
    with pytest.raises(TypeError, match="inject cannot guard a block"), chaos:
        raise AssertionError


async def test_an_async_block_is_refused_too():
    with pytest.raises(TypeError, match="inject cannot guard a block"):
        async with inject(error=OSError):
            raise AssertionError


def test_describe_says_that_chaos_is_on():
    chaos = inject(
        latency=(0.5, 2), error=429, retry_after=3, rate=0.07, when=bool, after_items=2, for_seconds=90, max_faults=5,
        name="day",
    )  # fmt: skip
    assert chaos.describe() == (
        "inject 'day': CHAOS IS ON: latency 0.5 to 2 s and error HTTP 429, retry after 3 s for 7 % of the calls that "
        "match, after 2 item(s) of a stream, for 90 s, 5 times at most"
    )
    assert "CHAOS IS ON" in guard(breaker(), chaos).describe()
    chaos.disable()
    assert chaos.describe().startswith("inject 'day': off: latency")
    assert repr(inject(result="secret")) == "<inject 'inject': CHAOS IS ON: another result for all calls>"
    for argument, words in (
        ({"latency": math.inf}, "a hang"),
        ({"latency": 2}, "latency 2 s"),
        ({"latency": bool}, "latency by a function"),
        ({"error": OSError()}, "error OSError"),
        ({"error": OSError}, "error OSError"),
        ({"error": lambda: OSError("x")}, "error by a function"),
    ):
        assert f": {words} for all calls" in inject(**argument).describe()


# Misuse


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "inject takes latency, error or result"),
        ({"error": OSError, "result": 1}, TypeError, "error and result exclude each other"),
        ({"latency": 1, "seed": 1, "random": random.Random()}, TypeError, "seed and random exclude each other"),
        ({"latency": -1}, ValueError, "latency takes a number of seconds from 0 on, not -1"),
        ({"latency": math.nan}, ValueError, "latency takes"),
        ({"latency": "1"}, TypeError, "latency takes a number of seconds, not str"),
        ({"latency": True}, TypeError, "latency takes a number of seconds, not bool"),
        ({"latency": (2, 1)}, ValueError, "latency takes a pair"),
        ({"latency": (1, math.inf)}, ValueError, "latency takes a pair"),
        ({"latency": (1, 2, 3)}, ValueError, "latency takes a number of seconds, a pair"),
        ({"latency": ("a", 2)}, TypeError, "latency takes a number of seconds, not str"),
        ({"latency": work}, TypeError, "latency takes a sync function, not the async work"),
        ({"error": 200}, ValueError, "error takes an HTTP status from 400 to 599, not 200"),
        ({"error": True}, TypeError, "error takes an exception, its class, .* not bool"),
        ({"error": KeyboardInterrupt}, TypeError, "error takes an exception, .* not KeyboardInterrupt"),
        ({"error": KeyboardInterrupt()}, TypeError, "error takes an exception, .* not KeyboardInterrupt"),
        ({"error": dict}, TypeError, "error takes an exception, .* not dict"),
        ({"error": "down"}, TypeError, "error takes an exception, .* not str"),
        ({"error": NeedsMore}, TypeError, "NeedsMore cannot be built from a message"),
        ({"error": Uncopied()}, TypeError, "Uncopied cannot be copied"),
        ({"error": OSError, "retry_after": 1}, ValueError, "retry_after needs error="),
        ({"latency": 1, "retry_after": 1}, ValueError, "retry_after needs error="),
        ({"error": 429, "retry_after": math.inf}, ValueError, "retry_after takes a finite number"),
        ({"error": 429, "retry_after": -1}, ValueError, "retry_after takes a number of seconds from 0"),
        ({"result": breaker()}, TypeError, "result takes a value, or a function"),
        ({"result": (n for n in ())}, TypeError, "result takes .* not a generator"),
        ({"latency": 1, "rate": 1.1}, ValueError, "rate takes a share from 0 to 1"),
        ({"latency": 1, "rate": math.nan}, ValueError, "rate takes a share"),
        ({"latency": 1, "rate": True}, TypeError, "rate takes a share"),
        ({"latency": 1, "when": 1}, TypeError, "when takes a function of the call's arguments, not int"),
        ({"latency": 1, "when": work}, TypeError, "when takes a sync function"),
        ({"latency": 1, "after_items": -1}, ValueError, "after_items takes a whole number of at least 0"),
        ({"latency": 1, "after_items": 1.0}, TypeError, "after_items takes a whole number, not float"),
        ({"latency": 1, "max_faults": 0}, ValueError, "max_faults takes a whole number of at least 1"),
        ({"latency": 1, "for_seconds": 0}, ValueError, "for_seconds takes a finite number of seconds above 0"),
        ({"latency": 1, "for_seconds": math.inf}, ValueError, "for_seconds takes"),
    ],
)
def test_misuse_is_named_when_it_is_built(arguments, error, message):
    with pytest.raises(error, match=message):
        inject(**arguments)


def test_a_builtin_that_does_not_tell_its_parameters_gets_the_arguments():
    # dict's signature cannot be read.
    assert inject(result=dict)(lambda **kwargs: 0)(a=1) == {"a": 1}
    assert repr(inject.__kwdefaults__["result"]) == "UNSET"
