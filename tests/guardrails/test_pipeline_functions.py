from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import logging
import threading
from types import SimpleNamespace
from unittest.mock import AsyncMock

import anyio
import pytest

from guardrails import admit, breaker, guard, retry, timeout
from guardrails.core.guard import Gate, Strategy
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Layer, Pipeline
from guardrails.errors import Rejected
from guardrails.testing import capture_events

pytestmark = pytest.mark.anyio


class Recorder(Layer, Gate):
    """A gate that writes down what happens, and fails the test if a ticket is settled twice."""

    def __init__(self, name="gate", refuse=None, *, waits=False):
        self.name = name
        self.refuse = refuse
        self.waits = waits
        self.calls = []
        self.open = set()
        self.outcomes = []

    def describe(self):
        return self.name

    def try_enter(self, call):
        self.calls.append(call)
        if self.refuse is not None:
            raise self.refuse
        return None if self.waits else self._ticket()

    async def enter(self, call):
        await anyio.lowlevel.checkpoint()
        return self._ticket()

    def enter_blocking(self, call):
        return self._ticket()

    def _ticket(self):
        ticket = object()
        self.open.add(ticket)
        return ticket

    def settle(self, ticket, outcome):
        self.open.remove(ticket)
        self.outcomes.append(outcome)

    @property
    def kinds(self):
        assert not self.open, "a ticket was not settled"
        return [outcome.kind for outcome in self.outcomes]


class Times(Layer, Strategy):
    """A strategy that makes the call so many times and gives the last answer."""

    name = "times"

    def __init__(self, count):
        self.count = count
        self.calls = []

    def describe(self):
        return f"{self.count} times"

    async def run(self, call, proceed):
        self.calls.append(call)
        answer = "not called"
        for _ in range(self.count):
            answer = await proceed()
        return answer

    def run_blocking(self, call, proceed):
        self.calls.append(call)
        answer = "not called"
        for _ in range(self.count):
            answer = proceed()
        return answer


@pytest.fixture
def gate():
    return Recorder()


# Every kind of function


def test_a_function(gate):
    @gate
    def work(a, *, b):
        assert gate.open
        return a + b

    assert work(3, b=4) == 7
    assert gate.kinds == ["success"]
    assert (gate.calls[0].args, gate.calls[0].kwargs, gate.calls[0].stream) == ((3,), {"b": 4}, False)


async def test_an_async_function(gate):
    @gate
    async def work(a, *, b):
        await anyio.lowlevel.checkpoint()
        assert gate.open
        return a + b

    assert inspect.iscoroutinefunction(work)
    assert await work(3, b=4) == 7
    assert gate.kinds == ["success"]


def test_a_generator(gate):
    @gate
    def count(n):
        got = yield from range(n)
        yield got
        return "end"

    assert inspect.isgeneratorfunction(count)
    stream = count(2)
    assert not gate.calls
    assert [next(stream), next(stream)] == [0, 1]
    assert gate.open
    with pytest.raises(StopIteration, match="end"):
        while True:
            next(stream)
    assert gate.kinds == ["success"]
    assert gate.calls[0].stream


async def test_an_async_generator(gate):
    @gate
    async def count(n):
        for item in range(n):
            yield item

    assert inspect.isasyncgenfunction(count)
    assert [item async for item in count(3)] == [0, 1, 2]
    assert gate.kinds == ["success"]


async def test_a_partial(gate):
    async def add(a, b):
        return a + b

    assert await gate(functools.partial(functools.partial(add, 3), b=4))() == 7
    assert gate(functools.partial(max, 3))(4) == 4
    assert gate.kinds == ["success", "success"]


async def test_an_object_that_is_called(gate):
    class Model:
        async def __call__(self, x):
            return x + 1

    class Plain:
        def __call__(self, x):
            return x + 1

    assert await gate(Model())(6) == 7
    assert gate(Plain())(6) == 7
    assert gate.kinds == ["success", "success"]


async def test_methods_bound_and_unbound(gate):
    class Client:
        @gate
        async def ask(self, x):
            return x + 1

        def plain(self, x):
            return x + 1

        @staticmethod
        @gate
        def still(x):
            return x + 1

        @classmethod
        @gate
        async def made(cls, x):
            return x + 1

    client = Client()
    assert await client.ask(6) == 7
    assert gate(client.plain)(6) == 7
    assert client.still(6) == Client.still(6) == 7
    assert await Client.made(6) == 7
    assert gate.kinds == ["success"] * 5


