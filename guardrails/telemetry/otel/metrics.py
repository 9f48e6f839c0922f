"""The table of metrics, by OpenTelemetry's metrics API.

Counters and gauges are counted by `guardrails.telemetry.meters` and *observed* when the SDK collects, which costs a
call a tenth of what a counter of the SDK does. Histograms are recorded as they come: the SDK aggregates them as its
views say, and ties them to the current span.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics
from opentelemetry.metrics import Observation

from guardrails.core.clock import Clock
from guardrails.core.events import Event, subscribe
from guardrails.telemetry.instruments import Instrument
from guardrails.telemetry.meters import Distribution, Meters

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

#: Events that wait at most, of those that came while one was being counted on the same thread.
_MAX_LATE = 1000


def toolkit_version() -> str:
    """The version that is installed; empty where none is."""
    try:
        return version("guarded-runners")
    except PackageNotFoundError:  # from a folder
        return ""


def attributes(instrument: Instrument, values: tuple[str, ...]) -> dict[str, str]:
    """Label values by attribute. An empty one is left out: it says that there is nothing to say."""
    return {name: value for name, value in zip(instrument.attributes, values, strict=True) if value}


class Bridge:
    """The instruments of one meter provider. They can never be removed, and a second one of the same name would not be
    asked; so they are made once, and answer for the export that runs at the time.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        get_meter = metrics.get_meter if provider is None else provider.get_meter
        self._meter = get_meter("guardrails", toolkit_version())
        self._lock = threading.RLock()
        self._made: dict[str, Any] = {}
        self.meters: Meters | None = None

    def make(self, instrument: Instrument) -> None:
        """Make the instrument, if it has not been made."""
        if instrument.name in self._made:
            return
        about = {"unit": instrument.unit, "description": instrument.help}
        with self._lock:
            if instrument.name in self._made:
                return
            made: Any
            if instrument.kind == "histogram":
                made = self._meter.create_histogram(
                    instrument.name, explicit_bucket_boundaries_advisory=[*map(float, instrument.buckets)], **about
                )
            else:
                create = {
                    "counter": self._meter.create_observable_counter,
                    "updown": self._meter.create_observable_up_down_counter,
                    "gauge": self._meter.create_observable_gauge,
                }[instrument.kind]
                made = create(instrument.name, callbacks=[partial(self._observe, instrument)], **about)
            self._made[instrument.name] = made

    def take(self, instrument: Instrument, values: tuple[str, ...]) -> Callable[[float], None]:
        """What takes the amounts of one series of a histogram."""
        record, named = self._made[instrument.name].record, attributes(instrument, values)

        def take(amount: float) -> None:
            record(amount, named)

        return take

    def _observe(self, instrument: Instrument, _: object) -> Iterable[Observation]:
        if self.meters is None:
            return []
        return [
            Observation(value, attributes(instrument, values))
            for values, value in self.meters.collect_one(instrument)
            if not isinstance(value, Distribution)
        ]


_global: Bridge | None = None
_others: weakref.WeakKeyDictionary[Any, Bridge] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _bridge(provider: MeterProvider | None) -> Bridge:
    global _global  # noqa: PLW0603 - as the global provider is one
    if provider is None or provider is metrics.get_meter_provider():
        _global = _global or Bridge(None)
        return _global
    bridge = _others.get(provider)
    if bridge is None:
        bridge = _others[provider] = Bridge(provider)
    return bridge


class _Busy(threading.local):
    """Of each thread: whether it is counting an event, and those that came meanwhile."""

    def __init__(self) -> None:
        self.counting = False
        self.late: deque[Event] = deque(maxlen=_MAX_LATE)


class MetricSink:
    """Counts events for a meter provider, by default the global one, until `stop`. It subscribes itself.

    Raises:
        ValueError: it gets these metrics already.
    """

    def __init__(self, provider: MeterProvider | None, *, max_values: int, stale_after: float, clock: Clock) -> None:
        with _lock:
            self._bridge = bridge = _bridge(provider)
            if bridge.meters is not None:
                raise ValueError("meter_provider gets these metrics already: stop the other export first")
            self._meters = bridge.meters = Meters(
                max_values=max_values,
                stale_after=stale_after,
                observe=bridge.take,
                first_seen=bridge.make,
                clock=clock,
            )
        self._waiting = provider is None  # for an SDK to be set up
        self._busy = _Busy()
        self._unsubscribe = subscribe(self)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        if self._waiting:
            if _provider_is_unset():
                return
            self._waiting = False
        # The SDK's locks are not re-entrant. If the garbage collector ends a guarded generator while it holds one for
        # us, that event has to wait until it does not.
        busy = self._busy
        if busy.counting:
            busy.late.append(event)
            return
        busy.counting = True
        try:
            self._meters(event)
            while busy.late:
                self._meters(busy.late.popleft())
        finally:
            busy.counting = False

    def stop(self) -> None:
        """Count no more, and have nothing observed. Twice is once."""
        self._unsubscribe()
        with _lock:
            if self._bridge.meters is self._meters:
                self._bridge.meters = None


def _provider_is_unset() -> bool:
    # To ask by `get_meter_provider` costs a look into the environment, ten times as much. Should the name go, we count
    # for nobody until there is a provider, and nothing else is different.
    return vars(metrics._internal).get("_METER_PROVIDER", True) is None  # noqa: SLF001


__all__ = ["Bridge", "MetricSink", "attributes", "toolkit_version"]
