"""Spans as the SDK of OpenTelemetry reads them, by its in-memory exporter."""

from __future__ import annotations

import contextvars

import anyio
import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from guardrails.core import events
from guardrails.core.errors import Rejected
from guardrails.core.events import (
    BreakerChanged,
    CallAdmitted,
    CallFinished,
    CallRejected,
    CallSettled,
    CallStarted,
    emit,
)
from guardrails.core.names import KeyedName
from guardrails.core.pipeline import guard
from guardrails.gates.breaker import breaker
from guardrails.gates.limiter import limiter
from guardrails.strategies.retry import retry
from guardrails.telemetry.otel import export, spans
from guardrails.telemetry.otel.spans import SpanSink
from runners.supervision.events import RequestFinished


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def telemetry(provider):
    with export(metrics=False, tracer_provider=provider) as telemetry:
        yield telemetry
    assert trace.get_current_span() is trace.INVALID_SPAN, "a span was left current"


pytestmark = pytest.mark.usefixtures("telemetry")


def by_name(exporter):
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.anyio
async def test_a_call_is_the_parent_of_what_is_traced_in_it(exporter, provider):
    tracer = provider.get_tracer("app")

    @guard(breaker(name="openai"))
    async def ask():
        with tracer.start_as_current_span("POST"):
            await anyio.lowlevel.checkpoint()
        return "answer"

    with tracer.start_as_current_span("handler") as handler:
        assert await ask() == "answer"
        assert trace.get_current_span() is handler
    found = by_name(exporter)
    (name,) = found.keys() - {"POST", "handler"}
    call = found[name]
    assert name.startswith("guard ")
    assert found["POST"].parent.span_id == call.context.span_id
    assert call.parent.span_id == handler.context.span_id
    assert call.attributes["guardrails.outcome"] == "success"
    assert (call.kind, call.status.status_code) == (SpanKind.INTERNAL, StatusCode.UNSET)


@pytest.mark.anyio
async def test_calls_beside_each_other_do_not_mix(exporter, provider):
    tracer = provider.get_tracer("app")

    @guard(breaker(name="openai"))
    async def ask(number):
        await anyio.lowlevel.checkpoint()
        with tracer.start_as_current_span(f"inner {number}"):
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(ask, number)
    finished = exporter.get_finished_spans()
    parents = [span.parent.span_id for span in finished if span.name.startswith("inner")]
    calls = {span.context.span_id for span in finished if span.name.startswith("guard")}
    assert (set(parents), len(parents)) == (calls, 5)


@pytest.mark.anyio
async def test_a_block_is_a_call_and_leaves_the_context_as_it_was(exporter):
    pipeline = guard(breaker(name="openai"))
    async with pipeline:
        inside = trace.get_current_span()
        assert inside.is_recording()
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert [span.context.span_id for span in exporter.get_finished_spans()] == [inside.context.span_id]


@pytest.mark.anyio
async def test_a_stream_has_a_span_and_never_the_readers_context(exporter):
    @guard(breaker(name="openai"))
    async def stream():
        for piece in "abc":
            seen.append(trace.get_current_span())
            yield piece

    seen = []
    async for _ in stream():
        seen.append(trace.get_current_span())
    assert set(seen) == {trace.INVALID_SPAN}
    (span,) = exporter.get_finished_spans()
    assert span.attributes["guardrails.outcome"] == "success"
    assert span.attributes["guardrails.time_to_first_item"] >= 0


@pytest.mark.anyio
async def test_a_stream_that_is_read_in_several_tasks_has_one_span(exporter):
    @guard(breaker(name="openai"))
    async def stream():
        yield 1
        yield 2

    source = stream()

    async def step():
        await anext(source)

    for _ in range(2):
        async with anyio.create_task_group() as group:
            group.start_soon(step)
    await source.aclose()
    assert len(exporter.get_finished_spans()) == 1


def test_sync_calls_and_generators_too(exporter):
    @guard(breaker(name="openai"))
    def ask():
        return trace.get_current_span().is_recording()

    @guard(breaker(name="openai"))
    def stream():
        yield trace.get_current_span().is_recording()

    assert ask()
    assert list(stream()) == [False]
    assert len(exporter.get_finished_spans()) == 2


@pytest.mark.anyio
async def test_what_guards_decide_is_on_the_span_of_the_call(exporter, clock):
    openai = breaker(name="openai", fail_max=2, clock=clock)

    @guard(retry(attempts=3, name="again", clock=clock, on=ConnectionError), openai)
    async def ask():
        raise ConnectionError("secret prompt")

    async with anyio.create_task_group() as group:

        @group.start_soon
        async def _():
            with pytest.raises((ConnectionError, Rejected)):
                await ask()
            group.cancel_scope.cancel()

        while True:
            await anyio.lowlevel.checkpoint()
            clock.advance(1)
    (span,) = exporter.get_finished_spans()
    names = [event.name for event in span.events]
    assert "guardrails.retry.scheduled" in names
    assert "guardrails.breaker.changed" in names
    changed = next(event for event in span.events if event.name == "guardrails.breaker.changed")
    assert changed.attributes["guardrails.guard"] == "openai"
    assert (changed.attributes["guardrails.old"], changed.attributes["guardrails.new"]) == ("closed", "open")
    assert span.status.status_code is StatusCode.ERROR
    assert "secret" not in span.to_json()


