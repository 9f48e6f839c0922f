"""Spans around guarded calls, as the real SDK sends them."""

from __future__ import annotations

import contextvars
import gc
import threading

import anyio
import pytest
import sentry_sdk

from guardrails import breaker, guard, retry, timeout
from guardrails.core.events import CallFinished, CallStarted, emit
from guardrails.errors import CircuitOpen
from guardrails.telemetry.sentry import install, spans
from tests.sentry_sink import SentrySink, sentry, sentry_sink

PROMPT = "planted-prompt-what-is-the-capital"


@pytest.fixture
def sink():
    with sentry_sink() as sink:
        yield sink


@pytest.fixture(autouse=True)
def closed():
    yield
    gc.collect()  # connections that the SDK's pool has kept


class Tree:
    """The spans of one transaction by name, each with the name of its parent."""

    def __init__(self, transaction) -> None:
        self.spans = {span["description"]: span for span in transaction["spans"]}
        names = {span["span_id"]: span["description"] for span in transaction["spans"]}
        names[transaction["contexts"]["trace"]["span_id"]] = transaction["transaction"]
        self.parents = {name: names[span["parent_span_id"]] for name, span in self.spans.items()}


@pytest.mark.anyio
async def test_a_call_is_a_span_and_what_it_does_its_children(sink: SentrySink):
    @breaker(name="openai")
    async def ask(prompt):
        with sentry_sdk.start_span(op="http.client", name="POST /chat"):
            await anyio.sleep(0)
        return prompt

    with sentry(sink, traces_sample_rate=1.0), install() as reporting:
        with sentry_sdk.start_transaction(name="request"):
            before = sentry_sdk.get_current_scope(), sentry_sdk.get_current_span()
            await ask(PROMPT)
            assert (sentry_sdk.get_current_scope(), sentry_sdk.get_current_span()) == before
            with sentry_sdk.start_span(op="db", name="SELECT"):
                pass
        assert len(reporting._spans) == 0
        sink.flushed()
    tree = Tree(sink.of("transaction")[0])
    assert tree.parents == {"openai": "request", "POST /chat": "openai", "SELECT": "request"}
    span = tree.spans["openai"]
    assert (span["op"], span["origin"], span["status"]) == ("guardrails.call", "auto.function.guardrails", "ok")
    assert span["data"]["guardrails.outcome"] == "success"
    assert set(span["data"]) == {"guardrails.outcome", "thread.id", "thread.name"}
    assert PROMPT.encode() not in sink.raw


@pytest.mark.anyio
async def test_calls_beside_each_other_keep_their_own_children(sink: SentrySink):
    """All tasks share one scope of the SDK's: to change it in place would mix them up."""
    names = [f"guard {number}" for number in range(8)]

    def guarded(name):
        @breaker(name=name)
        async def call():
            await anyio.sleep(0)
            with sentry_sdk.start_span(op="http.client", name=f"of {name}"):
                for _ in range(3):
                    await anyio.sleep(0)

        return call

    with sentry(sink, traces_sample_rate=1.0), install():
        with sentry_sdk.start_transaction(name="request"):
            async with anyio.create_task_group() as tasks:
                for name in names:
                    tasks.start_soon(guarded(name))
            assert sentry_sdk.get_current_span().op is None
        sink.flushed()
    tree = Tree(sink.of("transaction")[0])
    assert tree.parents == {
        **dict.fromkeys(names, "request"),
        **{f"of {name}": name for name in names},
    }


def test_outcomes(sink: SentrySink):
    @guard(retry(attempts=2, wait=0), breaker(name="openai", fail_max=2), name="chat")
    def ask():
        raise ConnectionError

    with sentry(sink, traces_sample_rate=1.0), install():
        with sentry_sdk.start_transaction(name="request"):
            with pytest.raises(ConnectionError):
                ask()
            with pytest.raises(CircuitOpen):
                ask()
            for number, outcome in enumerate(("throttled", "ignored", "new")):
                emit(CallStarted("by hand", -number))
                emit(CallFinished("by hand", -number, 0.1, outcome))
        sink.flushed()
    found = [(span["data"]["guardrails.outcome"], span["status"]) for span in sink.of("transaction")[0]["spans"]]
    assert found == [
        ("failure", "internal_error"),
        ("rejected", "unavailable"),
        ("throttled", "resource_exhausted"),
        ("ignored", "cancelled"),
        ("new", "unknown_error"),
    ]


@pytest.mark.anyio
async def test_a_stream_is_a_span_from_begin_to_end_and_nobody_s_parent(sink: SentrySink):
    @guard(timeout(30, first=5), breaker(name="openai"), name="chat")
    async def tokens(prompt):
        yield prompt
        yield "b"

    with sentry(sink, traces_sample_rate=1.0), install():
        with sentry_sdk.start_transaction(name="request"):
            scope = sentry_sdk.get_current_scope()
            first, second = tokens(PROMPT), tokens(PROMPT)
            await anext(first)
            await anext(second)
            assert sentry_sdk.get_current_scope() is scope
            with sentry_sdk.start_span(op="db", name="the reader's own"):
                pass
            await first.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(second)
                await anext(second)
            assert sentry_sdk.get_current_scope() is scope
        sink.flushed()
    found = sink.of("transaction")[0]["spans"]
    chats = [span for span in found if span["description"] == "chat"]
    assert [span["data"]["guardrails.outcome"] for span in chats] == ["ignored", "success"]
    assert all(span["data"]["guardrails.first"] >= 0 for span in chats)
    root = sink.of("transaction")[0]["contexts"]["trace"]["span_id"]
    assert {span["parent_span_id"] for span in found} == {root}
    assert PROMPT.encode() not in sink.raw


