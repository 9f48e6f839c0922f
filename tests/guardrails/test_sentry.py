"""What arrives at Sentry, by the real SDK and over a real connection."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import sentry_sdk
from sentry_sdk.integrations.logging import LoggingIntegration

from guardrails import breaker, guard, keyed, retry
from guardrails.core import events
from guardrails.core.errors import MissingExtra
from guardrails.core.events import BreakerChanged, CallRejected, CallSettled, MemoryPressure, emit
from guardrails.errors import CircuitOpen
from guardrails.memory.monitor.sample import ProcessSample, Sample, Scope
from guardrails.memory.signals import AlertCleared, AlertRaised, MemorySampled
from guardrails.telemetry import sentry as public
from guardrails.telemetry.logs import log_events
from guardrails.telemetry.sentry import GuardrailsIntegration, install, integration
from guardrails.telemetry.sentry.reporter import Reporter
from guardrails.telemetry.sentry.settings import Settings
from guardrails.testing import FakeClock
from tests.sentry_sink import SentrySink, sentry, sentry_sink

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
PROMPT = "planted-prompt-what-is-the-capital"
KEY = "sk-planted-key-0451"

SAMPLE = Sample(
    at=1_800_000_000.0,
    monotonic=5.0,
    processes=(
        ProcessSample("self", 10, "self", 100 * MIB, 150 * MIB, 120 * MIB),
        ProcessSample("embedder/0", 11, "worker", 400 * MIB, 600 * MIB),
        ProcessSample(f"program --key {KEY}", 12, "child", 5 * MIB, 6 * MIB, 5 * MIB),
    ),
    scopes=(Scope("host", 7 * MIB, 10 * MIB), Scope("/app", 1 * MIB, 2 * MIB)),
)


@pytest.fixture(autouse=True, scope="module")
def threads_of_the_sdk_s_own():
    """A connection that the SDK's pool has kept is closed by the collector, not by it."""
    yield
    gc.collect()


@pytest.fixture
def sink():
    with sentry_sink() as sink:
        yield sink


def high(source="embedder/0", severity="warning", alert="memory_high", message="memory is at 85 % of 512 MiB"):
    return AlertRaised(source, alert, severity, message, "raise memory=, or find what grows", {"share": 0.85})


# ------------------------------------------------------------------------------------------------------ each kind


def test_an_alert_with_the_memory_of_the_moment(sink: SentrySink):
    with sentry(sink), install():
        emit(MemorySampled("monitor", SAMPLE))
        emit(high())
        emit(high("api", "critical", "memory_growth", "reaches the budget in 42 min"))
        sink.flushed()
    warning, critical = sink.events
    assert warning["level"] == "warning"
    assert warning["message"] == "embedder/0: memory is at 85 % of 512 MiB"
    assert warning["fingerprint"] == ["guardrails", "alert.raised", "embedder/0", "memory_high"]
    assert warning["tags"] == {
        "guardrails.event": "alert.raised",
        "guardrails.source": "embedder/0",
        "guardrails.alert": "memory_high",
    }
    about = warning["contexts"]["guardrails"]
    assert (about["hint"], about["share"]) == ("raise memory=, or find what grows", 0.85)
    assert "held_back" not in about
    memory = warning["contexts"]["memory"]
    assert memory["at"].startswith("2027-01-15T08:00:00")
    assert memory["private"] == 505 * MIB
    assert memory["embedder/0 (11)"] == {"role": "worker", "private": 400 * MIB, "rss": 600 * MIB}
    assert memory["self (10)"] == {"role": "self", "private": 100 * MIB, "rss": 150 * MIB, "pss": 120 * MIB}
    assert memory["limit host"] == {"used": 7 * MIB, "limit": 10 * MIB}
    assert memory["limit /app"] == {"used": 1 * MIB, "limit": 2 * MIB}
    assert list(memory)[2:5] == ["embedder/0 (11)", "self (10)", "program (12)"]  # the largest first
    assert (critical["level"], critical["fingerprint"][-1]) == ("error", "memory_growth")
    assert KEY.encode() not in sink.raw  # of a command line the program alone


