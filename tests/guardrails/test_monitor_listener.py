"""What hears the events: cheap, bounded, and attributed to where it happened."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from dataclasses import dataclass

import anyio
import pytest

from guardrails import breaker, guard, timeout
from guardrails.core.events import (
    CallAdmitted,
    CallFinished,
    CallRejected,
    CallTimedOut,
    Event,
    emit,
    subscribe,
)
from guardrails.core.observed import ObservedCall, pipeline_here
from guardrails.core.outcome import Outcome
from guardrails.errors import TimedOut
from guardrails.memory.monitor.log_handler import ExhaustionHandler
from guardrails.memory.monitor.signs.listener import HEARD, SOURCES, Listener


@dataclass(frozen=True, slots=True)
class RequestFinished(Event):
    """As runners have it."""

    outcome: str
    error: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerExited(Event):
    """As runners have it."""

    pid: int
    reason: str
    detail: str
    stderr: str


@pytest.fixture
def listener():
    one = Listener()
    unsubscribe = subscribe(one.hear)
    yield one
    unsubscribe()


def judged(listener, now=0.0):
    """Every source judged once."""
    for _ in range(10):
        found = listener.judge(now)
    return {(each.alert, each.source): each for each in found}


def call(source, number, *, seconds=0.1, outcome="success", late=False):
    within = ObservedCall(source)
    if late:
        emit(CallTimedOut("timeout", "total", 1.0))
    within.suspend()
    emit(CallFinished(source, number, seconds, outcome))


def test_timeouts_are_counted_for_the_pipeline_in_which_they_happened(listener):
    for number in range(20):
        call("chat", number, late=number % 2 == 0, outcome="failure" if number % 2 == 0 else "success")
        call("embed", 100 + number)
    found = judged(listener)
    assert set(found) == {("ai_timeouts", "chat")}
    assert found["ai_timeouts", "chat"].values == {"share": 0.5, "calls": 20, "timeouts": 10}


def test_of_pipelines_within_each_other_each_has_its_own(listener):
    for number in range(0, 40, 2):
        outer = ObservedCall("outer")
        call("inner", number + 1)
        emit(CallTimedOut("timeout", "total", 1.0))  # the outer one's, after the inner one ended well
        outer.end(Outcome("failure"))
    assert set(judged(listener)) == {("ai_timeouts", "outer")}
    assert pipeline_here() is None


@pytest.mark.anyio
async def test_streams_leave_nothing_in_their_readers_context(listener):
    @guard(timeout(0.02, name="late"), name="chat")
    async def numbers(*, hang):
        yield 1
        if hang:
            await anyio.sleep(30)

    streams = []
    for number in range(20):
        streams.append(numbers(hang=number % 2 == 0))
        assert await anext(streams[-1]) == 1
        assert pipeline_here() is None
    for stream in streams:
        with contextlib.suppress(TimedOut):
            async for _ in stream:
                pass
        assert pipeline_here() is None
    assert set(judged(listener)) == {("ai_timeouts", "chat")}


def test_a_block_that_is_left_in_another_context_leaves_nothing_that_counts(listener):
    gates = guard(breaker(), name="chat")
    for _ in range(100):
        block = gates.block()
        block.__enter__()
        assert pipeline_here() == "chat"
        contextvars.copy_context().run(block.__exit__, None, None, None)
        assert pipeline_here() is None


def test_a_timeout_outside_of_any_call_is_its_guards_own(listener):
    for number in range(20):
        emit(CallTimedOut("lone", "total", 1.0))
        contextvars.Context().run(call, "lone", number)
    assert set(judged(listener)) == {("ai_timeouts", "lone")}


def test_refused_and_cancelled_calls_are_no_calls(listener):
    for number in range(100):
        call("chat", number, outcome="rejected")
        call("chat", 1000 + number, outcome="ignored")
        emit(RequestFinished("runner", "cancelled", "CancelledError", 0.1))
        emit(RequestFinished("runner", "failed", "QueueFull", 0.0))
    for number in range(10):
        call("chat", 2000 + number, late=number < 5)
    assert judged(listener)["ai_timeouts", "chat"].values["share"] == 0.5
    assert "runner" not in listener._sources


def test_requests_of_runners_are_known_by_their_fields(listener):
    for number in range(30):
        expired = number % 3 == 0
        emit(RequestFinished("embedder", "expired" if expired else "answered", None, 0.2))
    assert judged(listener)["ai_timeouts", "embedder"].values == {"share": 0.3333, "calls": 30, "timeouts": 10}


def test_a_slow_source_at_low_load_is_found_and_goes_again(listener):
    def minutes(begin, end, seconds):
        found = {}
        for second in range(begin * 60, end * 60, 3):
            emit(CallFinished("chat", second, seconds, "success"))
            found = {each.alert for each in listener.judge(second)}
        return found

    assert minutes(0, 30, 0.1) == set()
    assert minutes(30, 40, 0.9) == {"slow_at_low_load"}
    assert minutes(40, 200, 0.9) == {"slow_at_low_load"}  # it does not get used to it
    assert minutes(200, 215, 0.1) == set()


def test_more_users_are_no_such_sign(listener):
    for second in range(1800):
        emit(CallFinished("chat", second, 0.1, "success"))
        listener.judge(second)
    found = []
    for second in range(1800, 2400):
        for number in range(40):
            emit(CallFinished("chat", number, 2.0, "success"))
        found += listener.judge(second)
    assert found == []


def test_crashes_are_heard_from_ends_of_workers_requests_calls_and_logs(listener):
    emit(WorkerExited("embedder", 7, "hard_budget", "was ended", ""))
    emit(WorkerExited("llama", 8, "sigabrt", "was killed", "std::bad_alloc"))
    emit(WorkerExited("fine", 9, "drained", "was ended", ""))
    emit(RequestFinished("function", "failed", "RemoteMemoryError", 0.1))
    emit(RequestFinished("function", "failed", "RemoteValueError", 0.1))
    listener.crashed("uvicorn.error", "v8")
    found = {each.source: each.values["cause"] for each in listener.judge(0.0)}  # at once, not at the tenth look
    assert found == {"embedder": "hard_budget", "llama": "c++", "function": "python", "uvicorn.error": "v8"}
    assert judged(listener, 599.0)
    assert judged(listener, 601.0) == {}


@pytest.mark.anyio
async def test_a_memory_error_of_a_guarded_call_is_heard(listener):
    @guard(timeout(5, name="limit"))
    async def greedy():
        raise MemoryError

    @guard(timeout(5))
    async def wrong():
        raise ValueError

    for function in (greedy, wrong):
        with pytest.raises((MemoryError, ValueError)):
            await function()
    (found,) = listener.judge(0.0)
    assert (found.alert, found.values["cause"]) == ("memory_crash", "python")


@pytest.mark.anyio
async def test_real_timeouts_of_a_real_pipeline_are_heard(listener):
    @guard(timeout(0.02))
    async def ask(number):
        await anyio.sleep(60 if number % 2 else 0)

    async def caller(number):
        with contextlib.suppress(TimedOut):
            await ask(number)

    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(caller, number)
    (found,) = judged(listener).values()
    assert found.values == {"share": 0.5, "calls": 12, "timeouts": 6}


def test_ten_thousand_sources_are_bounded(listener):
    for number in range(10_000):
        call(f"user-{number}", number, late=True)
        if number % 500 == 0:
            listener.judge(float(number))
    assert judged(listener, 10_000.0) == {}
    assert len(listener._sources) <= SOURCES
    assert len(listener._heard) == 0


def test_names_of_sources_are_cut(listener):
    listener.crashed("x" * 10_000, "python")
    (found,) = listener.judge(0.0)
    assert len(found.source) == 120


def test_of_very_many_calls_the_last_ones_stand_for_all(listener):
    for number in range(3 * HEARD):
        emit(CallFinished("chat", number, 0.1, "success"))
    listener.judge(0.0)
    recent = listener._sources["chat"].traffic.recent(0.0)
    assert recent.calls == pytest.approx(3 * HEARD)


def test_events_of_no_interest_cost_no_memory(listener):
    for _ in range(100):
        emit(CallAdmitted("gate", 0.0))
        emit(CallRejected("gate", "queue_full", 1.0))
    assert judged(listener) == {}
    assert len(listener._sources) == 0
    for number in range(1000):
        emit(type(f"Custom{number}", (Event,), {})("x"))
    assert len(listener._handlers) <= 256


def test_many_threads_may_emit_while_it_judges(listener):
    def work(name):
        for number in range(200):
            call(name, number, late=True)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        listener.judge(0.0)
    found = judged(listener)
    assert {source: each.values["calls"] for (_, source), each in found.items()} == dict.fromkeys(
        ("t0", "t1", "t2", "t3"), 200
    )


# Logs


@pytest.fixture
def reported():
    seen = []
    handler = ExhaustionHandler(lambda source, cause: seen.append((source, cause)))
    loggers = [logging.getLogger(name) for name in ("some.app", "guardrails.memory", "runners")]
    for logger in loggers:
        logger.addHandler(handler)
    yield seen
    for logger in loggers:
        logger.removeHandler(handler)


def test_log_records_that_say_it_are_recognised(reported):
    log = logging.getLogger("some.app")
    log.warning("worker: %s", "FATAL ERROR: JavaScript heap out of memory")
    log.getChild("db").error("request failed", exc_info=MemoryError())
    log.warning("all is well")
    log.info("CUDA out of memory")  # below its level
    assert reported == [("some.app", "v8"), ("some.app.db", "python")]


def test_a_record_that_cannot_be_formatted_is_left_to_others(reported):
    handler = ExhaustionHandler(lambda *_: None)
    handler.handle(logging.LogRecord("some.app", logging.ERROR, "file", 1, "%d out of memory", ("x",), None))
    assert reported == []


def test_our_own_records_are_no_news(reported):
    logging.getLogger("guardrails.memory").warning("memory_crash logs: out of memory")
    logging.getLogger("runners").warning("worker 7 was killed: Out of memory: Killed process")
    assert reported == []
