"""Counts what events say, by the table of `guardrails.telemetry.instruments`: one sink, which others read.

::

    event ──▶ what reads it (looked up once for each class) ──▶ a cell for its labels ──▶ += under a lock
                                                                                               │
    a scrape, a collection ◀── collect(): a copy of all cells, and the last snapshots, read ◀──┘

An event costs about half a microsecond for each metric that it feeds. Memory is bounded: a label has `max_values`
values (see `guardrails.telemetry.labels`), and of what sends snapshots as many sources are kept.

Threads: one lock guards what cells there are, and their additions where `_STEADY` is false. Elsewhere an addition is
one step for other threads, since it neither calls a function nor loops (see `guardrails.gates.limiter.exclusive`), and
takes no lock, which would cost as much as the rest. The lock is re-entrant, because the garbage collector may end a
guarded generator, and so emit an event, in the middle of our own code.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.events import Event
from guardrails.core.names import public
from guardrails.telemetry import table  # noqa: F401 - registers the metrics of this package
from guardrails.telemetry.instruments import REGISTRY, Instrument, Point, Read, Registry
from guardrails.telemetry.labels import OTHER, Labels

_log = logging.getLogger("guardrails.telemetry")
#: Whether code without calls and loops is one step for other threads.
_STEADY = sys.implementation.name == "cpython" and getattr(sys, "_is_gil_enabled", lambda: True)()

_Values = tuple[str, ...]
_Handle = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Distribution:
    """What a histogram has seen: the sum, and how many fell in each bucket and, last, above all."""

    total: float
    counts: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many in all."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric and its series: for each label values, a number or a `Distribution`."""

    instrument: Instrument
    series: tuple[tuple[_Values, float | Distribution], ...]


#: Makes what takes the amounts of one series of a histogram, in place of a cell. Called once a series.
Observe = Callable[[Instrument, _Values], Callable[[float], None]]