def test_many_processes_are_the_largest_and_the_rest(sink: SentrySink):
    processes = tuple(ProcessSample(f"w/{n}", n, "worker", n * MIB, n * MIB) for n in range(1, 31))
    with sentry(sink), install():
        emit(MemorySampled("monitor", Sample(0.0, 0.0, processes, ())))
        emit(high())
        sink.flushed()
    memory = sink.events[0]["contexts"]["memory"]
    assert memory["10 more"] == {"private": sum(range(1, 11)) * MIB}
    assert [name for name in memory if name.startswith("w/")] == [f"w/{n} ({n})" for n in range(30, 10, -1)]


def test_a_real_breaker_that_opens_with_what_led_to_it(sink: SentrySink):
    guarded = breaker(name="openai", fail_max=2, open_for=15)

    @guarded
    def ask(prompt):
        raise ConnectionError(prompt + KEY)

    with sentry(sink), install():
        for _ in range(2):
            with pytest.raises(ConnectionError):
                ask(PROMPT)
        with pytest.raises(CircuitOpen):
            ask(PROMPT)
        guarded.force_open()  # somebody does that on purpose, and knows
        emit(high())
        sink.flushed()
    opened, alert = sink.events
    assert opened["message"] == "openai: circuit closed -> open, retry after 15 s"
    assert (opened["level"], opened["fingerprint"]) == ("warning", ["guardrails", "breaker.changed", "openai"])
    crumbs = alert["breadcrumbs"]["values"]
    assert [(crumb["category"], crumb["message"]) for crumb in crumbs] == [
        ("guardrails.call.rejected", "openai: a call was refused: open, retry after 15 s"),
        ("guardrails.breaker.changed", "openai: circuit open -> forced-open"),
    ]
    assert crumbs[0]["data"]["reason"] == "open"
    assert PROMPT.encode() not in sink.raw
    assert KEY.encode() not in sink.raw


def test_a_guard_made_for_a_user_s_key_is_named_by_its_family(sink: SentrySink):
    users = keyed(lambda user: breaker(name=user, fail_max=1), key=lambda user: user, name="users")

    @guard(users)
    def ask(user):
        raise ConnectionError

    with sentry(sink, traces_sample_rate=1.0), install():
        with sentry_sdk.start_transaction(name="request"):
            with pytest.raises(ConnectionError):
                ask(KEY)
            with pytest.raises(CircuitOpen):
                ask(KEY)
        emit(high())
        sink.flushed()
    assert [event["tags"]["guardrails.source"] for event in sink.events] == ["users", "embedder/0"]
    assert sink.events[1]["breadcrumbs"]["values"][0]["message"].startswith("users: a call was refused")
    assert len(sink.of("transaction")[0]["spans"]) == 2
    assert KEY.encode() not in sink.raw


def test_steps_are_breadcrumbs_of_the_application_s_own_events(sink: SentrySink):
    attempts = []

    @retry(attempts=3, name="again", wait=0)
    def ask():
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError
        return 7

    with sentry(sink), install():
        with sentry_sdk.isolation_scope():
            assert ask() == 7
            sentry_sdk.capture_message("the application's own")
        sentry_sdk.capture_message("of another request")
        sink.flushed()
    own, other = sink.events
    assert [crumb["category"] for crumb in own["breadcrumbs"]["values"]] == ["guardrails.retry.scheduled"] * 2
    assert own["breadcrumbs"]["values"][0]["message"].startswith("again: attempt 2 in ")
    assert "breadcrumbs" not in other or other["breadcrumbs"]["values"] == []


def test_breadcrumbs_are_few_and_count_what_was_left_out(sink: SentrySink):
    clock = FakeClock()
    with sentry(sink), reporter(clock, breadcrumbs=24):
        for _ in range(50):
            emit(CallRejected("openai", "open", 1.0))
        clock.advance(30)
        emit(CallRejected("openai", "open", 1.0))
        for number in range(50):
            emit(CallRejected(f"guard {number}", "open", 1.0))
        sentry_sdk.capture_message("own")
        sink.flushed()
    crumbs = sink.events[0]["breadcrumbs"]["values"]
    assert [crumb["data"].get("held_back") for crumb in crumbs[:3]] == [None, None, 48]
    assert len(crumbs) == 2 + 24  # in 30 s the bucket has filled again


