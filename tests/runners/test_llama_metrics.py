"""Generation by a real model, counted and traced after the conventions for generative AI."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")
pytest.importorskip("jinja2")

from guardrails.telemetry import otel, prometheus
from runners import LlamaRunner

from .engines import tiny_gguf

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def test_a_stream_of_text_is_counted_and_traced_by_the_conventions(tmp_path):
    model = tiny_gguf.write(tmp_path / "tiny.gguf")
    registry, exporter = CollectorRegistry(), InMemorySpanExporter()
    tracing = TracerProvider(shutdown_on_exit=False)
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    with prometheus.export(registry), otel.export(metrics=False, tracer_provider=tracing):
        async with LlamaRunner(model, name="tiny", threads=1, timeout=30) as llama:
            never = {tiny_gguf.EOS: -100.0, tiny_gguf.IM_END: -100.0}
            async with llama.stream_complete("abc", max_tokens=20, logit_bias=never) as stream:
                async for _ in stream:
                    pass
        families = list(parse_openmetrics(generate_latest(registry).decode()))
    samples = {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}

    def of(name, **more):
        about = {"operation_name": "text_completion", "provider_name": "guarded_runners", "request_model": "tiny.gguf"}
        labels = {f"gen_ai_{label}": value for label, value in about.items()} | more
        return samples[name, tuple(sorted(labels.items()))]

    read = of("gen_ai_client_token_usage_sum", gen_ai_token_type="input")
    assert read > 0
    assert of("gen_ai_client_token_usage_sum", gen_ai_token_type="output") == 20
    assert samples["runners_tokens_total", (("runner", "tiny"), ("type", "output"))] == 20
    took = of("gen_ai_client_operation_duration_seconds_sum", error_type="")
    first = of("gen_ai_server_time_to_first_token_seconds_sum")
    assert 0 < first < took
    assert of("gen_ai_server_time_per_output_token_seconds_sum") == pytest.approx((took - first) / 19)
    (span,) = exporter.get_finished_spans()
    assert span.name == "text_completion tiny.gguf"
    assert (span.attributes["gen_ai.usage.input_tokens"], span.attributes["gen_ai.usage.output_tokens"]) == (read, 20)
    assert span.attributes["gen_ai.response.time_to_first_chunk"] == first
    assert span.end_time - span.start_time == pytest.approx(took * 1e9, abs=2)
