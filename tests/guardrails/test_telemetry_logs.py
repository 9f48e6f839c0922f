"""Events in real logs: what a line says, which are written, how many, and what is never in them."""

from __future__ import annotations

import gc
import json
import logging
import logging.handlers
import queue
import re
import threading
import time

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from guardrails import breaker
from guardrails.core import events
from guardrails.core.events import BreakerChanged, CallFinished, CallRejected, CallSettled, CallTimedOut, Event, emit
from guardrails.memory.signals import AlertRaised
from guardrails.telemetry.background import Worker
from guardrails.telemetry.logs import log_events, logfmt
from guardrails.testing import FakeClock
from runners.events import WorkerExited

OPENED = BreakerChanged("openai", "closed", "open", 15.0)
HALF_OPEN = BreakerChanged("openai", "open", "half-open", None)
SETTLED = CallSettled("openai", "success")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def records():
    """What the logger ``guardrails`` was given."""
    seen = []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append(record)

    logger, handler = logging.getLogger("guardrails"), Handler()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield seen
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def lines(records):
    return [record.getMessage() for record in records]


# What a line says


def test_a_line_of_the_standard_library(records):
    with log_events():
        emit(OPENED)
    (record,) = records
    assert record.getMessage() == (
        'event=breaker.changed source=openai message="circuit closed -> open, retry after 15 s" '
        "old=closed new=open retry_after=15"
    )
    assert (record.levelname, record.name) == ("WARNING", "guardrails")
    assert (record.event, record.source) == ("breaker.changed", "openai")
    assert record.fields == {"old": "closed", "new": "open", "retry_after": 15.0}


def test_a_hint_is_part_of_it(records):
    with log_events():
        emit(AlertRaised("api", "memory_high", "critical", "9 of 10 GiB are used", "add memory", {"used": 9}))
    assert lines(records) == [
        'event=alert.raised source=api message="9 of 10 GiB are used" alert=memory_high used=9 hint="add memory"'
    ]
    assert records[0].levelname == "ERROR"


def test_a_logger_of_ones_own_and_its_level(caplog):
    logger = logging.getLogger("app.guards")
    with caplog.at_level(logging.WARNING, "app.guards"), log_events(logger):
        emit(OPENED)
        emit(HALF_OPEN)
    assert [(record.name, record.fields["new"]) for record in caplog.records] == [("app.guards", "open")]


def test_an_adapter(caplog):
    adapter = logging.LoggerAdapter(logging.getLogger("app.guards"))
    with caplog.at_level(logging.INFO, "app.guards"), log_events(adapter):
        emit(OPENED)
    assert "event=breaker.changed" in caplog.text


def test_structlog(capsys):
    logger = structlog.wrap_logger(
        structlog.PrintLogger(), processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()]
    )
    with log_events(logger):
        emit(OPENED)
    assert json.loads(capsys.readouterr().out) == {
        "event": "breaker.changed",
        "level": "warning",
        "source": "openai",
        "message": "circuit closed -> open, retry after 15 s",
        "old": "closed",
        "new": "open",
        "retry_after": 15.0,
    }


def test_structlog_as_it_is_captured_in_tests():
    with structlog.testing.capture_logs() as captured, log_events(structlog.get_logger()):
        emit(HALF_OPEN)
        emit(AlertRaised("api", "growth", "warning", "grows", "look", {"level": 5, "event": 6, "source": 7}))
    assert [(each["event"], each["log_level"], each["source"]) for each in captured] == [
        ("breaker.changed", "info", "openai"),
        ("alert.raised", "warning", "api"),
    ]
    assert (captured[1]["level_"], captured[1]["event_"], captured[1]["source_"]) == (5, 6, 7)


@given(st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), st.text() | st.integers() | st.floats()))
def test_a_line_is_one_line_and_can_be_read_back(parts):
    line = logfmt(parts)
    assert line.isprintable()
    read = dict(re.findall(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|[^ ]*)(?: |$)', line))
    assert list(read) == list(parts)
    for key, value in parts.items():
        if isinstance(value, str):
            text = read[key]
            assert (json.loads(text) if text.startswith('"') else text) == value


def test_a_name_cannot_forge_a_line(records):
    with log_events():
        emit(BreakerChanged("x\nERROR root: forged=1", "closed", "open", None))
    assert "\n" not in lines(records)[0]
    assert r'source="x\nERROR root: forged=1"' in lines(records)[0]


# Which are written


CALLS = [SETTLED, CallRejected("openai", "open", 3.0), CallTimedOut("openai", "total", 5.0)]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["breaker.changed", "breaker.changed"]),
        ({"level": "warning"}, ["breaker.changed"]),
        ({"level": "error"}, []),
        (
            {"level": "debug"},
            ["call.settled", "call.rejected", "call.timed_out", "breaker.changed", "breaker.changed"],
        ),
        ({"also": ("call.timed_out",)}, ["call.timed_out", "breaker.changed", "breaker.changed"]),
        ({"also": ("call.*",), "but": ("call.settled", "breaker.*")}, ["call.rejected", "call.timed_out"]),
        ({"level": "error", "also": ["*"], "but": ["call.*"]}, ["breaker.changed", "breaker.changed"]),
    ],
)
def test_which_are_written(records, options, names):
    with log_events(**options):
        for _ in range(2):  # the second time it is known
            for event in (*CALLS, OPENED, HALF_OPEN):
                emit(event)
    assert [record.event for record in records] == names * 2