def test_no_breadcrumbs_when_switched_off(sink: SentrySink):
    with sentry(sink), install(breadcrumbs=0):
        emit(CallRejected("openai", "open", 1.0))
        emit(high())
        sink.flushed()
    assert sink.events[0]["breadcrumbs"]["values"] == []


# ----------------------------------------------------------------------------------------------- how much is sent


@dataclass
class Reporting:
    """A reporter on a clock of the test's own."""

    clock: FakeClock
    settings: dict[str, object]

    def __enter__(self) -> Reporter:
        self.reporter = Reporter(Settings(**self.settings), sentry_sdk, clock=self.clock)
        self.reporter.start()
        return self.reporter

    def __exit__(self, *_: object) -> None:
        self.reporter.stop()


def reporter(clock: FakeClock, **settings: object) -> Reporting:
    return Reporting(clock, settings)


def test_a_thousand_alike_are_as_many_as_was_said(sink: SentrySink):
    clock = FakeClock()
    with sentry(sink), reporter(clock) as reporting:
        for _ in range(1000):
            emit(high())
        clock.advance(100)
        emit(high())
        sink.flushed()
        assert (reporting.sent, reporting.held_back) == (4, 997)
    held_back = [event["contexts"]["guardrails"].get("held_back") for event in sink.events]
    assert held_back == [None, None, None, 997]


def test_of_many_kinds_together_as_many_as_was_said(sink: SentrySink):
    with sentry(sink), install(alike=2, in_all=5) as reporting:
        for number in range(100):
            emit(high(f"worker {number}"))
        sink.flushed()
        assert reporting.held_back == 95
    assert len(sink.events) == 5


