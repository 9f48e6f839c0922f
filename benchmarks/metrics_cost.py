"""What one event costs a sink of metrics or spans, in nanoseconds of CPU time: the best of several runs.

    python -m benchmarks.metrics_cost

The thread's own CPU time is taken, so what else runs on the machine counts little.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, Counter, generate_latest

from guardrails.core.events import CallAdmitted, CallFinished, CallSettled, CallStarted, Event
from guardrails.core.names import KeyedName
from guardrails.telemetry import otel, prometheus
from guardrails.telemetry.meters import Meters

RUNS, EVENTS = 7, 50_000

HOT: dict[str, Event] = {
    "CallAdmitted": CallAdmitted("openai", 0.0),
    "CallSettled": CallSettled("openai", "success"),
    "CallStarted": CallStarted("openai", 1),
    "CallFinished": CallFinished("openai", 1, 0.5, "success"),
    "CallSettled of a key": CallSettled(KeyedName("ada", "users"), "success"),
}


def cost(sink: Callable[[Event], object], event: Event, events: int = EVENTS) -> float:
    """Nanoseconds a call, less those of an empty function."""

    def run(function: Callable[[Event], object]) -> float:
        best = float("inf")
        for _ in range(RUNS):
            began = time.thread_time_ns()
            for _ in range(events):
                function(event)
            best = min(best, (time.thread_time_ns() - began) / events)
        return best

    return run(sink) - run(lambda _: None)


def show(what: str, nanoseconds: float) -> None:
    print(f"{what:<52} {nanoseconds:8,.0f} ns")


def main() -> None:
    meters = Meters()
    for name, event in HOT.items():
        show(f"Prometheus, {name}", cost(meters, event))
    counter = Counter("peer_total", "For comparison.", ["guard", "outcome"], registry=CollectorRegistry())
    show("for comparison: a Counter with labels(...).inc()", cost(lambda _: counter.labels("a", "b").inc(), Event("")))

    with otel.export() as telemetry:
        for name in ("CallAdmitted", "CallSettled", "CallFinished"):
            show(f"OpenTelemetry without an SDK, metrics, {name}", cost(telemetry._metrics, HOT[name]))  # type: ignore[arg-type]
            show(f"OpenTelemetry without an SDK, spans, {name}", cost(telemetry._spans, HOT[name]))  # type: ignore[arg-type]

    reader, provider = InMemoryMetricReader(), TracerProvider(shutdown_on_exit=False)
    sdk = MeterProvider([reader], shutdown_on_exit=False)
    with otel.export(meter_provider=sdk, tracer_provider=provider) as telemetry:
        sink = telemetry._spans
        assert sink is not None

        def pair(_: Event) -> None:
            sink(HOT["CallStarted"])
            sink(HOT["CallFinished"])

        for name in ("CallAdmitted", "CallSettled", "CallStarted", "CallFinished"):
            show(f"OpenTelemetry with the SDK, metrics, {name}", cost(telemetry._metrics, HOT[name], 10_000))  # type: ignore[arg-type]
        show("OpenTelemetry with the SDK, a span of a call", cost(pair, Event(""), 3_000))
        show("OpenTelemetry with the SDK, spans, CallAdmitted", cost(sink, HOT["CallAdmitted"]))
        theirs = sdk.get_meter("peer").create_counter("peer")
        show(
            "for comparison: a counter of the SDK",
            cost(lambda _: theirs.add(1, {"a": "b", "c": "d"}), Event(""), 10_000),
        )
    sdk.shutdown()

    registry = CollectorRegistry()
    with prometheus.export(registry) as exported:
        for number in range(100):
            for event in (CallFinished(f"g{number}", 1, 0.5, "success"), CallSettled(f"g{number}", "success")):
                exported._meters(event)
        began = time.thread_time_ns()
        text = generate_latest(registry)
        took = (time.thread_time_ns() - began) / 1e6
    print(f"a scrape of {text.count(10)} lines: {took:.1f} ms")


if __name__ == "__main__":
    main()
