"""What is counted: one table of metrics, each with the events that it is read from. Prometheus and OpenTelemetry share
it.

::

    CallRejected("openai", "open", 15.0)
        ──▶  guardrails.gate.rejections {guard: openai, reason: open} + 1

A metric has one name, after OpenTelemetry's manner, and a unit. Prometheus' name follows from both, by the rules that
the two projects agreed on: ``guardrails.call.duration`` in ``s`` is ``guardrails_call_duration_seconds``.

Events are known by the place of their class, ``module:Class``, so that counting imports no guard.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from guardrails.core.events import Event

#: Label values, and the amount: one observation.
Point = tuple[tuple[str, ...], float]
#: How an event is read. See `Instrument.feeds`.
Read = Callable[[Any], "Point | Iterable[Point] | None"]
Kind = Literal["counter", "updown", "gauge", "histogram"]

#: Seconds of a call to a model or a provider: 1 ms to 5 minutes.
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
#: Seconds of something that lives for long, such as a connection: 1 s to a day.
LIFE_SECONDS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)

_KINDS = ("counter", "updown", "gauge", "histogram")
#: The units that a metric may have, after UCUM, and the end of its name that they are in Prometheus.
_UNITS = {"s": "seconds", "By": "bytes", "By/s": "bytes_per_second", "1": "ratio", "": ""}
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_LABEL = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_ANNOTATION = re.compile(r"\{[a-z_]+\}")
_PLACE = re.compile(r"[\w.]+:[\w.]+")


@dataclass(frozen=True, slots=True, eq=False)  # told apart by identity: they are keys of what is looked up for an event
class Instrument:
    """One metric.

    Attributes:
        name: words joined by dots, the first of which says whose it is: ``guardrails.call.duration``.
        kind: ``counter`` (only grows), ``updown`` (how many there are now, by what comes and goes), ``gauge`` (the last
            value), ``histogram``.
        unit: after UCUM: ``s``, ``By``, ``By/s``, ``1`` (a share), an annotation such as ``{call}``, or nothing.
        help: a sentence.
        labels: at least one. The first says whose it is: a guard, a runner, a process.
        feeds: for each event, by ``module:Class``, the function that reads it. It returns label values in the order of
            `labels` and an amount, or None if this event says nothing of the metric. For a gauge, and for what is
            `sampled`, it returns any number of these.
        buckets: upper bounds of a histogram's buckets, rising.
        sampled: its events are snapshots of their source: the last one is kept, in place of what was before, and read
            when somebody asks. Such a counter is read as it stands, not added up.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...]
    feeds: tuple[tuple[str, Read], ...]
    buckets: tuple[float, ...] = ()
    sampled: bool = False

    def __post_init__(self) -> None:
        def refuse(argument: str, takes: str, value: object) -> None:
            raise ValueError(f"{argument} of {self.name!r} takes {takes}, not {value!r}")

        if not _NAME.fullmatch(self.name):
            refuse("name", "lower-case words joined by dots", self.name)
        if self.kind not in _KINDS:
            refuse("kind", f"one of {', '.join(_KINDS)}", self.kind)
        if self.unit not in _UNITS and not _ANNOTATION.fullmatch(self.unit):
            refuse("unit", "s, By, By/s, 1, an annotation in braces, or nothing", self.unit)
        if not self.labels or not all(_LABEL.fullmatch(label) for label in self.labels):
            refuse("labels", "at least one lower-case word", self.labels)
        if len(set(self.labels)) != len(self.labels) or "le" in self.labels:
            refuse("labels", "different words, none of them 'le'", self.labels)
        for place, _ in self.feeds:
            if not _PLACE.fullmatch(place):
                refuse("feeds", "events as 'module:Class'", place)
        if (self.kind == "histogram") != bool(self.buckets) or list(self.buckets) != sorted(set(self.buckets)):
            refuse("buckets", "rising numbers for a histogram, and nothing else", self.buckets)
        if self.sampled and self.kind not in ("gauge", "counter"):
            refuse("sampled", "True for gauges and counters only", True)

    @property
    def prometheus_name(self) -> str:
        """Its name in Prometheus, without the endings that samples add (``_total``, ``_bucket``, ...)."""
        name, unit = self.name.replace(".", "_"), self.prometheus_unit
        return name if not unit or name.endswith(f"_{unit}") else f"{name}_{unit}"

    @property
    def prometheus_unit(self) -> str:
        """Its unit in Prometheus, in full; empty if it has none."""
        return _UNITS.get(self.unit, "")

    @property
    def prometheus_labels(self) -> tuple[str, ...]:
        """Its labels in Prometheus."""
        return tuple(label.replace(".", "_") for label in self.labels)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Its labels in OpenTelemetry: each with the metric's first word before it, unless it has dots of its own."""
        space = self.name.partition(".")[0]
        return tuple(label if "." in label else f"{space}.{label}" for label in self.labels)

    @property
    def adds_up(self) -> bool:
        """Whether values of different things may be summed: bytes and counts may, states and shares may not."""
        return self.unit == "By" or self.unit.startswith("{")