def test_threads_together_get_no_more(sink: SentrySink):
    def many():
        for _ in range(100):
            emit(high())

    with sentry(sink), install(alike=3):
        threads = [threading.Thread(target=many) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sink.flushed()
    assert len(sink.events) == 3


# --------------------------------------------------------------------------------------------------- init, later


def test_what_came_before_init_is_sent_after_it_without_a_further_event(sink: SentrySink):
    began = time.time()
    with install(keep=2) as reporting:
        for source in "abc":
            emit(MemorySampled("monitor", SAMPLE))
            emit(high(source))
        assert reporting.kept == 2
        emit(CallSettled("openai", "success"))
        with sentry(sink):
            sink.wait(lambda: len(sink.events) == 2)
            assert reporting.kept == 0
            sink.wait(lambda: not [t for t in threading.enumerate() if t.name == "guardrails-sentry"])
            emit(high("d"))
            sink.flushed()
    assert [event["tags"]["guardrails.source"] for event in sink.events] == ["b", "c", "d"]
    at = [sentry_time(event["timestamp"]) for event in sink.events]
    assert began - 1 <= at[0] <= at[2] <= time.time() + 1
    assert sink.events[0]["contexts"]["memory"]["private"] == 505 * MIB


def sentry_time(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def test_a_thousand_alike_before_init_are_kept_as_few(sink: SentrySink):
    with install() as reporting:
        for _ in range(1000):
            emit(high())
        assert reporting.kept == 3
        with sentry(sink):
            sink.wait(lambda: len(sink.events) == 3)


def test_keep_nothing(sink: SentrySink):
    with install(keep=0) as reporting:
        emit(high())
        assert reporting.kept == 0
        assert not [t for t in threading.enumerate() if t.name == "guardrails-sentry"]


def test_stop_undoes_it(sink: SentrySink):
    before = events.sinks
    reporting = install()
    emit(high("kept"))
    assert len(events.sinks) == len(before) + 1
    reporting.stop()
    reporting.stop()
    assert events.sinks == before
    assert not [t for t in threading.enumerate() if t.name == "guardrails-sentry"]
    with sentry(sink):
        emit(high())
        reporting.handle(high())
        sink.flushed()
    assert sink.events == []


def test_a_second_install_takes_the_place_of_the_first(sink: SentrySink):
    first = install(alike=1)
    emit(high("kept by the first"))
    with install(alike=2) as second, sentry(sink):
        assert (first.kept, second.kept) == (0, 1)
        for _ in range(5):
            emit(high())
        sink.flushed()
    # What was kept may be on its way by another thread when the next is sent.
    found = sorted(sink.events, key=lambda event: event["timestamp"])
    assert [event["tags"]["guardrails.source"] for event in found] == ["kept by the first", *["embedder/0"] * 2]


def test_a_client_that_was_closed_takes_nothing(sink: SentrySink):
    with install() as reporting:
        with sentry(sink):
            pass
        emit(high())
        assert reporting.kept == 1


# ------------------------------------------------------------------------------------------------ the integration


@pytest.fixture
def listening(monkeypatch):
    """The integration subscribes once for the process; the tests end it."""
    ends = []
    monkeypatch.setattr(integration, "_subscribed", False)
    monkeypatch.setattr(integration, "subscribe", lambda sink: ends.append(events.subscribe(sink)))
    monkeypatch.setattr("sentry_sdk.integrations._processed_integrations", set())
    yield
    for end in ends:
        end()


@pytest.mark.usefixtures("listening")
def test_as_an_integration(sink: SentrySink):
    ours = GuardrailsIntegration(alike=2, monitor_slug="memory")
    with sentry(sink, integrations=[ours]):
        for _ in range(5):
            emit(high())
        emit(CallSettled("openai", "success"))
        emit(MemorySampled("monitor", SAMPLE))
        sink.flushed()
    assert len(sink.events) == 2
    assert len(sink.of("check_in")) == 1
    assert sink.events[0]["sdk"]["integrations"] == ["guardrails"]
    emit(high("after the client"))
    again = GuardrailsIntegration(alike=1)
    with sentry(sink, integrations=[again]):  # the SDK sets it up no second time
        for _ in range(5):
            emit(high("again"))
        sink.flushed()
    assert [event["tags"]["guardrails.source"] for event in sink.events[2:]] == ["again"]
    ours.reporter.stop()
    again.reporter.stop()


@pytest.mark.usefixtures("listening")
def test_installed_and_integrated_it_is_said_once(sink: SentrySink):
    with install(spans=True) as installed:
        emit(high("kept"))
        ours = GuardrailsIntegration()
        with sentry(sink, integrations=[ours], traces_sample_rate=1.0):
            sink.wait(lambda: len(sink.events) == 1)
            emit(high())
            with sentry_sdk.start_transaction(name="request"):
                breaker(name="b")(lambda: 1)()
            sink.flushed()
        assert installed.sent == 1
        ours.reporter.stop()
    assert [event["tags"]["guardrails.source"] for event in sink.events] == ["kept", "embedder/0"]
    assert len(sink.of("transaction")[0]["spans"]) == 1


# ------------------------------------------------------------------------------------------------------ check-ins


def test_the_monitor_checks_in_once_a_minute(sink: SentrySink):
    clock = FakeClock()
    with sentry(sink, environment="staging"), reporter(clock, monitor_slug="memory-api"):
        for second in range(181):
            if second == 70:
                emit(high(severity="critical"))
            if second == 130:
                emit(AlertCleared("embedder/0", "memory_high", 60.0))
            emit(MemorySampled("monitor", SAMPLE))
            clock.advance(1)
        sink.flushed()
    began, ended, error, ok = sink.of("check_in")
    assert (began["status"], ended["status"], error["status"], ok["status"]) == ("in_progress", "ok", "error", "ok")
    assert began["check_in_id"] == ended["check_in_id"]
    assert len({began["check_in_id"], error["check_in_id"], ok["check_in_id"]}) == 3
    assert ended["duration"] == 60
    for one in sink.of("check_in"):
        assert (one["monitor_slug"], one["environment"]) == ("memory-api", "staging")
        # A string for the number, and Sentry takes no notice of any of it.
        assert one["monitor_config"]["schedule"] == {"type": "interval", "value": 1, "unit": "minute"}


def test_no_check_in_without_a_slug_nor_without_a_sample(sink: SentrySink):
    with sentry(sink):
        with install():
            emit(MemorySampled("monitor", SAMPLE))
        with install(monitor_slug="memory"):
            emit(high())
        sink.flushed()
    assert sink.of("check_in") == []


# -------------------------------------------------------------------------------------------- what is not sent


def test_what_is_on_the_application_s_scopes_stays_with_the_application(sink: SentrySink):
    """A web integration puts the request's body on every event that is captured meanwhile."""

    def put_body(event, hint):
        event["request"] = {"data": {"prompt": PROMPT}}
        return event

    with sentry(sink, traces_sample_rate=1.0), install():
        with sentry_sdk.isolation_scope() as scope:
            scope.add_event_processor(put_body)
            scope.set_user({"id": KEY})
            scope.set_extra("prompt", PROMPT)
            sentry_sdk.add_breadcrumb(message=PROMPT)
            with sentry_sdk.start_transaction(name="request", sampled=False) as transaction:
                emit(BreakerChanged("openai", "closed", "open", 15.0))
        sink.flushed()
    (event,) = sink.events
    assert PROMPT.encode() not in sink.raw
    assert KEY.encode() not in sink.raw
    assert event["contexts"]["trace"]["trace_id"] == transaction.trace_id  # but it is found from the request's trace


def test_no_local_variables_come_with_the_stack_of_the_moment(sink: SentrySink):
    def ask(prompt):
        emit(BreakerChanged("openai", "closed", "open", 15.0))
        return prompt

    with sentry(sink, attach_stacktrace=True), install():
        ask(PROMPT)
        sink.flushed()
    assert len(sink.events) == 1
    assert PROMPT.encode() not in sink.raw


@pytest.mark.parametrize("send_text", [False, True])
def test_log_lines_of_workers(sink: SentrySink, send_text: bool):
    line, error = logging.getLogger("runners.worker.embedder"), logging.getLogger("runners")
    with sentry(sink, integrations=[LoggingIntegration()]):
        with install(send_text=send_text):
            line.warning("%s", PROMPT)
            error.error("embedder: loading failed: %s", PROMPT)
            logging.getLogger("application").warning("its own")
            sentry_sdk.capture_message("own")
            sink.flushed()
        assert (PROMPT.encode() in sink.raw) is send_text
        assert b"its own" in sink.raw
        line.error("%s", "not ours any more")
        sink.flushed()
    assert b"not ours any more" in sink.raw


def test_what_our_log_says_is_not_said_twice(sink: SentrySink):
    with sentry(sink, integrations=[LoggingIntegration()]), install(), log_events():
        emit(high(severity="critical"))
        sink.flushed()
    assert len(sink.events) == 1


# -------------------------------------------------------------------------------------------------- no harm done


class Guarded(sentry_sdk.Transport):
    """A transport that sends through a guarded call, and at once, as some do."""

    def __init__(self, fail: bool) -> None:
        super().__init__()
        self.sent: list[str] = []
        self._send = breaker(name="to sentry", fail_max=1)(self._fail if fail else self._take)

    def capture_envelope(self, envelope) -> None:
        self._send(envelope)

    def _take(self, envelope) -> None:
        self.sent += [item.payload.json["message"] for item in envelope.items]

    def _fail(self, envelope) -> None:
        self._take(envelope)
        raise ConnectionError


def test_what_the_transport_tells_while_it_sends_is_not_sent(sink: SentrySink):
    class Telling(sentry_sdk.Transport):
        sent = 0

        def capture_envelope(self, envelope) -> None:
            self.sent += 1
            emit(high(f"transport {self.sent}"))

    transport = Telling()
    with sentry(sink, transport=transport), install(alike=100, in_all=100):
        emit(high())
        assert transport.sent == 1
        sentry_sdk.capture_message("the application's own")
        assert transport.sent == 3  # that, and what was told meanwhile; no further
        sink.flushed()


@pytest.mark.parametrize("fail", [False, True])
def test_a_guarded_transport_brings_no_loop(sink: SentrySink, fail: bool, caplog):
    transport = Guarded(fail)
    with sentry(sink, transport=transport), install(alike=100, in_all=100) as reporting:
        emit(high())
        assert transport.sent == ["embedder/0: memory is at 85 % of 512 MiB"]
        if fail:
            with pytest.raises(CircuitOpen):
                sentry_sdk.capture_message("own")
    assert len(transport.sent) == 1
    assert reporting.held_back == 0
    assert len([line for line in caplog.records if "could not be reported" in line.message]) == fail


def test_what_happens_on_a_thread_of_sentry_s_is_not_told_to_it(sink: SentrySink):
    """A real transport, whose thread sends through a guard."""
    with sentry(sink) as client, install(alike=100, in_all=100):
        request = client.transport._request
        guarded = breaker(name="to sentry", fail_max=1, open_for=3600)

        def send(*args, **kwargs):
            guarded(failing)() if client.options["debug"] is None else None
            with pytest.raises(ConnectionError if guarded.state == "closed" else CircuitOpen):
                guarded(failing)()
            return request(*args, **kwargs)

        def failing():
            raise ConnectionError

        client.transport._request = send
        for source in "abcde":
            emit(high(source))
        sink.flushed()
        client.transport._request = request
    assert guarded.state == "open"
    assert [event["tags"]["guardrails.source"] for event in sink.events] == list("abcde")


def test_a_broken_sdk_breaks_no_call_and_is_said_once(sink: SentrySink, caplog):
    class Broken(sentry_sdk.Transport):
        def capture_envelope(self, envelope) -> None:
            raise OSError

    with sentry(sink, transport=Broken()), install():
        for source in "abc":
            emit(high(source))
    assert len([line for line in caplog.records if line.levelno >= logging.ERROR]) == 1


def test_a_server_that_does_not_answer_delays_nobody():
    """Nothing on the way of an event waits for the network."""
    with sentry_sdk.isolation_scope():
        silent = socket.create_server(("127.0.0.1", 0))
        dsn = f"http://public@127.0.0.1:{silent.getsockname()[1]}/7"
        sentry_sdk.init(dsn, default_integrations=False, auto_enabling_integrations=False)
        client = sentry_sdk.get_client()
        try:
            with install(alike=1000, in_all=1000):
                emit(high())  # the SDK starts its thread
                began = time.perf_counter()
                for _ in range(20):
                    emit(high())
                assert time.perf_counter() - began < 2.0
        finally:
            silent.close()  # the SDK is refused now, and gives up
            client.close(timeout=10)
            sentry_sdk.get_global_scope().set_client(None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_keeps_nothing_of_its_parent_s():
    with install() as reporting:
        emit(high())
        reporting._issues._lock.acquire()  # as a thread may hold it in this moment
        try:
            program = os.fork()
            if program == 0:
                signal.alarm(10)  # rather than to wait for ever
                try:
                    ok = reporting.kept == 0
                    emit(high("child"))
                    os._exit(0 if ok and reporting.kept == 1 else 1)
                finally:
                    os._exit(2)
        finally:
            reporting._issues._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]) == 0
        assert reporting.kept == 1


# -------------------------------------------------------------------------------------------------------- face


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"send_text": 1}, TypeError, "send_text takes True or False, not 1"),
        ({"alike": 0}, ValueError, "alike=0 must be 1 or more"),
        ({"alike": 40}, ValueError, "alike=40 of one kind are more than in_all=30"),
        ({"in_all": "x"}, TypeError, "in_all takes a whole number, not 'x'"),
        ({"per": 0}, ValueError, "per=0 must be above 0 seconds"),
        ({"per": float("inf")}, ValueError, "per=inf must be above 0 seconds, and finite"),
        ({"per": None}, TypeError, "per takes a number of seconds, not None"),
        ({"breadcrumbs": -1}, ValueError, "breadcrumbs=-1 must be 0 or more"),
        ({"monitor_slug": "Memory!"}, ValueError, "monitor_slug='Memory!' must be 1 to 50 of"),
        ({"monitor_slug": 7}, TypeError, "monitor_slug takes a name, not 7"),
        ({"keep": True}, TypeError, "keep takes a whole number, not True"),
    ],
)
def test_misuse_is_named(wrong, error, message):
    with pytest.raises(error) as raised:
        install(**wrong)
    assert message in str(raised.value)
    if "keep" not in wrong:
        with pytest.raises(error):
            GuardrailsIntegration(**wrong)


