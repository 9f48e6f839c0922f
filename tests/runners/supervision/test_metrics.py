"""Everything at once: all guards, a real runner and the memory monitor, read by Prometheus' parsers and by the SDK of
OpenTelemetry; and what both say is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from guardrails import (
    admit,
    breaker,
    bulkhead,
    cache,
    connections,
    fallback,
    guard,
    hedge,
    inject,
    keyed,
    limiter,
    retry,
    timeout,
)
from guardrails.core.errors import GuardrailError
from guardrails.gates.limiter import AdaptiveRate
from guardrails.memory import MemoryMonitor
from guardrails.telemetry import otel, prometheus
from guardrails.telemetry.table import TABLE
from runners import EmbeddingRunner, FunctionRunner
from runners.telemetry import instruments as of_runners

pytestmark = pytest.mark.anyio

#: Must be in nothing that is exported.
SECRET = "planted-7f3a"


class Throttled(Exception):
    status_code = 429

    def __init__(self, text):
        super().__init__(text)
        self.headers = {"Retry-After": "0.01"}


async def test_embeddings_are_counted_and_traced_by_the_conventions(minilm):
    model, tokenizer = minilm
    registry, exporter = CollectorRegistry(), InMemorySpanExporter()
    tracing = TracerProvider(shutdown_on_exit=False)
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    with prometheus.export(registry), otel.export(metrics=False, tracer_provider=tracing):
        async with EmbeddingRunner(model, tokenizer=tokenizer, name="minilm") as embedder:
            await embedder.embed([SECRET, "dos"])
        _, samples = of_prometheus(registry)
    about = {
        "gen_ai_operation_name": "embeddings",
        "gen_ai_provider_name": "guarded_runners",
        "gen_ai_request_model": model.name,
    }
    ended = tuple(sorted({**about, "error_type": ""}.items()))
    assert samples["gen_ai_client_operation_duration_seconds_count", ended] == 1
    # The engine does not say how many tokens it read, so none are told.
    assert not [name for name, _ in samples if "token" in name]
    (span,) = exporter.get_finished_spans()
    assert span.name == f"embeddings {model.name}"
    assert span.attributes["gen_ai.operation.name"] == "embeddings"
    assert SECRET not in span.to_json()


async def workload(runner, stream):
    """Some of everything that guards and runners can do."""
    openai = breaker(name="openai", fail_max=3, open_for=0.05)
    provider = limiter(requests=1000, per=1, adaptive=AdaptiveRate(window=0.001), name="provider")
    chaos = inject(latency=0.02, name="chaos", max_faults=2, enabled=False)
    ask = guard(
        fallback("sorry", name="sorry"),
        cache(ttl=60, key=lambda text: text, name="answers"),
        retry(attempts=2, wait=0.001, budget=None, name="again"),
        hedge(delay=0.01, name="twice"),
        openai,
        provider,
        admit(concurrency=8, name="room"),
        timeout(5, name="limit"),
        chaos,
    )(runner)
    for number in range(5):
        assert await ask(f"{SECRET} {number}") == f"{SECRET} {number}"
        await ask(f"{SECRET} {number}")  # from the cache
    with chaos.active():
        for number in range(5, 8):
            await ask(f"{SECRET} {number}")  # slow: the hedge starts

    down = guard(fallback("sorry"), retry(attempts=2, wait=0.001, name="again"), openai, provider)

    @down
    async def fails(text):
        raise ConnectionError(text)

    for _ in range(5):
        assert await fails(SECRET) == "sorry"
    assert openai.state == "open"

    @guard(provider)
    async def throttled(text):
        raise Throttled(text)

    with pytest.raises(Throttled):
        await throttled(SECRET)

    @guard(timeout(0.02, name="limit"))
    async def hangs(text):
        await asyncio.sleep(5)

    with pytest.raises(TimeoutError):
        await hangs(SECRET)

    users = keyed(lambda user: bulkhead(1, queue=0, name=user), key=lambda user, *_: user, max_keys=1000, name="users")

    @users
    async def held(user, event):
        await event.wait()

    go = asyncio.Event()
    first = [asyncio.create_task(held(f"{SECRET}-{number}", go)) for number in range(50)]
    await asyncio.sleep(0)
    for number in range(50):
        with pytest.raises(GuardrailError):
            await held(f"{SECRET}-{number}", go)
    go.set()
    await asyncio.gather(*first)

    chats = connections(per_key=1, idle_timeout=60, name="chats")
    async with chats.connection(SECRET):
        with pytest.raises(GuardrailError):
            async with chats.connection(SECRET):
                pass

    @guard(breaker(name="pieces"), timeout(5, first=5, idle=5, name="limit"))
    async def pieces(text):
        async for piece in stream.stream():
            assert text
            yield piece

    assert [piece async for piece in pieces(SECRET)]
    with contextlib.suppress(Exception):
        await runner(object())  # cannot be sent


def of_prometheus(registry):
    text = generate_openmetrics(registry).decode()
    assert SECRET not in text
    families = list(parse_openmetrics(text))
    return {family.name for family in families}, {
        (s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples
    }


def in_plain_text(registry):
    text = generate_latest(registry).decode()
    assert SECRET not in text
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in parse_text(text) for s in f.samples}


def of_otel(reader):
    found = {}
    for resource in reader.get_metrics_data().resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                assert SECRET not in metric.to_json()
                found[metric.name] = {
                    tuple(point.attributes.values()): getattr(point, "value", None) or getattr(point, "count", 0)
                    for point in metric.data.data_points
                }
    return found


async def test_a_real_workload_is_read_by_prometheus_and_opentelemetry_alike(until):
    registry, reader, exporter = CollectorRegistry(), InMemoryMetricReader(), InMemorySpanExporter()
    meters, tracing = MeterProvider([reader], shutdown_on_exit=False), TracerProvider(shutdown_on_exit=False)
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    with prometheus.export(registry), otel.export(meter_provider=meters, tracer_provider=tracing):
        async with (
            MemoryMonitor(interval=0.05, children=False, log_every=None),
            FunctionRunner("calls:echo", name="echo", workers=2, memory="1GiB") as echo,
            FunctionRunner("calls:generate", name="pieces") as pieces,
        ):
            await workload(echo, pieces)
            await until(
                lambda: {"runners_queue_length", "guardrails_memory_budget_bytes"} <= of_prometheus(registry)[0]
            )
            os.kill(echo.stats().workers[0].pid, signal.SIGKILL)
            await until(lambda: "runners_worker_exits" in of_prometheus(registry)[0])
            assert await echo("again") == "again"
        names, samples = of_prometheus(registry)  # nothing moves any more
        assert in_plain_text(registry) == samples
        observed = of_otel(reader)

    # What this workload has not done, and what needs a model; everything else was read.
    table = {each.prometheus_name: each.name for each in (*TABLE, *of_runners.TABLE)}
    left = set(table) - names
    assert left <= {
        "guardrails_memory_budget_bytes",  # seen above; the last sample has no worker any more
        *("guardrails_admit_level", "guardrails_alerts", "guardrails_alert_active"),
        "guardrails_breaker_storage_up",
        *("guardrails_cache_evictions", "guardrails_cache_too_large", "guardrails_cache_store_up"),
        *("guardrails_hedge_wins", "guardrails_memory_trims", "guardrails_memory_pss_bytes"),
        *("runners_budget_time_left_seconds", "runners_requests_redelivered", "runners_scalings", "runners_tokens"),
        *("runners_scale_ups_held", "runners_unloads", "runners_worker_replacements"),
        *("runners_model_changes", "runners_fleet_over_budget", "runners_supervision_failures"),
        "guardrails_cache_refreshes",
        *(name for name in table if name.startswith("gen_ai")),
    }, left
    # Both have the same metrics with the same series.
    assert {there for there, here in table.items() if here in observed} == names - {"guardrails"}
    settled = {
        tuple(value for _, value in labels): value
        for (name, labels), value in samples.items()
        if name == "guardrails_gate_settled_total"
    }
    assert {tuple(sorted(key)): value for key, value in settled.items()} == {
        tuple(sorted(key)): value for key, value in observed["guardrails.gate.settled"].items()
    }
    # Keys are counted under the name of their guard.
    assert samples["guardrails_gate_rejections_total", (("guard", "users"), ("reason", "queue_full"))] == 50
    assert len(samples) < 3000
    spans = exporter.get_finished_spans()
    assert SECRET not in "".join(span.to_json() for span in spans)
    calls = {span.context.span_id for span in spans if span.name.startswith("guard ")}
    requests = [span for span in spans if span.name.startswith("call ")]
    assert len([span for span in requests if span.parent is not None and span.parent.span_id in calls]) >= 8
    meters.shutdown()
    gc.collect()
