"""Hears the event stream and the logs, and judges what it heard: the signs that come from calls and from crashes.

::

    any thread    event ─▶ by its type: nothing, or one tuple ─▶ queue (the last 2048)
                                                                  │ once a second
    the monitor's ──────────────────────────────────────────────▶ traffic of each source ─▶ a tenth of them judged

What a guard's thread pays is a look in a dictionary for an event that is of no interest, and under a microsecond for
one that is. Nothing there takes a lock or waits. Of more than 2048 ended calls a second the last ones stand for all.

Events of runners are known by their fields, as this package does not know that one. A timeout is counted for the
pipeline in which it happened.

At most 256 sources are followed, those that were heard last: of very many, none is heard often enough to be judged.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from guardrails.core.events import CallFinished, CallTimedOut, Event
from guardrails.core.observed import pipeline_here
from guardrails.memory.monitor.finding import Finding
from guardrails.memory.monitor.signs.crash import Crashes, cause_of_exit, memory_crash
from guardrails.memory.monitor.signs.exhaustion import exhausted_type
from guardrails.memory.monitor.signs.slow import slow_at_low_load
from guardrails.memory.monitor.signs.timeouts import ai_timeouts
from guardrails.memory.monitor.signs.traffic import Traffic

SOURCES = 256
#: Ended calls that one look judges, and crashes.
HEARD, CRASHES = 2048, 256
#: Looks in which every source is judged once.
_TURNS = 10
#: Types of events that are known.
_TYPES = 256
#: Outcomes of calls that say nothing of what was called: it was not reached, or not waited for.
_NOT_CALLED = frozenset({"rejected", "ignored", "cancelled"})
#: Errors of runners that mean the same.
_REFUSALS = frozenset({"QueueFull", "RunnerUnavailable", "FleetFull", "MemoryRefused", "RunnerClosed"})
_LONGEST = 120

_Handler = Callable[[Any], None]


class _Source:
    __slots__ = ("crashes", "traffic", "turn")

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.traffic = Traffic()
        self.crashes = Crashes()


class Listener:
    """`hear` is a sink of events, `crashed` takes what logs say, and `judge` is called by the monitor."""

    def __init__(self) -> None:
        self._handlers: dict[type[Event], _Handler | None] = {
            CallFinished: self._finished,
            CallTimedOut: self._timed_out,
        }
        self._heard: deque[tuple[str, float | None]] = deque(maxlen=HEARD)
        self._count = 0
        self._crashes: deque[tuple[str, str]] = deque(maxlen=CRASHES)
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self._findings: dict[str, tuple[Finding, ...]] = {}
        self._turn = self._places = 0

    # On the threads of others

    def hear(self, event: Event) -> None:
        """An event. Cheap, and never waits."""
        try:
            handler = self._handlers[type(event)]
        except KeyError:
            handler = self._learn(type(event))
        if handler is not None:
            handler(event)

    def crashed(self, source: str, cause: str) -> None:
        """Something said that memory ran out. Cheap, and never waits."""
        self._crashes.append((source, cause))

    def _learn(self, kind: type[Event]) -> _Handler | None:
        names = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
        handler: _Handler | None = None
        if names >= {"outcome", "seconds", "error"}:
            handler = self._request
        elif names >= {"pid", "reason", "stderr"}:
            handler = self._exit
        if len(self._handlers) < _TYPES:
            self._handlers[kind] = handler
        return handler

    def _finished(self, event: CallFinished) -> None:
        if event.outcome in _NOT_CALLED:
            return
        self._heard.append((event.source, event.seconds))
        self._count += 1
        if event.outcome == "failure":  # which is told while its exception is handled
            cause = exhausted_type(sys.exc_info()[0])
            if cause is not None:
                self._crashes.append((event.source, cause))

    def _timed_out(self, event: CallTimedOut) -> None:
        self._heard.append((pipeline_here() or event.source, None))
        self._count += 1

    def _request(self, event: Any) -> None:
        if event.outcome in _NOT_CALLED or (event.error is not None and event.error in _REFUSALS):
            return
        self._heard.append((event.source, event.seconds))
        self._count += 1
        if event.outcome == "expired":
            self._heard.append((event.source, None))
            self._count += 1
        elif event.error is not None and ("MemoryError" in event.error or "OutOfMemory" in event.error):
            self._crashes.append((event.source, "python"))

    def _exit(self, event: Any) -> None:
        cause = cause_of_exit(event.reason, event.stderr)
        if cause is not None:
            self._crashes.append((event.source, cause))

    # On the monitor's thread

    def judge(self, now: float) -> list[Finding]:
        """All that is found at `now`, in seconds on a steady clock. A source is judged anew at every tenth look."""
        self._take(now)
        for name, source in self._sources.items():
            if source.turn == self._turn:
                self._judge(now, name, source)
        self._turn = (self._turn + 1) % _TURNS
        return [finding for findings in self._findings.values() for finding in findings]

    def _take(self, now: float) -> None:
        count, self._count = self._count, 0
        heard = [self._heard.popleft() for _ in range(len(self._heard))]
        weight = max(1.0, count / len(heard)) if heard else 1.0
        calls: dict[str, list[float | None]] = {}
        for name, seconds in heard:
            calls.setdefault(name, []).append(seconds)
        for name, each in calls.items():
            self._source(name).traffic.heard(now, each, weight)
        for _ in range(len(self._crashes)):
            name, cause = self._crashes.popleft()
            source = self._source(name)
            source.crashes.add(now, cause)
            self._judge(now, name[:_LONGEST], source)

    def _source(self, name: str) -> _Source:
        name = name[:_LONGEST]
        source = self._sources.get(name)
        if source is None:
            if len(self._sources) >= SOURCES:
                old, _ = self._sources.popitem(last=False)
                self._findings.pop(old, None)
            self._places += 1
            source = self._sources[name] = _Source(self._places % _TURNS)
        else:
            self._sources.move_to_end(name)
        return source

    def _judge(self, now: float, name: str, source: _Source) -> None:
        traffic = source.traffic
        recent, usual = traffic.recent(now), traffic.usual()
        late = ai_timeouts(name, recent, active=traffic.timing_out)
        slow = slow_at_low_load(name, recent, usual, active=traffic.slow)
        crash = memory_crash(name, source.crashes.recent(now))
        traffic.timing_out = late is not None
        traffic.looks_slow(now, slow is not None)
        if not traffic.slow:
            slow = None
        found = tuple(finding for finding in (late, slow, crash) if finding is not None)
        if found:
            self._findings[name] = found
        else:
            self._findings.pop(name, None)

    def after_fork(self) -> None:
        """In a forked child: its parent heard that."""
        self._heard.clear()
        self._crashes.clear()
        self._sources.clear()
        self._findings.clear()
