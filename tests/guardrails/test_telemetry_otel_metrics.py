"""Metrics as the SDK of OpenTelemetry reads them, by its in-memory reader."""

from __future__ import annotations

import builtins
import gc
import importlib
import subprocess
import sys
import textwrap

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from guardrails.core import events
from guardrails.core.errors import MissingExtra
from guardrails.core.events import BreakerChanged, CallAdmitted, CallFinished, CallSettled, CallStarted, emit
from guardrails.core.names import KeyedName
from guardrails.memory.monitor.sample import ProcessSample, Sample
from guardrails.memory.reading import Scope
from guardrails.memory.signals import MemorySampled
from guardrails.telemetry.otel import export
from runners.supervision.events import RequestFinished


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader):
    provider = MeterProvider([reader], shutdown_on_exit=False)
    yield provider
    provider.shutdown()


def collected(reader):
    """Every data point, by the name of its metric."""
    data = reader.get_metrics_data()
    found = {}
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            assert scope.scope.name == "guardrails"
            for metric in scope.metrics:
                found[metric.name] = (metric, {tuple(sorted(p.attributes.items())): p for p in metric.data.data_points})
    return found


def point(reader, name, **attributes):
    _, points = collected(reader)[name]
    return points[tuple(sorted((key.replace("__", "."), value) for key, value in attributes.items()))]


def test_counters_are_observed_and_histograms_recorded(reader, provider):
    with export(spans=False, meter_provider=provider):
        for _ in range(3):
            emit(CallSettled("openai", "success"))
        emit(CallFinished("ask", 1, 0.3, "success"))
        emit(CallStarted("ask", 2))
        found = collected(reader)
    metric, points = found["guardrails.gate.settled"]
    assert (metric.unit, metric.description[-1], metric.data.is_monotonic) == ("{call}", ".", True)
    key = (("guardrails.guard", "openai"), ("guardrails.outcome", "success"))
    assert points[key].value == 3
    metric, points = found["guardrails.call.duration"]
    ((_, duration),) = points.items()
    assert (metric.unit, duration.count, duration.sum) == ("s", 1, 0.3)
    assert duration.explicit_bounds[0] == 0.001
    assert duration.explicit_bounds[-1] == 300
    metric, points = found["guardrails.calls.active"]
    assert not metric.data.is_monotonic
    assert [each.value for each in points.values()] == [1]


def test_snapshots_are_gauges_and_read_when_asked(reader, provider, clock):
    process = ProcessSample("self", 1, "self", 10, 20)
    with export(spans=False, meter_provider=provider, stale_after=10, clock=clock):
        emit(MemorySampled("monitor", Sample(1.0, 1.0, (process,), (Scope("host", 1, 2),), gc=(7, 1, 0))))
        emit(BreakerChanged("openai", "closed", "open", 1.0))
        private = {"guardrails__process": "self", "guardrails__role": "self"}
        assert point(reader, "guardrails.memory.private", **private).value == 10
        assert point(reader, "guardrails.memory.headroom", guardrails__monitor="monitor").value == 1
        assert point(reader, "guardrails.memory.gc.collections", guardrails__generation="0").value == 7
        state = {"guardrails__guard": "openai", "guardrails__state": "open"}
        assert point(reader, "guardrails.breaker.state", **state).value == 1
        clock.advance(11)
        assert "guardrails.memory.private" not in collected(reader)
        assert point(reader, "guardrails.breaker.state", **state).value == 1


def test_generation_is_told_by_the_conventions(reader, provider):
    finished = RequestFinished("llama", "chat", "tiny.gguf", "answered", None, 2.0, 0.1, 0.5, 12, 4)
    with export(spans=False, meter_provider=provider):
        emit(finished)
        emit(RequestFinished("llama", "chat", "tiny.gguf", "failed", "RunnerCrashed", 1.0, 0.1))
        about = {
            "gen_ai__operation__name": "chat",
            "gen_ai__provider__name": "guarded_runners",
            "gen_ai__request__model": "tiny.gguf",
        }
        duration = "gen_ai.client.operation.duration"
        well = point(reader, duration, **about)  # without an error.type
        assert (well.sum, well.count, well.explicit_bounds[0], well.explicit_bounds[-1]) == (2.0, 1, 0.01, 81.92)
        assert point(reader, duration, **about, error__type="RunnerCrashed").sum == 1.0
        usage = "gen_ai.client.token.usage"
        assert point(reader, usage, **about, gen_ai__token__type="input").sum == 12
        assert point(reader, usage, **about, gen_ai__token__type="output").sum == 4
        assert point(reader, "gen_ai.server.time_to_first_token", **about).sum == 0.5
        assert point(reader, "gen_ai.server.time_per_output_token", **about).sum == 0.5