@pytest.mark.anyio
async def test_a_refusal_is_an_error_of_the_call_and_an_event(exporter):
    quota = limiter(requests=1, per=60, queue=0, name="quota")

    @guard(quota)
    async def ask():
        return 1

    await ask()
    with pytest.raises(Exception, match="quota"):
        await ask()
    refused = exporter.get_finished_spans()[1]
    assert refused.attributes["error.type"] == refused.attributes["guardrails.outcome"] == "rejected"
    (event,) = [event for event in refused.events if event.name == "guardrails.call.rejected"]
    assert event.attributes["guardrails.reason"] == "rate_limited"
    assert refused.status.status_code is StatusCode.ERROR


def test_a_cancellation_is_no_error(exporter):
    emit(CallStarted("ask", 1))
    emit(CallFinished("ask", 1, 0.1, "ignored"))
    (span,) = exporter.get_finished_spans()
    assert (span.status.status_code, span.attributes["guardrails.outcome"]) == (StatusCode.UNSET, "ignored")


def test_a_key_is_in_no_span(exporter, provider):
    with provider.get_tracer("app").start_as_current_span("handler"):
        emit(CallStarted(KeyedName("ada", "users"), 1))
        emit(CallRejected(KeyedName("ada", "users"), "open", 1.0))
        emit(CallFinished(KeyedName("ada", "users"), 1, 0.1, "rejected"))
    found = [span.to_json() for span in exporter.get_finished_spans()]
    assert "ada" not in "".join(found)
    assert "guard users" in "".join(found)


def test_only_a_wait_that_is_worth_it_is_noted_and_no_settling(exporter, provider):
    with provider.get_tracer("app").start_as_current_span("handler"):
        for event in (CallAdmitted("a", 0.0), CallAdmitted("a", 0.5), CallSettled("a", "success")):
            emit(event)
    (span,) = exporter.get_finished_spans()
    assert [(event.name, event.attributes["guardrails.waited"]) for event in span.events] == [
        ("guardrails.call.admitted", 0.5)
    ]


def test_without_a_current_span_events_go_nowhere(exporter):
    emit(BreakerChanged("openai", "closed", "open", 1.0))
    assert exporter.get_finished_spans() == ()


def test_an_end_in_another_context_changes_nothing_there(exporter, caplog):
    contextvars.copy_context().run(emit, CallStarted("ask", 1))
    mine = context.attach(context.set_value("mine", 1))
    emit(CallFinished("ask", 1, 0.1, "success"))
    assert context.get_value("mine") == 1
    assert caplog.text == ""  # the API logs what cannot be detached, as an error
    context.detach(mine)
    assert len(exporter.get_finished_spans()) == 1


def test_an_end_without_a_beginning_is_no_span(exporter):
    emit(CallFinished("ask", 99, 0.1, "success"))
    assert exporter.get_finished_spans() == ()


def test_so_many_calls_may_be_open(exporter, monkeypatch):
    monkeypatch.setattr(spans, "MAX_OPEN", 2)
    for number in range(4):
        emit(CallStarted("ask", number, stream=True))
    assert len(exporter.get_finished_spans()) == 2
    for number in range(4):
        emit(CallFinished("ask", number, 0.1, "success"))
    assert len(exporter.get_finished_spans()) == 4


def test_after_stop_a_call_under_way_ends_as_it_should(exporter, telemetry):
    emit(CallStarted("stream", 1, stream=True))
    emit(CallStarted("ask", 2))
    telemetry.stop()
    assert [span.name for span in exporter.get_finished_spans()] == ["guard stream"]
    emit(CallStarted("more", 3))
    emit(CallFinished("more", 3, 0.1, "success"))
    assert trace.get_current_span().is_recording()
    assert telemetry._spans in events.sinks
    emit(CallFinished("ask", 2, 0.1, "success"))
    assert telemetry._spans not in events.sinks
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert [span.name for span in exporter.get_finished_spans()] == ["guard stream", "guard ask"]


# Requests of runners


def test_a_request_becomes_a_span_afterwards(exporter, provider, telemetry):
    telemetry.stop()
    now = 1_700_000_000_000_000_000
    sink = SpanSink(provider, now=lambda: now)
    sink(RequestFinished("llama", "chat", "tiny.gguf", "answered", None, 2.0, 0.25, 0.5, 12, 4))
    sink.stop()
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("chat tiny.gguf", SpanKind.CLIENT)
    assert (span.start_time, span.end_time) == (now - 2_000_000_000, now)
    assert dict(span.attributes) == {
        "runners.runner": "llama",
        "runners.outcome": "answered",
        "runners.queued": 0.25,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "tiny.gguf",
        "gen_ai.provider.name": "guarded_runners",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.5,
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 4,
    }


def test_a_request_that_failed_says_so_and_one_of_a_function_is_not_generative(exporter, provider):
    with provider.get_tracer("app").start_as_current_span("handler") as handler:
        emit(RequestFinished("thumbs", "call", "myapp:thumbnail", "failed", "RemoteError", 0.5, 0.0))
    span = by_name(exporter)["call myapp:thumbnail"]
    assert span.parent.span_id == handler.context.span_id
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "RemoteError")
    assert not [name for name in span.attributes if name.startswith("gen_ai")]
    assert span.attributes["runners.function"] == "myapp:thumbnail"