class Registry:
    """All metrics, by name, and what is read from each event."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[str, Instrument] = {}
        self._by_place: dict[str, tuple[tuple[Instrument, Read], ...]] = {}

    def register(self, *instruments: Instrument) -> None:
        """Count these too, in every sink. Do it before the first event that they are read from.

        Raises:
            TypeError: one is not an `Instrument`. ValueError: its name is taken, here or in Prometheus.
        """
        with self._lock:
            taken = {each.prometheus_name for each in self._by_name.values()}
            for instrument in instruments:
                if not isinstance(instrument, Instrument):
                    raise TypeError(f"instruments takes Instrument, not {type(instrument).__name__}")
                if instrument.prometheus_name in taken:
                    raise ValueError(f"there is a metric {instrument.name!r} already")
                taken.add(instrument.prometheus_name)
            for instrument in instruments:
                self._by_name[instrument.name] = instrument
                for place, read in instrument.feeds:
                    self._by_place[place] = (*self._by_place.get(place, ()), (instrument, read))

    def unregister(self, *names: str) -> None:
        """Take metrics out again; sinks that have begun to count them go on. Names that are not there are ignored."""
        with self._lock:
            for name in names:
                self._by_name.pop(name, None)
            self._by_place = {
                place: left
                for place, feeds in self._by_place.items()
                if (left := tuple(feed for feed in feeds if feed[0].name not in names))
            }

    def all(self) -> tuple[Instrument, ...]:
        """Every metric, in the order in which they came."""
        return tuple(self._by_name.values())

    def feeds_of(self, kind: type) -> tuple[tuple[Instrument, Read], ...]:
        """What is read from events of the class `kind`, or of the nearest of its bases that anything is read from."""
        load_home(kind)
        for base in kind.__mro__:
            feeds = self._by_place.get(place_of(base))
            if feeds:
                return feeds
        return ()


# ------------------------------------------------------------------------------------------------- building the table


#: An event, as its class or as ``module:Class``, which needs no import of it.
Fed = str | type[Event]


def counter(name: str, unit: str, help: str, labels: str, feeds: Mapping[Fed, Read]) -> Instrument:  # noqa: A002
    """A counter; `labels` are words with spaces between, here as below."""
    return Instrument(name, "counter", unit, help, tuple(labels.split()), _feeds(feeds.items()))


def updown(name: str, unit: str, help: str, labels: str, feeds: Mapping[Fed, Read]) -> Instrument:  # noqa: A002
    """How many there are."""
    return Instrument(name, "updown", unit, help, tuple(labels.split()), _feeds(feeds.items()))


def gauge(name: str, unit: str, help: str, labels: str, feeds: Mapping[Fed, Read]) -> Instrument:  # noqa: A002
    """The last value, which stays until the next."""
    return Instrument(name, "gauge", unit, help, tuple(labels.split()), _feeds(feeds.items()))


def histogram(
    name: str,
    unit: str,
    help: str,  # noqa: A002
    labels: str,
    feeds: Iterable[tuple[Fed, Read]],
    *,
    buckets: tuple[float, ...] = CALL_SECONDS,
) -> Instrument:
    """A distribution."""
    return Instrument(name, "histogram", unit, help, tuple(labels.split()), _feeds(feeds), buckets)


def sampled(
    name: str,
    unit: str,
    help: str,  # noqa: A002
    labels: str,
    feeds: Mapping[Fed, Read],
    *,
    kind: Literal["gauge", "counter"] = "gauge",
) -> Instrument:
    """A gauge, or a counter, that is read from snapshots."""
    return Instrument(name, kind, unit, help, tuple(labels.split()), _feeds(feeds.items()), sampled=True)


def _feeds(feeds: Iterable[tuple[Fed, Read]]) -> tuple[tuple[str, Read], ...]:
    return tuple((place if isinstance(place, str) else place_of(place), read) for place, read in feeds)


def place_of(kind: type) -> str:
    """The place of a class: ``module:Class``."""
    return f"{kind.__module__}:{kind.__qualname__}"


def load_home(kind: type) -> None:
    """Import what registers the metrics of events of the class `kind`: the module that its own names, in
    ``__telemetry__``. So a package with events of its own need not load all that before somebody listens.
    """
    home = getattr(sys.modules.get(kind.__module__), "__telemetry__", None)
    if home is not None and home not in sys.modules:
        import_module(home)


def one_of(source: str, states: Iterable[str], now: str) -> Iterable[Point]:
    """A gauge for each state: 1.0 for the one that it is in, 0.0 for the others."""
    known = dict.fromkeys((*states, now), 0.0)
    known[now] = 1.0
    return [((source, state), value) for state, value in known.items()]


#: The table. `guardrails.telemetry.table` fills it, and `runners.telemetry.instruments` adds to it.
REGISTRY = Registry()


def register(*instruments: Instrument) -> None:
    """`Registry.register` of the one table."""
    REGISTRY.register(*instruments)


__all__ = [
    "CALL_SECONDS",
    "LIFE_SECONDS",
    "REGISTRY",
    "Fed",
    "Instrument",
    "Kind",
    "Point",
    "Read",
    "Registry",
    "counter",
    "gauge",
    "histogram",
    "load_home",
    "one_of",
    "place_of",
    "register",
    "sampled",
    "updown",
]
