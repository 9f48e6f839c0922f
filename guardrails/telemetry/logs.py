"""Events in a log: that of the standard library, or structlog's.

    from guardrails.telemetry.logs import log_events

    with log_events():          # or: log = log_events(); ...; log.stop()
        ...

::

    WARNING guardrails: event=breaker.changed source=openai message="circuit closed -> open" old=closed new=open

What a record holds is said in `guardrails.telemetry.records`: numbers and short words, and nothing that a call was made
with.

Threads: a record is written on the thread that the event comes on, or, with ``background=True``, on one of the log's
own. The lock guards the counting of what is left out; nothing is written, and no sink or handler called, under it.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, Self

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.events import Event, subscribe
from guardrails.telemetry.background import Worker
from guardrails.telemetry.records import SEVERITIES, Record, Severity, describe, most_severe
from guardrails.telemetry.thinning import LeftOut, Thinner

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_RANK = {severity: rank for rank, severity in enumerate(SEVERITIES)}
_BARE = re.compile(r"[^\s\"=\\]+")
_QUOTED = frozenset('"\\')
#: Keys that mean something to structlog or its processors.
_TAKEN = frozenset({"event", "source", "message", "hint", "level", "logger", "timestamp", "exc_info", "stack_info"})
#: Loggers with lines of their own on what is an event too: such a line has the event's name as its `event`.
_PLAIN = ("runners", "guardrails.memory")
_PATTERN = re.compile(r"[\w.]+\*?|\*")


class StructuredLogger(Protocol):
    """What structlog's loggers have."""

    def debug(self, event: str | None = None, **values: Any) -> Any: ...
    def info(self, event: str | None = None, **values: Any) -> Any: ...
    def warning(self, event: str | None = None, **values: Any) -> Any: ...
    def error(self, event: str | None = None, **values: Any) -> Any: ...


StandardLogger = logging.Logger | logging.LoggerAdapter[Any]


