"""Metrics for Prometheus, from the one stream of events.

    from guardrails.telemetry.prometheus import export

    metrics = export()          # into prometheus_client's registry, which your application may serve already
    metrics.serve(9464)         # else: on 127.0.0.1, in a thread

Counting is done by `guardrails.telemetry.meters`; a scrape copies the counts and renders them. Needs the extra
``prometheus``.
"""

from __future__ import annotations

import contextlib
import platform
import threading
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.errors import MissingExtra
from guardrails.core.events import subscribe
from guardrails.telemetry.instruments import REGISTRY, Instrument
from guardrails.telemetry.meters import Distribution, Meters

try:
    import prometheus_client
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
except ImportError as error:
    raise MissingExtra("guardrails.telemetry.prometheus", extra="prometheus", module="prometheus_client") from error

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class _Server(Protocol):
    server_port: int

    def shutdown(self) -> None: ...
    def server_close(self) -> None: ...


class Export:
    """Metrics in a registry of `prometheus_client`, until `stop`. Made by `export`.

    It is a collector: `collect` and `describe` are called by the registry.

    Attributes:
        registry: where it is registered.
    """

    def __init__(self, registry: CollectorRegistry, meters: Meters) -> None:
        self.registry = registry
        self._meters = meters
        self._info = {"version": _version(), "python": platform.python_version()}
        self._lock = threading.Lock()
        self._servers: list[tuple[_Server, threading.Thread]] = []
        self._stopped = False
        registry.register(self)  # refuses a second one, before anything is counted
        self._unsubscribe = subscribe(meters)

    def serve(self, port: int, *, address: str = "127.0.0.1") -> int:
        """Answer scrapes of the registry over HTTP, in a thread, until `stop`. Returns the port.

        Args:
            port: 0 takes a free one.
            address: by default this machine only; ``"0.0.0.0"`` lets everybody read who can reach it.

        Raises:
            OSError: the port is taken. ValueError: it is no port. RuntimeError: the export has been stopped.
        """
        if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port <= 65535:
            raise ValueError(f"port takes a whole number from 0 to 65535, not {port!r}")
        with self._lock:
            if self._stopped:
                raise RuntimeError("this export has been stopped; make another")
            server, thread = prometheus_client.start_http_server(port, addr=address, registry=self.registry)
            self._servers.append((server, thread))
        return server.server_port

    def stop(self) -> None:
        """Count no more, leave the registry, and close the ports, which takes up to half a second. Twice is once."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            servers, self._servers = self._servers, []
        self._unsubscribe()
        with contextlib.suppress(KeyError):  # somebody has cleared the registry
            self.registry.unregister(self)
        for server, thread in servers:
            server.shutdown()
            server.server_close()
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<prometheus export, {'stopped' if self._stopped else 'counting'}>"

    # The collector

    def describe(self) -> Iterator[Metric]:
        """All metrics, without values: the registry looks whether a name is taken."""
        yield InfoMetricFamily("guardrails", _INFO)
        for instrument in REGISTRY.all():
            yield _family(instrument)

    def collect(self) -> Iterator[Metric]:
        """All metrics that have a value."""
        yield InfoMetricFamily("guardrails", _INFO, value=self._info)
        for reading in self._meters.collect():
            family = _family(reading.instrument)
            for values, value in reading.series:
                if isinstance(value, Distribution):
                    family.add_metric(values, _buckets(reading.instrument, value), sum_value=value.total)
                else:
                    family.add_metric(values, value)
            yield family


def export(
    registry: CollectorRegistry | None = None,
    *,
    max_values: int = 100,
    stale_after: float = 60.0,
    clock: Clock = SYSTEM_CLOCK,
) -> Export:
    """Count events from now on, and show them to Prometheus.

    No port is opened: whatever serves the registry serves these metrics too. `Export.serve` opens one.

    Args:
        registry: by default the one of `prometheus_client`.
        max_values: different values of each label. Later ones are counted as ``other``.
        stale_after: seconds after which the last snapshot of a monitor or a runner is shown no more. Take more than
            two of their intervals.
        clock: for tests.

    Raises:
        MissingExtra: `prometheus_client` is not installed (when the module is imported).
        ValueError: an argument is out of range; or the registry has such metrics already, of another `export`.
    """
    meters = Meters(max_values=max_values, stale_after=stale_after, clock=clock)
    return Export(prometheus_client.REGISTRY if registry is None else registry, meters)


_INFO = "What counts: the version of the toolkit and of Python."


def _family(instrument: Instrument) -> Any:
    kind: Any = GaugeMetricFamily
    if instrument.kind == "counter":
        kind = CounterMetricFamily
    elif instrument.kind == "histogram":
        kind = HistogramMetricFamily
    return kind(
        instrument.prometheus_name,
        instrument.help,
        labels=instrument.prometheus_labels,
        unit=instrument.prometheus_unit,
    )


def _buckets(instrument: Instrument, value: Distribution) -> list[tuple[str, float]]:
    """Upper bounds and how many fell below them, each with all that fell below the one before."""
    found: list[tuple[str, float]] = []
    below = 0
    for bound, count in zip((*(f"{float(bound)}" for bound in instrument.buckets), "+Inf"), value.counts, strict=True):
        below += count
        found.append((bound, below))
    return found


def _version() -> str:
    try:
        return version("guarded-runners")
    except PackageNotFoundError:  # from a folder, not installed
        return "unknown"


__all__ = ["Export", "export"]