def test_without_the_sdk(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    monkeypatch.delitem(sys.modules, "guardrails.telemetry.sentry.integration")
    monkeypatch.delitem(vars(public), "GuardrailsIntegration", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install 'guarded-runners\[sentry\]'"):
        install()
    with pytest.raises(MissingExtra, match=r"pip install 'guarded-runners\[sentry\]'"):
        _ = public.GuardrailsIntegration


def test_in_a_process_of_its_own_with_everything_that_the_sdk_does_by_default(sink: SentrySink):
    """Its default integrations replace parts of the standard library, for good: logging, threads, processes, hooks."""
    program = textwrap.dedent(f"""\
        import sys
        import guardrails.telemetry.sentry as ours
        assert "sentry_sdk" not in sys.modules
        import asyncio, logging, sentry_sdk
        from guardrails import breaker, retry
        from guardrails.core.events import CallSettled, MemoryPressure, emit
        from guardrails.memory.signals import AlertRaised
        ours.install(monitor_slug="memory")
        emit(AlertRaised("api", "early", "warning", "before init", "wait"))
        sentry_sdk.init({sink.dsn!r}, traces_sample_rate=1.0, attach_stacktrace=True)

        @retry(attempts=2, wait=0)
        @breaker(name="openai", fail_max=2, open_for=30)
        async def ask(prompt, key="{KEY}"):
            raise ConnectionError(prompt + key)

        async def main():
            with sentry_sdk.start_transaction(name="request"):
                try:
                    await ask("{PROMPT}")
                except ConnectionError:
                    pass
            logging.getLogger("runners.worker.embedder").warning("{PROMPT}")
            emit(MemoryPressure("admit", "high", 1, 2))

        asyncio.run(main())
        emit(AlertRaised("api", "late", "critical", "after init", "act"))
    """)
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=ROOT, timeout=60)
    found = sorted(sink.events, key=lambda event: event["timestamp"])
    assert [event["message"] for event in found] == [
        "api: before init",
        "openai: circuit closed -> open, retry after 30 s",
        "api: after init",
    ]
    assert [crumb["category"] for crumb in found[2]["breadcrumbs"]["values"]] == [
        "guardrails.retry.scheduled",
        "guardrails.retry.gave_up",
        "guardrails.memory.pressure",
    ]
    (transaction,) = sink.of("transaction")
    assert [span["op"] for span in transaction["spans"]] == ["guardrails.call"]
    assert json.loads(json.dumps(transaction))["spans"][0]["status"] == "internal_error"
    assert PROMPT.encode() not in sink.raw
    assert KEY.encode() not in sink.raw


def test_the_page_s_first_example(sink: SentrySink):
    """Not among those that all run in one process: it would change that one for good."""
    block = (ROOT / "docs" / "sentry.md").read_text().partition("```py\n")[2].partition("```")[0]
    assert "sentry_sdk.init(" in block
    program = f"""{block}
from guardrails.core.events import emit
from guardrails.memory.signals import AlertRaised
emit(AlertRaised("api", "memory_high", "warning", "said by the example", "wait"))
"""
    environment = {**os.environ, "SENTRY_DSN": sink.dsn}
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=ROOT, timeout=60, env=environment)
    assert [event["message"] for event in sink.events] == ["api: said by the example"]


def test_it_needs_no_event_of_each_call(sink: SentrySink):
    """An event that is none of its business costs a look into a dictionary."""
    with install() as reporting:
        asked = []
        reporting._handle = lambda event, route: asked.append(event)
        emit(CallSettled("openai", "success"))
        emit(MemoryPressure("admit", "high", 1, 2))
    assert asked == [MemoryPressure("admit", "high", 1, 2)]