async def test_a_mock_of_an_async_function(gate):
    assert await gate(AsyncMock(return_value=7))() == 7
    assert gate.kinds == ["success"]


async def test_a_builtin_and_a_cached_function(gate):
    @functools.lru_cache
    def square(x):
        return x * x

    assert gate(len)("four") == 4
    assert gate(square)(3) == 9


# Refused, never silently unguarded


@pytest.mark.parametrize("wrap", [staticmethod, classmethod, property])
def test_a_guard_over_a_descriptor_is_refused(gate, wrap):
    with pytest.raises(TypeError, match=f"a guard stands under @{wrap.__name__}"):
        gate(wrap(lambda: 7))


@pytest.mark.parametrize("thing", [7, None, "text", object()])
def test_what_cannot_be_called_is_refused(gate, thing):
    with pytest.raises(TypeError, match=f"a guard decorates a function, not a {type(thing).__name__}"):
        gate(thing)


def test_a_class_is_refused(gate):
    class Client:
        pass

    with pytest.raises(TypeError, match="not the class Client: decorate the method that makes the call"):
        gate(Client)


async def _coroutine():
    return 7


async def _stream():
    yield 7


def _generator():
    yield 7


class _Awaitable:
    def __await__(self):
        yield


@pytest.mark.parametrize(
    ("make", "kind"),
    [(_coroutine, "coroutine"), (_stream, "async_generator"), (_generator, "generator"), (_Awaitable, "_Awaitable")],
)
def test_a_plain_function_that_returns_work_to_be_done_is_refused_when_called(gate, make, kind):
    @gate
    def work():
        return make()

    with pytest.raises(TypeError, match=f"plain function that returned a {kind}, whose work would run unguarded"):
        work()
    assert gate.kinds == ["failure"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_plain_function_that_returns_a_future_is_refused(gate):
    @gate
    def work():
        return asyncio.get_running_loop().create_future()

    with pytest.raises(TypeError, match=r"plain function that returned a .*Future"):
        work()


async def test_a_plain_wrapper_that_hands_a_coroutine_through_is_async(gate):
    async def work(x):
        assert gate.open
        return x

    @functools.wraps(work)
    def checked(*args):
        return work(*args)

    assert await gate(checked)(7) == 7
    assert gate.kinds == ["success"]


async def test_a_wrapper_that_runs_the_coroutine_itself_is_refused_when_called(gate):
    async def work(x):
        return x

    @functools.wraps(work)
    def runs(x):
        return x

    with pytest.raises(TypeError, match="wraps an async function but returned a int, nothing to await"):
        await gate(runs)(7)


@pytest.mark.parametrize("make", [contextlib.contextmanager(_generator), contextlib.asynccontextmanager(_stream)])
def test_a_function_that_makes_a_context_manager_is_refused(gate, make):
    with pytest.raises(TypeError, match="makes a context manager, which does its work later: guard the block"):
        gate(make)


@pytest.mark.parametrize("work", [lambda: 7, _generator], ids=["function", "generator"])
def test_a_timeout_on_sync_code_is_refused(work):
    with pytest.raises(TypeError, match=r"slow cannot guard .*nothing can interrupt it. Make it async"):
        timeout(1, name="slow")(work)


@pytest.mark.parametrize("work", [_stream, _generator])
def test_a_strategy_on_a_stream_is_refused(work):
    with pytest.raises(TypeError, match=r"times cannot drive _(stream|generator), a (stream|generator)"):
        Times(1)(work)


def test_a_strategy_for_async_functions_only_is_refused_on_a_sync_one():
    class AsyncOnly(Layer, Strategy):
        name = "only"

        def describe(self):
            return self.name

        async def run(self, call, proceed):
            return await proceed()

    with pytest.raises(TypeError, match=r"only cannot drive .*a sync function"):
        AsyncOnly()(lambda: 7)


# Signatures and names


async def test_the_signature_and_the_name_stay(gate):
    @breaker
    @gate
    async def work(a: int, *, b: str = "x") -> bytes:
        """Does it."""

    assert str(inspect.signature(work)) in {
        "(a: 'int', *, b: 'str' = 'x') -> 'bytes'",
        "(a: int, *, b: str = 'x') -> bytes",
    }
    assert (work.__name__, work.__doc__, work.__module__) == ("work", "Does it.", __name__)


async def test_a_call_with_wrong_arguments_fails_as_it_always_did(gate):
    @gate
    async def work(a): ...

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        await work()
    assert not gate.open


# Fusing


async def test_stacked_decorators_become_one_pipeline():
    gates = [Recorder(name) for name in "abc"]

    async def bare():
        return 7

    work = bare
    for gate in reversed(gates):
        work = gate(work)
    assert [layer.name for layer in work.__guarded__.pipeline.layers] == ["a", "b", "c"]
    assert work.__wrapped__ is bare
    coroutine = work()
    assert coroutine.cr_code.co_name == "guarded"
    assert await coroutine == 7
    assert [gate.kinds for gate in gates] == [["success"]] * 3


async def test_fused_functions_share_their_gates(memory):
    gate = admit(concurrency=1, queue=0, sampler=memory)

    @breaker(name="one")
    @gate
    async def one():
        assert gate.in_flight == 1
        with pytest.raises(Rejected):
            await two()

    @gate
    async def two(): ...

    await one()
    assert gate.in_flight == 0


async def test_somebody_elses_decorator_between_two_guards_stays():
    outer, inner, seen = Recorder("outer"), Recorder("inner"), []

    def logged(fn):
        @functools.wraps(fn)
        async def wrapper(*args):
            seen.append((bool(outer.open), bool(inner.open)))
            return await fn(*args)

        return wrapper

    @outer
    @logged
    @inner
    async def work():
        return 7

    assert await work() == 7
    assert seen == [(True, False)]
    assert (outer.kinds, inner.kinds) == (["success"], ["success"])


def test_the_inner_function_stays_usable_after_it_was_fused():
    outer, inner = Recorder("outer"), Recorder("inner")
    once = inner(lambda: 7)
    twice = outer(once)
    assert (once(), len(outer.calls), len(inner.calls)) == (7, 0, 1)
    assert (twice(), len(outer.calls), len(inner.calls)) == (7, 1, 2)


def test_a_pipeline_without_guards_is_the_function_itself():
    def work():
        return 7

    assert guard()(work) is work
    assert inspect.signature(guard(guard())(work)) == inspect.signature(work)
    assert breaker()(guard()(work))() == 7


# The order of entering and settling


async def test_gates_are_entered_from_outside_and_settled_from_inside():
    story = []

    class Told(Recorder):
        def try_enter(self, call):
            story.append(f"enter {self.name}")
            return super().try_enter(call)

        def settle(self, ticket, outcome):
            super().settle(ticket, outcome)
            story.append(f"settle {self.name}")

    await guard(Told("a"), Told("b"))(_coroutine)()
    assert story == ["enter a", "enter b", "settle b", "settle a"]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_refusal_settles_what_was_entered_as_ignored(place):
    refusal = Rejected("no")
    gates = [Recorder(str(number), refusal if number == place else None) for number in range(3)]
    for run in (guard(*gates)(_coroutine), lambda: anext(guard(*gates)(_stream)())):
        with pytest.raises(Rejected) as caught:
            await run()
        assert caught.value is refusal
    for run in (guard(*gates)(lambda: 7), lambda: next(guard(*gates)(_generator)())):
        with pytest.raises(Rejected):
            run()
    assert [gate.kinds for gate in gates] == [["ignored"] * 4 if number < place else [] for number in range(3)]


async def test_an_error_is_shown_to_every_gate_and_raised_as_it_is():
    gates, error = [Recorder("a"), Recorder("b")], ValueError("down")

    async def work():
        raise error

    with pytest.raises(ValueError, match="down") as caught:
        await guard(*gates)(work)()
    assert caught.value is error
    assert error.__cause__ is None
    assert [gate.outcomes for gate in gates] == [[Outcome("failure", error)]] * 2


async def test_a_returned_response_is_classified():
    gate = Recorder()
    answer = SimpleNamespace(status_code=429, headers={"retry-after": "3"})

    async def work():
        return answer

    assert await gate(work)() is answer
    assert gate(lambda: answer)() is answer
    assert gate.outcomes == [Outcome("throttled", None, 3.0)] * 2


async def test_a_waiting_gate_is_awaited_and_a_thread_blocked():
    gate = Recorder(waits=True)
    assert await gate(_coroutine)() == 7
    assert gate(lambda: 7)() == 7
    assert [item async for item in gate(_stream)()] == [7]
    assert list(gate(_generator)()) == [7]
    assert gate.kinds == ["success"] * 4


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_is_ignored_and_settled(gate, stop):
    @gate
    def work():
        raise stop

    with pytest.raises(stop):
        work()
    assert gate.kinds == ["ignored"]


async def test_a_coroutine_that_is_closed_or_dropped_is_settled(gate, idle):
    @gate
    async def work():
        await anyio.sleep_forever()

    class Suspended:
        def __await__(self):
            yield

    @gate
    async def by_hand():
        await Suspended()

    coroutine = by_hand()
    coroutine.send(None)
    coroutine.close()
    coroutine = by_hand()
    coroutine.send(None)
    del coroutine
    gc.collect()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await idle()
        tasks.cancel_scope.cancel()
    assert gate.kinds == ["ignored"] * 3


async def test_a_gate_that_fails_to_settle_is_logged_and_the_call_goes_on(caplog):
    class Broken(Recorder):
        def settle(self, ticket, outcome):
            raise ValueError("gate is broken")

    outer = Recorder("outer")
    with caplog.at_level(logging.ERROR, "guardrails"):
        assert await guard(outer, Broken("inner"))(_coroutine)() == 7
    assert "bug: inner failed to settle a call; please report this" in caplog.text
    assert outer.kinds == ["success"]


# Classify


async def test_ones_own_classify_decides_for_every_gate():
    gate, error = Recorder(), ValueError()
    pipeline = guard(
        gate,
        classify=lambda exc: Outcome("throttled", exc, 5.0),
        classify_result=lambda result: Outcome("failure" if result == "bad" else "success"),
    )

    def work(answer):
        if answer is error:
            raise error
        return answer

    assert pipeline(work)("bad") == "bad"
    assert pipeline(work)("good") == "good"
    with pytest.raises(ValueError):
        pipeline(work)(error)
    assert gate.outcomes == [Outcome("failure"), Outcome("success"), Outcome("throttled", error, 5.0)]


@pytest.mark.parametrize("combine", [guard, lambda outer, inner: inner.inside(outer)])
def test_a_classify_survives_in_a_larger_pipeline(combine):
    gate = Recorder()
    special = guard(
        gate, classify=lambda exc: Outcome("ignored", exc), classify_result=lambda result: Outcome("failure")
    )
    for pipeline in (combine(guard(Recorder()), special), combine(special, guard(Recorder()))):
        with pytest.raises(ZeroDivisionError):
            pipeline(lambda: 1 / 0)()
        pipeline(lambda: 7)()
    assert gate.kinds == ["ignored", "failure"] * 2


async def test_a_classify_that_raises_leaves_no_ticket_behind(caplog):
    gate = Recorder()

    def broken(_):
        raise LookupError("classify is broken")

    pipeline = guard(gate, classify=broken, classify_result=broken)

    async def fail():
        raise ValueError("down")

    async def fail_stream():
        raise ValueError("down")
        yield

    def fail_generator():
        raise ValueError("down")
        yield

    with caplog.at_level(logging.ERROR, "guardrails"):
        assert await pipeline(_coroutine)() == 7
        assert pipeline(lambda: 7)() == 7
        for failing in (anext(pipeline(fail_stream)()), pipeline(fail)()):
            with pytest.raises(ValueError, match="down"):
                await failing
        with pytest.raises(ValueError, match="down"):
            next(pipeline(fail_generator)())
        with pytest.raises(ValueError, match="down"):
            async with pipeline:
                raise ValueError("down")
    assert gate.kinds == ["success", "success", "failure", "failure", "failure", "failure"]
    assert "classify is broken" in caplog.text


# Strategies


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_strategy_runs_what_is_further_in_as_often_as_it_likes(count):
    outer, times, inner = Recorder("outer"), Times(count), Recorder("inner")
    pipeline = guard(outer, times, inner)
    expected = 7 if count else "not called"

    async def work(a, *, b):
        return a + b

    assert await pipeline(work)(3, b=4) == expected
    assert pipeline(lambda a, b: a + b)(3, b=4) == expected
    assert (outer.kinds, inner.kinds) == (["success"] * 2, ["success"] * 2 * count)
    assert [(call.args, call.kwargs) for call in times.calls] == [((3,), {"b": 4})] * 2


async def test_a_strategy_sees_the_errors_of_the_gates_further_in():
    class Tries(Times):
        async def run(self, call, proceed):
            for _ in range(self.count - 1):
                with contextlib.suppress(Rejected, ValueError):
                    return await proceed()
            return await proceed()

    outcomes = iter([ValueError(), Rejected("x"), None])
    gate = Recorder()

    async def work():
        if (error := next(outcomes)) is not None:
            raise error
        return 7

    assert await guard(Tries(3), gate)(work)() == 7
    assert gate.kinds == ["failure", "ignored", "success"]


async def test_strategies_nest():
    gate = Recorder()
    assert await guard(Times(2), Times(3), gate)(_coroutine)() == 7
    assert gate.kinds == ["success"] * 6


async def test_a_stacked_strategy_fuses_too():
    gate = Recorder()

    @Times(2)
    @gate
    async def work():
        return 7

    assert await work() == 7
    assert [layer.name for layer in work.__guarded__.pipeline.layers] == ["times", "gate"]
    assert gate.kinds == ["success"] * 2


# guard(...)


def test_what_is_no_guard_is_refused_with_a_hint():
    with pytest.raises(
        TypeError, match=r"layer 2 of guard\(\.\.\.\) is not a guard but function; call it first: breaker\("
    ):
        guard(timeout(1), breaker)
    with pytest.raises(TypeError, match=r"layer 1 of guard\(\.\.\.\) is not a guard but int"):
        guard(7)


def test_a_guard_that_is_neither_gate_nor_strategy_is_refused():
    class Neither(Layer):
        name = "neither"
        positions = ()

    with pytest.raises(TypeError, match="neither is neither a Gate nor a Strategy"):
        Pipeline((Neither(),))(lambda: 7)


def test_a_pipeline_stands_for_its_layers():
    a, b, c = (Recorder(name) for name in "abc")
    assert guard(a, guard(b, c)).layers == (a, b, c)
    assert repr(guard(a, guard(b, c))) == "guard(a, b, c)"


def test_a_pipeline_draws_itself():
    pipeline = guard(timeout(30, name="deadline"), breaker(name="api"), timeout(5, first=1, idle=2))
    assert pipeline.describe().splitlines() == [
        "timeout 'deadline': total 30 s",
        "   └─ breaker 'api': opens after 5 failures in a row, for 60 s, then 1 probe(s)",
        "      └─ timeout 'timeout': total 5 s, first 1 s, idle 2 s",
        "         └─ the call",
    ]
    assert guard().describe() == "the call"


def test_threads_that_use_a_new_guard_at_once_agree_on_its_pipeline():
    for _ in range(50):
        gate, start, pipelines = Recorder(), threading.Barrier(4), []

        def use(gate=gate, start=start, pipelines=pipelines):
            start.wait()
            pipelines.append(gate.pipeline)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, pipelines))) == 1


