"""A span around each guarded call, where the application traces: ``CallStarted`` opens it, ``CallFinished`` ends it.

A span is the child of the one that is under way, and there is none without: how much is traced stays the application's
choice. What the call does in turn (an HTTP request) becomes the child of its span.

For that the SDK's *current scope*, a context variable, is set to a copy of it that names the span, and set back at the
end. Changing the scope in place, as is the SDK's habit, would mix up the parents of calls that run beside each other
in tasks of one scope. A stream's span is nobody's parent: between two items the context belongs to the reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from guardrails.core.events import CallFinished, CallStarted
from guardrails.core.names import public

OP = "guardrails.call"
ORIGIN = "auto.function.guardrails"
#: Calls whose end is waited for, at most; of more than that the oldest get no span.
MAX_OPEN = 10_000

#: Outcomes in Sentry's words, those of gRPC.
_STATUS = {
    "success": "ok",
    "failure": "internal_error",
    "throttled": "resource_exhausted",
    "rejected": "unavailable",
    "ignored": "cancelled",
}


@dataclass(slots=True)
class _Open:
    span: Any
    streamed: bool  # whether the SDK sends spans one by one, and not a transaction with all of them
    before: Any = None  # the scope that was current before; None where it was left alone
    scope: Any = None  # the one in its place
    parent: Any = None


class Spans:
    """The spans of the calls that are under way.

    Args:
        sdk: the module `sentry_sdk`.
    """

    def __init__(self, sdk: ModuleType) -> None:
        self._sdk = sdk
        self._open: dict[int, _Open] = {}

    def __len__(self) -> int:
        return len(self._open)

    def started(self, event: CallStarted, options: dict[str, Any]) -> None:
        """Open a span, if a sampled one is under way. `options` are the client's, which `traces`."""
        scope = self._sdk.get_current_scope()
        streamed = _sends_one_by_one(options)
        if streamed:
            parent = getattr(scope, "streamed_span", None)
        else:
            parent = scope.span or self._sdk.get_isolation_scope().span
            if parent is not None and parent.containing_transaction is None:
                return  # of no transaction: it will not be sent
        if parent is None or not parent.sampled:
            return
        opened = _Open(self._start(event, parent, streamed=streamed), streamed)
        if not event.stream:
            opened.before, opened.scope, opened.parent = scope, scope.fork(), parent
            _set_span(opened.scope, opened.span, streamed=streamed)
            type(scope).set_current_scope(opened.scope)
        if len(self._open) >= MAX_OPEN:
            self._forget_one()
        self._open[event.call] = opened

    def finished(self, event: CallFinished) -> None:
        """End the call's span, if it has one."""
        opened = self._open.pop(event.call, None)
        if opened is None:
            return
        self._leave(opened)
        span = opened.span
        if opened.streamed:
            span.set_attribute("guardrails.outcome", event.outcome)
            if event.first is not None:
                span.set_attribute("guardrails.first", event.first)
            span.status = "ok" if event.outcome in ("success", "ignored") else "error"
            span.end()
        else:
            span.set_data("guardrails.outcome", event.outcome)
            if event.first is not None:
                span.set_data("guardrails.first", event.first)
            span.set_status(_STATUS.get(event.outcome, "unknown_error"))
            span.finish()

    def close(self) -> None:
        """Leave all of them; they are not sent."""
        while self._open:
            self._forget_one()

    def _start(self, event: CallStarted, parent: Any, *, streamed: bool) -> Any:
        name = public(event.source)
        if streamed:
            attributes = {"sentry.op": OP, "sentry.origin": ORIGIN}
            return self._sdk.traces.start_span(name, attributes, parent_span=parent, active=False)
        return parent.start_child(op=OP, name=name, origin=ORIGIN)

    def _leave(self, opened: _Open) -> None:
        if opened.before is None:
            return
        scopes = type(opened.before)
        if self._sdk.get_current_scope() is opened.scope:
            scopes.set_current_scope(opened.before)
        # Whoever copied the context meanwhile keeps our scope. To him too the span is over.
        _set_span(opened.scope, opened.parent, streamed=opened.streamed)

    def _forget_one(self) -> None:
        try:
            opened = self._open.pop(next(iter(self._open)))
        except (KeyError, RuntimeError, StopIteration):
            return  # another thread was faster
        self._leave(opened)


def traces(options: dict[str, Any]) -> bool:
    """Whether a client with these options traces at all."""
    return options.get("traces_sample_rate") is not None or options.get("traces_sampler") is not None


def _sends_one_by_one(options: dict[str, Any]) -> bool:
    lifecycle = options.get("trace_lifecycle") or (options.get("_experiments") or {}).get("trace_lifecycle")
    return bool(lifecycle == "stream")


def _set_span(scope: Any, span: Any, *, streamed: bool) -> None:
    if streamed:
        scope.streamed_span = span
    else:
        scope.span = span