def test_an_end_in_another_context_leaves_no_span_behind(sink: SentrySink):
    def inside() -> None:
        assert sentry_sdk.get_current_span().description == "a"
        copies.append(contextvars.copy_context())

    copies: list[contextvars.Context] = []
    with sentry(sink, traces_sample_rate=1.0), install():
        with sentry_sdk.start_transaction(name="request") as transaction:
            mine = contextvars.copy_context()
            mine.run(emit, CallStarted("a", -1))
            mine.run(inside)
            assert sentry_sdk.get_current_span() is transaction
            emit(CallFinished("a", -1, 0.1, "success"))
            # The contexts that hold our scope still are under the transaction again.
            assert mine.run(sentry_sdk.get_current_span) is transaction
            assert copies[0].run(sentry_sdk.get_current_span) is transaction
        sink.flushed()
    assert Tree(sink.of("transaction")[0]).parents == {"a": "request"}


@pytest.mark.parametrize(
    "options",
    [{}, {"traces_sample_rate": 0.0}, {"traces_sampler": lambda context: 0.0}],
    ids=["no tracing", "rate 0", "sampler 0"],
)
def test_no_span_where_nothing_is_traced(sink: SentrySink, options):
    with sentry(sink, **options), install() as reporting:
        with sentry_sdk.start_transaction(name="request"):
            scope = sentry_sdk.get_current_scope()
            emit(CallStarted("a", -1))
            assert sentry_sdk.get_current_scope() is scope
            assert len(reporting._spans) == 0
        sink.flushed()
    assert sink.of("transaction") == []


def test_no_span_without_one_that_is_under_way_and_none_when_switched_off(sink: SentrySink):
    with sentry(sink, traces_sample_rate=1.0):
        with install() as reporting:
            emit(CallStarted("a", -1))
            with sentry_sdk.start_span(op="orphan", name="of no transaction"):
                emit(CallStarted("a", -1))
            assert len(reporting._spans) == 0
        with install(spans=False), sentry_sdk.start_transaction(name="request"):
            breaker(name="a")(lambda: 1)()
        sink.flushed()
    assert sink.of("transaction")[0]["spans"] == []


def test_ends_that_never_come_are_forgotten(sink: SentrySink, monkeypatch):
    monkeypatch.setattr(spans, "MAX_OPEN", 3)
    with sentry(sink, traces_sample_rate=1.0), install() as reporting:
        with sentry_sdk.start_transaction(name="request") as transaction:
            for number in range(5):
                contextvars.copy_context().run(emit, CallStarted("a", -number))
            assert sorted(reporting._spans._open) == [-4, -3, -2]
            emit(CallStarted("here", -9))
            reporting.stop()
            assert len(reporting._spans) == 0
            assert sentry_sdk.get_current_span() is transaction


def test_many_threads(sink: SentrySink, monkeypatch):
    monkeypatch.setattr(spans, "MAX_OPEN", 4)
    call = breaker(name="a")(lambda: sentry_sdk.get_current_span().description)
    seen = []

    def many():
        for _ in range(100):
            seen.append(call())

    with sentry(sink, traces_sample_rate=1.0, _experiments={"max_spans": 2000}), install() as reporting:
        with sentry_sdk.start_transaction(name="request"):
            threads = [threading.Thread(target=contextvars.copy_context().run, args=(many,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(reporting._spans) == 0
    assert len(seen) == 800


@pytest.mark.anyio
async def test_where_spans_are_sent_one_by_one(sink: SentrySink):
    @breaker(name="openai")
    async def ask(prompt):
        with sentry_sdk.traces.start_span("POST /chat"):
            await anyio.sleep(0)
        return prompt

    @breaker(name="streamed")
    async def tokens():
        yield 1

    @breaker(name="failing")
    def fail():
        raise ConnectionError(PROMPT)

    with sentry(sink, traces_sample_rate=1.0, trace_lifecycle="stream"), install() as reporting:
        with sentry_sdk.traces.start_span("request") as request:
            scope = sentry_sdk.get_current_scope()
            await ask(PROMPT)
            async for _ in tokens():
                assert sentry_sdk.traces.get_current_span() is request
            with pytest.raises(ConnectionError):
                fail()
            assert sentry_sdk.get_current_scope() is scope
            assert sentry_sdk.traces.get_current_span() is request
        assert len(reporting._spans) == 0
        sink.flushed()
    found = [one for body in sink.of("span") for one in body["items"]]
    names = {one["span_id"]: one["name"] for one in found}
    assert {one["name"]: names.get(one.get("parent_span_id")) for one in found} == {
        "request": None,
        "openai": "request",
        "POST /chat": "openai",
        "streamed": "request",
        "failing": "request",
    }
    by_name = {one["name"]: one for one in found}
    assert (by_name["openai"]["status"], by_name["failing"]["status"]) == ("ok", "error")
    attributes = {key: value["value"] for key, value in by_name["streamed"]["attributes"].items()}
    assert attributes["sentry.op"] == "guardrails.call"
    assert attributes["sentry.origin"] == "auto.function.guardrails"
    assert attributes["guardrails.outcome"] == "success"
    assert attributes["guardrails.first"] >= 0
    assert PROMPT.encode() not in sink.raw