def test_attributes_are_bounded_and_no_key_is_among_them(reader, provider):
    with export(spans=False, meter_provider=provider, max_values=20):
        for number in range(10_000):
            emit(CallAdmitted(f"guard-{number}", 0.1))
            emit(CallSettled(KeyedName(f"user-{number}", "users"), "success"))
        found = collected(reader)
    assert len(found["guardrails.gate.wait"][1]) == 20  # 19 guards and the rest: the family has the twentieth label
    assert sum(each.count for each in found["guardrails.gate.wait"][1].values()) == 10_000
    assert "user-" not in str(found)
    assert [dict(key)["guardrails.guard"] for key in found["guardrails.gate.settled"][1]] == ["users"]


def test_a_second_export_of_a_provider_is_refused_until_the_first_has_stopped(reader, provider):
    first = export(spans=False, meter_provider=provider)
    with pytest.raises(ValueError, match="meter_provider gets these metrics already"):
        export(meter_provider=provider)
    emit(CallSettled("a", "success"))
    first.stop()
    first.stop()
    assert "stopped" in repr(first)
    emit(CallSettled("a", "success"))
    assert "guardrails.gate.settled" not in collected(reader)
    with export(spans=False, meter_provider=provider):
        emit(CallSettled("a", "success"))
        key = {"guardrails__guard": "a", "guardrails__outcome": "success"}
        assert point(reader, "guardrails.gate.settled", **key).value == 1


def test_an_event_that_comes_while_one_is_counted_waits(reader, provider):
    """As the garbage collector's may, within a lock of the SDK that is not re-entrant."""
    metrics = export(spans=False, meter_provider=provider)
    sink, counted = metrics._metrics, []

    def count(event):
        counted.append((event.source, "begins"))
        if event.source == "outer":
            sink(CallSettled("inner", "success"))
        counted.append((event.source, "ends"))

    sink._meters = count
    sink(CallSettled("outer", "success"))
    sink(CallSettled("next", "success"))
    metrics.stop()
    names = ("outer", "inner", "next")
    assert counted == [(name, when) for name in names for when in ("begins", "ends")]


def test_what_is_not_sampled_is_passed_on_to_what_is_within():
    with export(metrics=False, tracer_provider=TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)):
        emit(CallStarted("ask", 1))
        within = trace.get_current_span()
        emit(CallFinished("ask", 1, 0.1, "failure"))
    assert within.get_span_context().is_valid
    assert not within.get_span_context().trace_flags.sampled
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_there_is_one_export_of_spans(provider):
    with export(metrics=False):
        before = events.sinks
        with pytest.raises(ValueError, match="spans are made already"):
            export(meter_provider=provider)
        assert events.sinks == before
        export(spans=False, meter_provider=provider).stop()
    export(meter_provider=provider).stop()


def test_nothing_to_export_is_refused():
    with pytest.raises(ValueError, match="metrics and spans are both off"):
        export(metrics=False, spans=False)


@pytest.mark.parametrize("options", [{"max_values": 0}, {"stale_after": -1}])
def test_misuse_is_refused_and_leaves_nothing(provider, options):
    before = events.sinks
    with pytest.raises(ValueError, match=next(iter(options))):
        export(meter_provider=provider, **options)
    assert events.sinks == before
    export(meter_provider=provider, spans=False).stop()


def test_a_provider_that_is_gone_leaves_nothing(provider):
    from guardrails.telemetry.otel import metrics as module

    gc.collect()
    before = len(module._others)
    own = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    export(spans=False, meter_provider=own).stop()
    assert len(module._others) == before + 1
    own.shutdown()
    del own
    gc.collect()
    assert len(module._others) == before


def test_without_the_package_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("guardrails.telemetry.otel")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'guarded-runners\[otel\]'"):
        importlib.import_module("guardrails.telemetry.otel")


def test_providers_that_are_set_later_get_everything_from_then_on():
    """In a process of its own: the global providers can be set once."""
    script = """
        from guardrails.core.events import CallFinished, CallRejected, CallStarted, emit
        from guardrails.telemetry.otel import export

        telemetry = export()
        emit(CallRejected("early", "open", None))
        assert telemetry._metrics._meters.collect() == []    # nobody listens: nothing is counted

        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        reader, spans = InMemoryMetricReader(), InMemorySpanExporter()
        metrics.set_meter_provider(MeterProvider([reader]))
        tracing = TracerProvider()
        tracing.add_span_processor(SimpleSpanProcessor(spans))
        trace.set_tracer_provider(tracing)

        def call(number):
            emit(CallStarted("ask", number))
            emit(CallFinished("ask", number, 0.5, "success"))
            emit(CallRejected("late", "open", None))

        def names():
            scopes = reader.get_metrics_data().resource_metrics[0].scope_metrics
            return sorted(metric.name for scope in scopes for metric in scope.metrics)

        call(1)
        expected = ["guardrails.call.duration", "guardrails.calls.active", "guardrails.gate.rejections"]
        assert names() == expected, names()
        telemetry.stop()
        call(2)
        with export():    # again, with the provider that is set now
            call(3)
            assert names() == expected, names()
        assert [span.name for span in spans.get_finished_spans()] == ["guard ask"] * 2
        print("right")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("right\n", "")