def log_events(
    logger: StandardLogger | StructuredLogger | None = None,
    *,
    level: Severity = "info",
    also: Sequence[str] = (),
    but: Sequence[str] = (),
    limit: int = 10,
    per: float = 60,
    attachments: bool = False,
    background: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> EventLog:
    """Log events from now on, until `stop`.

    Args:
        logger: a logger or an adapter of the standard library, or ``structlog.get_logger()``. By default the standard
            library's ``guardrails``.
        level: the least severity that is logged: ``debug`` (each call), ``info``, ``warning`` or ``error``.
        also: names of records to log below that level too, such as ``call.timed_out``, or ``retry.*`` for all that
            begin so.
        but: names to leave out, whatever their level.
        limit: records of one name and source that are logged in `per` seconds. The others are counted, and told in one
            line when that time is over and any event comes.
        per: seconds.
        attachments: log free text too: the last lines that a worker wrote on its standard error, which can hold what it
            worked on.
        background: write on a thread of its own, so that a slow handler delays no call. 1,000 events may wait for it;
            what comes beyond that is counted, and told.
        clock: a fake one, in tests.

    Raises:
        TypeError, ValueError: an argument is not what it should be; the message names it.
    """
    if level not in _RANK:
        raise ValueError(f"level takes one of {', '.join(map(repr, SEVERITIES))}, not {level!r}")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ValueError(f"limit takes a whole number of at least 1, not {limit!r}")
    if isinstance(per, bool) or not isinstance(per, int | float) or not 0 < per < float("inf"):
        raise ValueError(f"per takes a number of seconds above 0, not {per!r}")
    write = _writer(logging.getLogger("guardrails") if logger is None else logger, attachments=attachments)
    chosen = _Chosen(level, _names("also", also), _names("but", but))
    return EventLog(write, chosen, Thinner(limit=limit, per=per), background=background, clock=clock)


class EventLog:
    """Events on their way into a log. Made by `log_events`; as a context manager it stops at the end of its block."""

    def __init__(
        self,
        write: Writer,
        chosen: _Chosen,
        thinner: Thinner[tuple[str, str], Record],
        *,
        background: bool,
        clock: Clock,
    ) -> None:
        self._write = write
        self._chosen = chosen
        self._thinner = thinner
        self._clock = clock
        self._lock = threading.Lock()
        self._due = math.inf  # when the oldest window closes; read without the lock
        self._writing = threading.local()
        self._worker = Worker(self._tell, self._lost, name="guardrails-log") if background else None
        self._unsubscribe = subscribe(self._sink)
        for name in _PLAIN:
            logging.getLogger(name).addFilter(self._is_news)

    def stop(self) -> None:
        """Log no more; what waits, and what was left out, is still told. Again, it does nothing."""
        self._unsubscribe()
        for name in _PLAIN:
            logging.getLogger(name).removeFilter(self._is_news)
        if self._worker is not None:
            self._worker.stop()
        now = self._clock.now()
        with self._lock:
            left_out = self._thinner.close(now)
        self._summarise(left_out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        """`stop`."""
        self.stop()

    def _sink(self, event: Event) -> None:
        chosen = self._chosen.may_be(type(event))
        if not chosen and (self._due == math.inf or self._clock.now() < self._due):
            return  # nearly always: several events a call come here
        # A handler that is guarded itself, or sends over a guarded connection, tells events of its own: they would be
        # logged by it, and so on.
        if getattr(self._writing, "now", False):
            return
        self._due = math.inf  # seen to; `_tell` says when the next one is
        if self._worker is None:
            self._tell(event if chosen else None)
        else:
            self._worker.put(event if chosen else None)

    def _is_news(self, line: logging.LogRecord) -> bool:
        """Whether a plain line is to be logged: not where the event that it is about is logged here."""
        name = getattr(line, "event", None)
        return name is None or getattr(self._writing, "now", False) or not self._chosen.covers(name, line.levelno)

    def _tell(self, event: Event | None) -> None:
        record = None if event is None else describe(event)
        if event is not None and record is not None and not self._chosen.is_in(type(event), record):
            record = None
        now = self._clock.now()
        with self._lock:
            if record is None:
                through, left_out = False, self._thinner.over(now)
            else:
                bare = replace(record, attachments={})  # what is kept for later is small
                through, left_out = self._thinner.take((record.name, record.source), bare, now)
            self._due = math.inf if self._thinner.due is None else self._thinner.due
        self._summarise(left_out)
        if record is not None and through:
            self._say(record)

    def _summarise(self, left_out: list[LeftOut[tuple[str, str], Record]]) -> None:
        for each in left_out:
            last = each.last
            message = f"and {each.count:,} more like it within {each.seconds:.0f} s; the last: {last.message}"
            fields = {"left_out": each.count}
            self._say(Record(last.name, last.severity, message, fields, last.source))

    def _lost(self, count: int) -> None:
        message = f"{count:,} events were not logged: they come faster than the log takes them"
        self._say(Record("log.overflow", "warning", message, {"lost": count}, "log"))

    def _say(self, record: Record) -> None:
        self._writing.now = True
        try:
            self._write(record)
        finally:
            self._writing.now = False


class _Chosen:
    """Which records are logged. The severity that a class of events can have answers most often, without a record."""

    def __init__(self, level: Severity, also: tuple[str, ...], but: tuple[str, ...]) -> None:
        self._least = _RANK[level]
        self._also = also
        self._but = but
        self._may: dict[type[Event], bool] = {}

    def may_be(self, kind: type[Event]) -> bool:
        """Whether an event of this class may be one of them."""
        known = self._may.get(kind)
        if known is None:
            known = self._may[kind] = bool(self._also) or _RANK[most_severe(kind)] >= self._least
        return known

    def is_in(self, kind: type[Event], record: Record) -> bool:
        """Whether `record`, of an event of the class `kind`, is one of them."""
        named = any(_matches(record.name, pattern) for pattern in self._also)
        if any(_matches(record.name, pattern) for pattern in self._but) or not (
            named or _RANK[most_severe(kind)] >= self._least
        ):
            self._may[kind] = False  # nor is any other one: all events of a class have one name
            return False
        return named or _RANK[record.severity] >= self._least

    def covers(self, name: str, level: int) -> bool:
        """Whether records of this name are logged, at a level of the standard library's."""
        if any(_matches(name, pattern) for pattern in self._but):
            return False
        return level >= _LEVELS[SEVERITIES[self._least]] or any(_matches(name, pattern) for pattern in self._also)


def _matches(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _names(argument: str, given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"{argument} takes a sequence of names, such as ('retry.*',), not {given!r}")
    for name in given:
        if not isinstance(name, str) or not _PATTERN.fullmatch(name):
            raise ValueError(f"{argument} takes names of records, such as 'call.timed_out' or 'retry.*', not {name!r}")
    return tuple(given)


# How a record is written


class Writer(Protocol):
    """Puts a record into a log."""

    def __call__(self, record: Record, /) -> None: ...


def _writer(logger: StandardLogger | StructuredLogger, *, attachments: bool) -> Writer:
    if isinstance(logger, logging.Logger | logging.LoggerAdapter):
        standard = logger

        def write(record: Record) -> None:
            level = _LEVELS[record.severity]
            if standard.isEnabledFor(level):
                said = _parts(record, attachments=attachments)
                extra = {"event": record.name, "source": record.source, "fields": dict(record.fields)}
                standard.log(level, "%s", logfmt({"event": record.name, **said}), extra=extra)

        return write
    methods = [getattr(logger, severity, None) for severity in SEVERITIES]
    if isinstance(logger, type) or not all(map(callable, methods)):
        raise TypeError(f"logger takes a logger of the standard library or of structlog, not {logger!r}")
    structured = dict(zip(SEVERITIES, methods, strict=True))

    def write_structured(record: Record) -> None:
        structured[record.severity](record.name, **_parts(record, attachments=attachments))

    return write_structured


def _parts(record: Record, *, attachments: bool) -> dict[str, Any]:
    parts: dict[str, Any] = {"source": record.source, "message": record.message}
    free = record.attachments if attachments else {}
    for key, value in (*record.fields.items(), *free.items()):
        parts[f"{key}_" if key in _TAKEN else key] = value
    if record.hint:
        parts["hint"] = record.hint
    return parts


def logfmt(parts: Mapping[str, Any]) -> str:
    """``key=value`` pairs in one line: a value with a space in it stands in quotes, and no line break is left."""
    return " ".join(f"{key}={_value(value)}" for key, value in parts.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if _BARE.fullmatch(text) and text.isprintable():
        return text
    return f'"{"".join(char if char.isprintable() and char not in _QUOTED else _escaped(char) for char in text)}"'


def _escaped(char: str) -> str:
    return json.dumps(char)[1:-1]


__all__ = ["EventLog", "log_events"]