def test_a_call_is_settled_when_the_garbage_collector_strikes_inside_a_gate(memory):
    # A guarded generator in a cycle is finalised, and so settled, wherever the collector happens to run.
    gate = admit(memory=lambda: "1MiB", sampler=memory)
    fits = gate._books._fits

    def collects(nbytes):  # called with the gate's lock held
        gc.collect()
        return fits(nbytes)

    gate._books._fits = collects

    @gate
    def count():
        yield 1
        yield 2

    def use():
        stream = count()
        next(stream)
        cycle = [stream]
        cycle.append(cycle)
        del stream, cycle
        gate(lambda: 7)()

    gc.disable()
    try:
        thread = threading.Thread(target=use, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive(), "the gate's lock is held by the thread that waits for it"
    finally:
        gc.enable()
    assert (gate.in_flight, gate.reserved) == (0, 0)


class Called:
    def __repr__(self):
        return "Called(token=secret)"

    async def __call__(self):
        return 1


async def named(x):
    return x


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (functools.partial(functools.partial(named), "secret"), "named"),
        (Called(), "Called"),
        (Called().__call__, "Called.__call__"),
    ],
)
async def test_events_and_the_wrapper_of_what_has_no_name_show_no_argument(fn, name):
    guarded = guard(retry(), timeout(1))(fn)
    with capture_events() as seen:
        await guarded()
    assert {event.source for event in seen} == {name}
    assert (guarded.__qualname__, guarded.__name__) == (name, name.rpartition(".")[2])


def test_a_refusal_of_a_partial_shows_no_argument():
    with pytest.raises(TypeError, match="timeout cannot guard sorted, a sync function") as refused:
        timeout(1)(functools.partial(sorted, "secret"))
    assert "secret" not in str(refused.value)