@pytest.mark.parametrize(
    ("options", "event", "level", "shown"),
    [
        ({}, "runner.worker_exited", logging.WARNING, False),
        ({}, "runner.state_changed", logging.INFO, False),
        ({}, None, logging.WARNING, True),
        ({"level": "error"}, "runner.worker_exited", logging.WARNING, True),  # the event may be below that too
        ({"level": "error", "also": ["runner.*"]}, "runner.worker_exited", logging.WARNING, False),
        ({"but": ["runner.worker_exited"]}, "runner.worker_exited", logging.WARNING, True),
        ({}, "call.settled", logging.DEBUG, True),
    ],
)
@pytest.mark.parametrize("name", ["runners", "guardrails.memory"])
def test_a_plain_line_on_what_is_logged_as_an_event_is_left_out(caplog, name, options, event, level, shown):
    logger = logging.getLogger(name)
    extra = {} if event is None else {"event": event}
    with caplog.at_level(logging.DEBUG):
        with log_events(**options):
            logger.log(level, "while it logs", extra=extra)
        logger.log(level, "afterwards", extra=extra)
    assert [line.getMessage() for line in caplog.records] == ["while it logs"] * shown + ["afterwards"]


def test_the_same_logger_may_take_the_events(caplog):
    with caplog.at_level(logging.INFO), log_events(logging.getLogger("runners")):
        emit(OPENED)
    assert len(caplog.records) == 1


def test_after_the_end_none_is(records):
    log = log_events()
    log.stop()
    log.stop()
    emit(OPENED)
    assert records == []
    assert events.sinks == ()


def test_a_real_guard(records, clock):
    circuit = breaker(name="openai", fail_max=1, open_for=9, clock=clock)

    @circuit
    def call(prompt):
        raise ConnectionError("tell me of Peru")

    with log_events(level="debug"), pytest.raises(ConnectionError):
        call("tell me of Peru")
    assert {record.event for record in records} == {
        "breaker.changed",
        "call.admitted",
        "call.finished",
        "call.settled",
        "call.started",
    }
    assert not any("Peru" in str(record.__dict__) for record in records)


def test_what_a_worker_wrote_is_left_out_unless_it_is_asked_for(records):
    died = WorkerExited("llama", 7, "sigsegv", "was killed", 'in "tell me\nof Peru"')
    with log_events():
        emit(died)
    assert "Peru" not in str(records[0].__dict__)
    with log_events(attachments=True):
        emit(died)
    assert r'stderr="in \"tell me\nof Peru\""' in lines(records)[1]
    assert 'detail="was killed"' in lines(records)[1]


# How many


def test_what_is_too_much_is_counted(records, clock):
    with log_events(limit=3, per=60, clock=clock):
        for _ in range(315):
            emit(OPENED)
        emit(BreakerChanged("other", "closed", "open", None))
        assert len(records) == 4
        clock.advance(60)
        emit(SETTLED)  # any event will do
    assert lines(records)[-1] == (
        "event=breaker.changed source=openai "
        'message="and 312 more like it within 60 s; the last: circuit closed -> open, retry after 15 s" left_out=312'
    )
    assert records[-1].levelname == "WARNING"
    assert len(records) == 5


def test_what_was_left_out_is_told_at_the_end(records, clock):
    with log_events(limit=1, clock=clock):
        for _ in range(5):
            emit(OPENED)
        clock.advance(7)
    assert "and 4 more like it within 7 s" in lines(records)[-1]
    assert len(records) == 2


def test_it_does_not_grow(clock):
    logger = logging.getLogger("app.void")
    logger.setLevel(logging.CRITICAL)
    with log_events(logger, limit=1, clock=clock) as log:
        for number in range(3000):
            emit(BreakerChanged(f"openai-{number}", "closed", "open", None))
            emit(BreakerChanged(f"openai-{number}", "closed", "open", None))
        assert len(log._thinner) == 1024
    logger.setLevel(logging.NOTSET)


