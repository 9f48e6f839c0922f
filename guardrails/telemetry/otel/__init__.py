"""Metrics and spans for OpenTelemetry, from the one stream of events.

    from guardrails.telemetry.otel import export

    telemetry = export()        # with the providers that your application sets, before or after
    ...
    telemetry.stop()

Only the API is needed here. While no SDK is set up, an event costs a look at that. Needs the extra ``otel``.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.errors import MissingExtra

try:
    import opentelemetry.metrics
    import opentelemetry.trace  # noqa: F401 - whether it is there
except ImportError as error:
    raise MissingExtra("guardrails.telemetry.otel", extra="otel", module="opentelemetry") from error

from guardrails.telemetry.otel.metrics import MetricSink
from guardrails.telemetry.otel.spans import SpanSink

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


class Export:
    """Metrics and spans, until `stop`. Made by `export`."""

    def __init__(self, metrics: MetricSink | None, spans: SpanSink | None) -> None:
        self._metrics = metrics
        self._spans = spans
        self._stopped = False

    def stop(self) -> None:
        """Count no more, and begin no more spans. Those of calls under way end with them. Twice is once."""
        self._stopped = True
        if self._metrics is not None:
            self._metrics.stop()
        if self._spans is not None:
            self._spans.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<opentelemetry export, {'stopped' if self._stopped else 'counting'}>"


def export(
    *,
    metrics: bool = True,
    spans: bool = True,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    max_values: int = 100,
    stale_after: float = 60.0,
    clock: Clock = SYSTEM_CLOCK,
) -> Export:
    """Give events to OpenTelemetry from now on.

    Args:
        metrics: whether to count.
        spans: whether to make spans of guarded calls and of runners' requests.
        meter_provider: by default the global one, whenever it is set.
        tracer_provider: likewise.
        max_values: different values of each attribute of a metric. Later ones are counted as ``other``.
        stale_after: seconds after which the last snapshot of a monitor or a runner is shown no more. Take more than
            two of their intervals.
        clock: for tests.

    Raises:
        MissingExtra: `opentelemetry` is not installed (when the module is imported).
        ValueError: an argument is out of range; or another `export` makes spans, or counts for the same meter provider.
    """
    if not metrics and not spans:
        raise ValueError("metrics and spans are both off: there is nothing to export")
    tracing = SpanSink(tracer_provider) if spans else None
    try:
        counting = None
        if metrics:
            counting = MetricSink(meter_provider, max_values=max_values, stale_after=stale_after, clock=clock)
    except BaseException:
        if tracing is not None:
            tracing.stop()
        raise
    return Export(counting, tracing)


__all__ = ["Export", "export"]
