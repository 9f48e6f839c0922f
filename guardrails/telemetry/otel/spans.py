"""Spans: one around each guarded call, one for each request of a runner, and what guards decide as events on them.

::

    guard openai  ├───────────────────────────────────────────────────────────┤   CallStarted ... CallFinished
                    ● call.rejected   ● retry.scheduled   ● breaker.changed        on the current span
                        POST /v1/chat ├──────┤                                     what the call makes itself
                                              chat tiny.gguf ├───────────────┤     RequestFinished, made afterwards

The span of a call is the current one while the call runs, so what is traced within it becomes its child. It is not for
a stream: between two steps its reader would have it, for whatever else he does.

No span holds a prompt, an argument, a result, or the name of a guard that was made for a key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from opentelemetry import context, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from guardrails.core.events import CallAdmitted, CallFinished, CallStarted, Event, subscribe
from guardrails.core.names import public
from guardrails.telemetry.instruments import place_of
from guardrails.telemetry.operations import is_operation, operation_of
from guardrails.telemetry.otel.metrics import toolkit_version
from guardrails.telemetry.records import describe

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

#: Calls under way that are known. What comes beyond ends the oldest span.
MAX_OPEN = 10_000
#: Seconds of waiting at a gate from which it is worth an event.
NOTED_WAIT = 0.001
#: What comes on the current span. The rest is too frequent, or is about no call.
_NOTED = frozenset(
    {
        *(f"guardrails.core.events:{name}" for name in ("BreakerChanged", "CallRejected", "CallTimedOut")),
        *(f"guardrails.strategies.retry.strategy:{name}" for name in ("RetryGaveUp", "RetryScheduled")),
        *(f"guardrails.strategies.hedge:{name}" for name in ("HedgeStarted", "HedgeWon")),
        *(f"guardrails.strategies.cache.signals:{name}" for name in ("CacheHit", "CacheJoined", "CacheMiss")),
        "guardrails.strategies.cache.signals:CacheServedStale",
        "guardrails.strategies.cache.signals:CacheServedError",
        "guardrails.strategies.fallback:FallbackUsed",
        "guardrails.strategies.inject.strategy:FaultInjected",
        "guardrails.gates.limiter.signals:Drained",
    }
)
_FAILED = frozenset({"failure", "throttled", "rejected"})


_active: SpanSink | None = None
_lock = threading.Lock()


class SpanSink:
    """Makes spans of events, with a tracer provider, by default the global one, until `stop`. It subscribes itself.

    Args:
        provider: where spans go.
        now: nanoseconds since the epoch, for tests.

    Raises:
        ValueError: there is one already. Two would take each other's current span away.
    """

    def __init__(self, provider: TracerProvider | None = None, *, now: Callable[[], int] = time.time_ns) -> None:
        global _active  # noqa: PLW0603 - the current span is one for all, too
        get_tracer: Any = trace.get_tracer if provider is None else provider.get_tracer
        self._tracer = get_tracer("guardrails", toolkit_version())
        self._waiting = provider is None  # for an SDK to be set up
        self._now = now
        self._lock = threading.RLock()  # the garbage collector may end a guarded generator while we hold it
        self._stopping = False
        self._handlers: dict[type[Event], Callable[[Any], None] | None] = {}
        self._open: dict[int, tuple[Span, Any]] = {}  # by the number of the call; the oldest first
        with _lock:
            if _active is not None:
                raise ValueError("spans are made already: stop the other export first")
            _active = self
        self._unsubscribe = subscribe(self)

    def __call__(self, event: Event) -> None:
        """Make what `event` asks for."""
        if self._stopping:
            if type(event) is CallFinished:
                self._finish(event)
            return
        if self._waiting:
            if vars(trace).get("_TRACER_PROVIDER", True) is None:  # as `MetricSink` looks
                return
            self._waiting = False
        kind = type(event)
        if kind not in self._handlers:
            self._handlers[kind] = self._handler_of(kind)
        handle = self._handlers[kind]
        if handle is not None:
            handle(event)

    def _handler_of(self, kind: type[Event]) -> Callable[[Any], None] | None:
        calls: dict[type[Event], Callable[[Any], None]] = {
            CallStarted: self._start,
            CallFinished: self._finish,
            CallAdmitted: self._waited,
        }
        if kind in calls:
            return calls[kind]
        if is_operation(kind):
            return self._report
        return self._note if place_of(kind) in _NOTED else None

    def stop(self) -> None:
        """Begin no more spans. Those of streams end now, the others with their calls: each is the current one of a
        task, which only that task can change.
        """
        global _active  # noqa: PLW0603
        with _lock:
            if _active is self:
                _active = None
        with self._lock:
            self._stopping = True
            streams = {call: span for call, (span, token) in self._open.items() if token is None}
            for call in streams:
                del self._open[call]
            over = not self._open
        for span in streams.values():
            span.end()
        if over:
            self._unsubscribe()

    # Calls

    def _start(self, event: CallStarted) -> None:
        name = public(event.source)
        span = self._tracer.start_span(f"guard {name}", attributes={"guardrails.guard": name})
        token = None
        if not event.stream and span.get_span_context().is_valid:
            token = context.attach(trace.set_span_in_context(span))
        dropped = None
        with self._lock:
            self._open[event.call] = (span, token)
            if len(self._open) > MAX_OPEN:
                dropped, _ = self._open.pop(next(iter(self._open)))
        if dropped is not None:
            dropped.end()

    def _finish(self, event: CallFinished) -> None:
        with self._lock:
            found = self._open.pop(event.call, None)
            over = self._stopping and not self._open
        if over:
            self._unsubscribe()
        if found is None:
            return
        span, token = found
        # A call whose end comes in another context (a block that another task leaves) changed nothing there.
        if token is not None and trace.get_current_span() is span:
            context.detach(token)
        if span.is_recording():
            span.set_attribute("guardrails.outcome", event.outcome)
            if event.first is not None:
                span.set_attribute("guardrails.time_to_first_item", event.first)
            if event.outcome in _FAILED:
                span.set_attribute("error.type", event.outcome)
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    # Requests

    def _report(self, event: Event) -> None:
        operation, end = operation_of(event), self._now()
        span = self._tracer.start_span(
            operation.name,
            kind=SpanKind.CLIENT,  # the model runs in another process
            attributes=dict(operation.attributes),
            start_time=end - int(operation.seconds * 1e9),
        )
        if operation.error is not None and span.is_recording():
            span.set_attribute("error.type", operation.error)
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    # What guards decide

    def _waited(self, event: CallAdmitted) -> None:
        if event.waited >= NOTED_WAIT:
            self._note(event)

    def _note(self, event: Event) -> None:
        span = trace.get_current_span()
        if span.is_recording():
            record = describe(event)
            fields = {f"guardrails.{name}": value for name, value in record.fields.items()}
            span.add_event(f"guardrails.{record.name}", {"guardrails.guard": public(event.source), **fields})


__all__ = ["MAX_OPEN", "NOTED_WAIT", "SpanSink"]