def test_many_threads(records):
    def many():
        for _ in range(200):
            emit(OPENED)
            emit(SETTLED)

    with log_events(limit=7):
        threads = [threading.Thread(target=many) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(records) == 8
    assert records[-1].fields == {"left_out": 8 * 200 - 7}


# What goes wrong


def test_a_handler_that_is_guarded_logs_no_event_of_its_own():
    circuit = breaker(name="log")
    sent = []

    class Sender(logging.Handler):
        @circuit
        def emit(self, record):
            sent.append(record.event)

    logger, handler = logging.getLogger("app.sent"), Sender()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with log_events(logger, level="debug"):
            emit(SETTLED)
            emit(SETTLED)
    finally:
        logger.removeHandler(handler)
    assert sent == ["call.settled", "call.settled"]


def test_a_broken_logger_breaks_no_call(caplog):
    class Broken:
        def debug(self, event=None, **values):
            raise OSError("disk full")

        info = warning = error = debug

    with log_events(Broken(), level="debug"):
        assert breaker()(lambda: 7)() == 7
    assert "disk full" in caplog.text


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"level": "loud"}, ValueError, "level takes one of 'debug', 'info', 'warning', 'error', not 'loud'"),
        ({"limit": 0}, ValueError, "limit takes a whole number of at least 1, not 0"),
        ({"limit": True}, ValueError, "limit takes"),
        ({"per": 0}, ValueError, "per takes a number of seconds above 0, not 0"),
        ({"per": float("inf")}, ValueError, "per takes"),
        ({"also": "call.settled"}, TypeError, "also takes a sequence of names"),
        ({"but": ["call settled"]}, ValueError, "but takes names of records"),
        ({"but": [5]}, ValueError, "but takes names of records"),
        ({"logger": "app"}, TypeError, "logger takes a logger of the standard library or of structlog, not 'app'"),
        ({"logger": logging.Logger}, TypeError, "logger takes a logger"),
    ],
)
def test_misuse_is_named(options, error, message):
    with pytest.raises(error, match=message):
        log_events(**options)
    assert events.sinks == ()


# On a thread of its own


def test_in_the_background_nothing_is_lost_and_the_order_kept(records):
    with log_events(background=True, level="debug", limit=1000):
        for number in range(500):
            emit(CallFinished("c", number, 0.5, "success"))
    assert [record.fields["call"] for record in records] == list(range(500))
    assert {record.threadName for record in records} == {"guardrails-log"}
    assert not any(thread.name == "guardrails-log" for thread in threading.enumerate())


def test_a_slow_handler_delays_no_call_and_what_is_lost_is_told(caplog):
    gate, begun = threading.Event(), threading.Event()
    written = []

    class Slow(logging.Handler):
        def emit(self, record):
            begun.set()
            gate.wait()
            written.append(record)

    logger, handler = logging.getLogger("app.slow"), Slow()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        log = log_events(logger, background=True, limit=5000)
        emit(OPENED)
        assert begun.wait(30)
        for _ in range(1500):
            emit(OPENED)
        gate.set()
        log.stop()
    finally:
        logger.removeHandler(handler)
    assert len([record for record in written if record.event == "breaker.changed"]) == 1001
    (lost,) = [record for record in written if record.event == "log.overflow"]
    assert lost.fields == {"lost": 500}


def test_what_is_due_is_told_in_the_background_too(records, clock):
    with log_events(background=True, limit=1, per=5, clock=clock) as log:
        emit(OPENED)
        emit(OPENED)
        while log._due == float("inf"):  # until both have been written
            time.sleep(0.001)
        clock.advance(5)
        emit(SETTLED)
    assert [record.fields.get("left_out") for record in records] == [None, 1]


def test_the_handlers_of_the_standard_library_do_for_the_rest():
    waiting = queue.SimpleQueue()
    logger, handler = logging.getLogger("app.queue"), logging.handlers.QueueHandler(waiting)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with log_events(logger):
            emit(OPENED)
    finally:
        logger.removeHandler(handler)
    assert waiting.get_nowait().event == "breaker.changed"


# The thread


def test_a_worker_outlives_an_error(caplog):
    done = []

    def work(thing):
        if thing == 1:
            raise ZeroDivisionError
        done.append(thing)

    worker = Worker(work, print, name="test-worker")
    for number in range(3):
        worker.put(number)
    worker.stop()
    assert done == [0, 2]
    assert "test-worker failed" in caplog.text


def test_a_worker_without_work_has_no_thread():
    worker = Worker(print, print, name="test-worker")
    worker.stop()
    worker.put(5)
    gc.collect()
    assert not any(thread.name == "test-worker" for thread in threading.enumerate())


def test_a_worker_may_stop_itself():
    worker = Worker(lambda thing: worker.stop(), print, name="test-worker")
    worker.put(1)
    thread = worker._thread
    thread.join(30)
    assert not thread.is_alive()


def test_an_event_of_ones_own_is_logged_by_its_fields(records):
    with log_events():
        emit(Event("me"))
    assert lines(records) == ["event=event.event source=me message=event"]