class Meters:
    """The counts. Subscribe it: ``subscribe(Meters())``.

    Args:
        max_values: different values of each label; what comes later is counted as ``other``.
        stale_after: seconds for which the last snapshot of a source counts. After that it has no value, rather than an
            old one.
        observe: given, histograms are handed on to what it makes, and hold nothing here.
        first_seen: called with each metric before its first event is counted, perhaps more than once.
        registry: the table, for tests.
        clock: for tests.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        max_values: int = 100,
        stale_after: float = 60.0,
        observe: Observe | None = None,
        first_seen: Callable[[Instrument], None] | None = None,
        registry: Registry = REGISTRY,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not isinstance(stale_after, int | float) or isinstance(stale_after, bool) or not stale_after > 0:
            raise ValueError(f"stale_after takes seconds above 0, not {stale_after!r}")
        if not isinstance(max_values, int) or isinstance(max_values, bool) or max_values < 1:
            raise ValueError(f"max_values takes a whole number of at least 1, not {max_values!r}")
        self._max_values = max_values
        self._stale_after = stale_after
        self._observe = observe
        self._first_seen = first_seen
        self._registry = registry
        self._clock = clock
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        # At first, and in the child of a fork: it counts from nothing, for what its parent counts is in the parent's
        # series; and whoever held the lock does not live on.
        self._lock = threading.RLock()
        self._labels = Labels(self._max_values)
        self._cells: dict[Instrument, dict[_Values, list[float]]] = {}
        self._snapshots: dict[type[Event], dict[str, tuple[float, Event]]] = {}
        self._reads: dict[type[Event], list[tuple[Instrument, Read]]] = {}
        self._handles: dict[type[Event], tuple[_Handle, ...]] = {}

    # The sink

    def __call__(self, event: Event) -> None:
        """Count an event."""
        handles = self._handles.get(type(event))
        if handles is None:
            handles = self._learn(type(event))
        for handle in handles:
            handle(event)

    def _learn(self, kind: type[Event]) -> tuple[_Handle, ...]:
        feeds = self._registry.feeds_of(kind)
        if not feeds:
            return ()  # not kept: it may be registered later
        if self._first_seen is not None:  # outside the lock: it may take another, whose holder wants ours
            for instrument, _ in feeds:
                self._first_seen(instrument)
        with self._lock:
            known = self._handles.get(kind)
            if known is not None:
                return known
            handles: list[_Handle] = []
            for instrument, read in feeds:
                if instrument.sampled:
                    if kind not in self._reads:
                        self._reads[kind] = []
                        handles.append(self._keeps(kind))
                    self._reads[kind].append((instrument, read))
                elif instrument.kind == "histogram" and self._observe is not None:
                    handles.append(self._hands_on(instrument, read, self._observe))
                elif instrument.kind == "histogram":
                    handles.append(self._distributes(instrument, read))
                elif instrument.kind == "gauge":
                    handles.append(self._sets(instrument, read))
                else:
                    handles.append(self._adds(instrument, read))
            self._handles[kind] = tuple(handles)
            return self._handles[kind]

    # What is done with an event. Each returns a function that does it for one metric.

    def _adds(self, instrument: Instrument, read: Read) -> _Handle:
        cells = self._cells.setdefault(instrument, {})
        lock, cell_of, steady, growing = self._lock, self._cell_of, _STEADY, instrument.kind == "counter"

        def add(event: Any) -> None:
            point: Any = read(event)
            if point is None:
                return
            values, amount = point
            if values[0].__class__ is not str:  # given by `keyed`: it equals a plain name, whose cell it must not take
                values = (public(values[0]), *values[1:])
            cell = cells.get(values)
            if cell is None:
                cell = cell_of(instrument, cells, values)
            if steady:
                now = cell[0] + amount
                # What ends now may have begun before we counted: there are never fewer than none.
                cell[0] = now if growing or now > 0 else 0.0
                return
            with lock:
                now = cell[0] + amount
                cell[0] = now if growing or now > 0 else 0.0

        return add

    def _distributes(self, instrument: Instrument, read: Read) -> _Handle:
        cells = self._cells.setdefault(instrument, {})
        lock, cell_of, steady, bounds = self._lock, self._cell_of, _STEADY, instrument.buckets

        def distribute(event: Any) -> None:
            point: Any = read(event)
            if point is None:
                return
            values, amount = point
            if values[0].__class__ is not str:
                values = (public(values[0]), *values[1:])
            cell = cells.get(values)
            if cell is None:
                cell = cell_of(instrument, cells, values)
            place = bisect_left(bounds, amount) + 1
            if steady:
                cell[0] += amount
                cell[place] += 1
                return
            with lock:
                cell[0] += amount
                cell[place] += 1

        return distribute

    def _hands_on(self, instrument: Instrument, read: Read, observe: Observe) -> _Handle:
        takers: dict[_Values, Callable[[float], None]] = {}

        def hand_on(event: Any) -> None:
            point: Any = read(event)
            if point is None:
                return
            values, amount = point
            if values[0].__class__ is not str:
                values = (public(values[0]), *values[1:])
            take = takers.get(values)
            if take is None:
                with self._lock:
                    named = self._labels.values(instrument.labels, values)
                    take = takers.get(named)
                    if take is None:
                        take = takers[named] = observe(instrument, named)
            take(amount)

        return hand_on

    def _sets(self, instrument: Instrument, read: Read) -> _Handle:
        cells = self._cells.setdefault(instrument, {})

        def assign(event: Any) -> None:
            if public(event.source) is not event.source:
                return  # one of many that share a name: the last value of one is not theirs
            points: Any = read(event)
            with self._lock:
                for values, amount in points:
                    named = self._labels.values(instrument.labels, values)
                    if OTHER not in named:
                        cells.setdefault(named, [0.0])[0] = amount

        return assign

    def _keeps(self, kind: type[Event]) -> _Handle:
        kept = self._snapshots.setdefault(kind, {})

        def keep(event: Any) -> None:
            now, source = self._clock.now(), public(event.source)
            with self._lock:
                kept.pop(source, None)
                kept[source] = (now, event)
                if len(kept) > self._max_values:
                    del kept[next(iter(kept))]

        return keep

    def _cell_of(self, instrument: Instrument, cells: dict[_Values, list[float]], values: _Values) -> list[float]:
        with self._lock:
            named = self._labels.values(instrument.labels, values)
            return cells.setdefault(named, [0.0] + [0] * (len(instrument.buckets) + 1 if instrument.buckets else 0))

    # Who reads

    def collect(self) -> list[Reading]:
        """All metrics that have a value, as they are now."""
        with self._lock:
            counted = {each: _copied(cells) for each, cells in self._cells.items()}
        found: dict[Instrument, tuple[tuple[_Values, float | Distribution], ...]] = {
            each: tuple((values, _value(each, cell)) for values, cell in series) for each, series in counted.items()
        }
        found.update(self._collect_snapshots())
        order = {instrument: index for index, instrument in enumerate(self._registry.all())}
        return [
            Reading(instrument, series)
            for instrument, series in sorted(found.items(), key=lambda item: order.get(item[0], len(order)))
            if series
        ]

    def collect_one(self, instrument: Instrument) -> tuple[tuple[_Values, float | Distribution], ...]:
        """The series of one metric."""
        if instrument.sampled:
            return self._collect_snapshots(instrument).get(instrument, ())
        with self._lock:
            series = _copied(self._cells.get(instrument, {}))
        return tuple((values, _value(instrument, cell)) for values, cell in series)

    def _collect_snapshots(self, only: Instrument | None = None) -> dict[Instrument, tuple[tuple[_Values, float], ...]]:
        oldest = self._clock.now() - self._stale_after
        with self._lock:
            kept = [
                (instrument, read, [event for at, event in self._snapshots[kind].values() if at >= oldest])
                for kind, reads in self._reads.items()
                for instrument, read in reads
                if only is None or instrument is only
            ]
        found: dict[Instrument, dict[_Values, float]] = {}
        for instrument, read, events in kept:
            series = found.setdefault(instrument, {})
            for values, amount in _points(instrument, read, events):
                with self._lock:
                    named = self._labels.values(instrument.labels, values)
                if instrument.adds_up:  # two children of one name, and all that have none of their own
                    series[named] = series.get(named, 0.0) + amount
                elif OTHER not in named:
                    series[named] = amount
        return {instrument: tuple(series.items()) for instrument, series in found.items()}


def _points(instrument: Instrument, read: Read, events: list[Event]) -> Iterator[Point]:
    for event in events:
        try:
            points: Any = read(event)
            yield from points
        except Exception:  # one metric that cannot be read must not cost the others
            _log.exception("cannot read %s from %s", instrument.name, type(event).__name__)


def _copied(cells: dict[_Values, list[float]]) -> list[tuple[_Values, list[float]]]:
    return [(values, list(cell)) for values, cell in cells.items()]


def _value(instrument: Instrument, cell: list[float]) -> float | Distribution:
    return Distribution(cell[0], tuple(int(count) for count in cell[1:])) if instrument.buckets else cell[0]


_all: weakref.WeakSet[Meters] = weakref.WeakSet()


def _after_fork() -> None:
    for meters in list(_all):
        meters._begin()  # noqa: SLF001 - our own


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

__all__ = ["Distribution", "Meters", "Observe", "Reading"]
