"""What each event means, in words: one neutral description, which logs, Sentry and the like are made from.

::

    BreakerChanged("openai", "closed", "open", 15.0)
        ──▶  Record(name="breaker.changed", severity="warning", source="openai", message="circuit closed -> open",
                    fields={"old": "closed", "new": "open", "retry_after": 15.0})

A record holds nothing that a call was made with: its fields are numbers and short words, of bounded number and length.
What is free text, and may hold anything (a worker's last lines on its standard error), is in `attachments`, which a
sink leaves out unless its user has asked for it.

Guards never import this module, and it imports none of them: those of this package are known by the place of their
class, others come by `register`. A module with events can name another one in ``__records__``, which is imported when
the first of them is to be described, and registers them.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from guardrails.core.events import Event
from guardrails.core.names import public

Severity = Literal["debug", "info", "warning", "error"]
Scalar = bool | int | float | str

#: From what is of interest to nobody but a person who searches, to what wants one.
SEVERITIES: tuple[Severity, ...] = ("debug", "info", "warning", "error")

_MAX_FIELDS = 32
_MAX_SOURCE = 80
_MAX_MESSAGE = 500
_MAX_ATTACHMENT = 16_384
#: A word, and not a text: a state, a reason, a model's name. Spaces would make it a sentence.
_WORD = re.compile(r"[\w.:/+-]{1,64}", re.ASCII)
_log = logging.getLogger("guardrails.telemetry")


@dataclass(frozen=True, slots=True)
class Record:
    """An event in words.

    Attributes:
        name: what kind of thing happened, such as ``breaker.changed`` or ``runner.worker_exited``: stable, for labels
            and for searching.
        severity: ``debug`` (one call), ``info``, ``warning``, or ``error`` (wants a person).
        message: a sentence, without the source.
        fields: its numbers and words, by name.
        source: the guard, runner or process that it comes from; for a guard made for a key, the `keyed` that made it.
        hint: what to do about it; empty if there is nothing to do.
        attachments: free text, by name. It may hold anything that a child has written: leave it out unless asked.
    """

    name: str
    severity: Severity
    message: str
    fields: Mapping[str, Scalar]
    source: str
    hint: str = ""
    attachments: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


def record(
    event: Event,
    name: str,
    severity: Severity,
    message: str,
    *,
    fields: Mapping[str, object] | None = None,
    hint: str = "",
    attachments: Mapping[str, str] | None = None,
) -> Record:
    """A record of `event`, cut to its bounds.

    Args:
        event: what happened.
        name: see `Record`, as for the others.
        severity: how much it matters.
        message: a sentence.
        fields: by default those of the event. Of both, only what is a number or a word is kept.
        hint: what to do.
        attachments: free text.
    """
    given = _fields_of(event) if fields is None else fields
    return Record(
        name=name,
        severity=severity,
        message=message[:_MAX_MESSAGE],
        fields=dict([pair for pair in given.items() if is_scalar(pair[1])][:_MAX_FIELDS]),  # type: ignore[arg-type]
        source=public(event.source)[:_MAX_SOURCE],
        hint=hint[:_MAX_MESSAGE],
        # The end of a text: the last lines of a standard error say what it died of.
        attachments={key: text[-_MAX_ATTACHMENT:] for key, text in (attachments or {}).items() if text},
    )


def is_scalar(value: object) -> bool:
    """Whether `value` may stand in a record: a number, or a word of at most 64 characters."""
    return isinstance(value, bool | int | float) or (isinstance(value, str) and _WORD.fullmatch(value) is not None)


def describe(event: Event) -> Record:
    """`event` in words. Never raises: an event that nobody registered is described by its fields."""
    kind = type(event)
    known = _find(kind)
    if known is not None:
        try:
            return known.describe(event)
        except Exception:  # somebody's function; the event is told all the same, and so is the mistake
            _log.exception("cannot describe %s; it is described by its fields", kind.__name__)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__).lower()
    return record(event, f"event.{words}", "info", words.replace("_", " "))


def most_severe(kind: type[Event]) -> Severity:
    """The highest severity that an event of this class can have. A sink that wants more need not describe it."""
    known = _find(kind)
    return "info" if known is None else known.most


def register(
    kind: type[Event], function: Callable[[Any], Record], *, most: Severity = "error", replace: bool = False
) -> None:
    """Have events of the class `kind`, and of its subclasses without a description of their own, described by
    `function`, in every sink.

    Args:
        kind: the class.
        function: makes the `Record` of an event; see `record`.
        most: the highest severity that it gives.
        replace: take the place of a description that is there already.

    Raises:
        TypeError: `kind` is not a class of events, or `function` is not a function.
        ValueError: `most` is no severity, or `kind` has a description already.
    """
    if not isinstance(kind, type) or not issubclass(kind, Event):
        raise TypeError(f"kind takes a class of events, not {kind!r}")
    if not callable(function):
        raise TypeError(f"function takes a function of one event, not {type(function).__name__}")
    if most not in SEVERITIES:
        raise ValueError(f"most takes one of {', '.join(map(repr, SEVERITIES))}, not {most!r}")
    place = _place(kind)
    if place in _known and not replace:
        raise ValueError(f"{kind.__name__} has a description already; pass replace=True to give it another")
    _known[place] = _Description(function, most)
    _found.clear()


@dataclass(frozen=True, slots=True)
class _Description:
    describe: Callable[[Any], Record]
    most: Severity


def _place(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _find(kind: type[Event]) -> _Description | None:
    found = _found.get(kind)
    if found is None:
        _load_home(kind)
        for base in kind.__mro__:
            found = _known.get(_place(base))
            if found is not None:
                _found[kind] = found
                break
    return found


def _load_home(kind: type) -> None:
    # A package with events of its own need not load what describes them before anybody wants to know: the module that
    # has the events names the one that registers their descriptions.
    home = getattr(sys.modules.get(kind.__module__), "__records__", None)
    if home is not None and home not in sys.modules:
        import_module(home)


def _fields_of(event: Event) -> dict[str, object]:
    if not dataclasses.is_dataclass(event):
        return {}
    names = (each.name for each in dataclasses.fields(event))
    return {name: getattr(event, name, None) for name in names if name != "source"}


#: By the place of the class, `module:Class`, so that none has to be imported to be known.
_known: dict[str, _Description] = {}
#: What was found for a class; one is looked up once.
_found: dict[type[Event], _Description] = {}


# ------------------------------------------------------------------------------------------ events of this package


def _is(
    place: str,
    name: str,
    message: Callable[[Any], str],
    severity: Severity | Callable[[Any], Severity] = "debug",
    *,
    most: Severity | None = None,
) -> None:
    def function(event: Any) -> Record:
        return record(event, name, severity(event) if callable(severity) else severity, message(event))

    _known[f"guardrails.{place}"] = _Description(function, most or ("error" if callable(severity) else severity))


def _circuit(event: Any) -> Severity:
    return "warning" if event.new in ("open", "forced-open") else "info"


def _pressure(event: Any) -> Severity:
    return {"critical": "error", "high": "warning"}.get(event.level, "info")  # type: ignore[return-value]


def _alert(event: Any) -> Record:
    fields = {"alert": event.alert, **event.values}
    severity: Severity = "error" if event.severity == "critical" else "warning"
    return record(event, "alert.raised", severity, event.message, fields=fields, hint=event.action)


def _sampled(event: Any) -> Record:
    processes = event.sample.processes
    private = sum(process.private for process in processes)
    message = f"{len(processes)} processes hold {private / 2**20:,.0f} MiB"
    return record(event, "memory.sampled", "debug", message, fields={"processes": len(processes), "private": private})


def _after(seconds: float | None) -> str:
    return "" if seconds is None else f", retry after {seconds:.3g} s"


_calls = "core.events"
_is(f"{_calls}:CallStarted", "call.started", lambda e: f"call {e.call} begins")
_is(f"{_calls}:CallFinished", "call.finished", lambda e: f"call {e.call} over in {e.seconds:.3g} s: {e.outcome}")
_is(f"{_calls}:CallAdmitted", "call.admitted", lambda e: f"a call was let in after {e.waited:.3g} s")
_is(f"{_calls}:CallRejected", "call.rejected", lambda e: f"a call was refused: {e.reason}{_after(e.retry_after)}")
_is(f"{_calls}:CallSettled", "call.settled", lambda e: f"a call ended: {e.outcome}")
_is(f"{_calls}:CallTimedOut", "call.timed_out", lambda e: f"a call passed its {e.limit} limit of {e.seconds:g} s")
_is(
    f"{_calls}:BreakerChanged",
    "breaker.changed",
    lambda e: f"circuit {e.old} -> {e.new}{_after(e.retry_after)}",
    _circuit,
    most="warning",
)
_is(
    f"{_calls}:MemoryPressure",
    "memory.pressure",
    lambda e: f"memory is {e.level}: {e.used / 2**20:,.0f} of {e.limit / 2**20:,.0f} MiB",
    _pressure,
)

_is("gates.connection:ConnectionOpened", "connection.opened", lambda _: "a connection was let in")
_is(
    "gates.connection:ConnectionEnded",
    "connection.ended",
    lambda e: f"a connection ended after {e.seconds:.3g} s: {e.reason}",
)
_is("gates.limiter.signals:Drained", "limiter.drained", lambda e: f"no calls for {e.retry_after:.3g} s", "warning")
_is(
    "gates.limiter.signals:RateChanged",
    "limiter.rate_changed",
    lambda e: f"rate {e.old:.0%} -> {e.new:.0%} of the configured one",
    "info",
)

_is(
    "strategies.retry.strategy:RetryScheduled",
    "retry.scheduled",
    lambda e: f"attempt {e.attempt} in {e.delay:.3g} s, after {e.outcome}",
)
_is(
    "strategies.retry.strategy:RetryGaveUp",
    "retry.gave_up",
    lambda e: f"no further attempt after {e.attempts}: {e.reason}",
)
_is("strategies.hedge:HedgeStarted", "hedge.started", lambda e: f"attempt {e.attempt} beside the rest")
_is("strategies.hedge:HedgeWon", "hedge.won", lambda e: f"attempt {e.attempt} answered first")
_is("strategies.fallback:FallbackUsed", "fallback.used", lambda e: f"the fallback answered: {e.reason}")
_is("strategies.inject.strategy:FaultInjected", "inject.fault", lambda e: f"a call was hit: {e.kind}")
_is(
    "strategies.inject.switch:InjectionSwitched",
    "inject.switched",
    lambda e: f"injection is {'on' if e.on else 'off'}: {e.reason}",
    lambda e: "warning" if e.on else "info",
    most="warning",
)

_breaker = "gates.breaker.events"
_is(
    f"{_breaker}:BreakerStorageFailed",
    "breaker.storage_failed",
    lambda e: f"the state storage cannot be reached ({e.error}): the breaker decides alone",
    "warning",
)
_is(f"{_breaker}:BreakerStorageRecovered", "breaker.storage_recovered", lambda _: "the state storage answers", "info")

_cache = "strategies.cache.signals"
_is(f"{_cache}:CacheHit", "cache.hit", lambda _: "answered from the cache")
_is(f"{_cache}:CacheMiss", "cache.miss", lambda _: "not in the cache")
_is(f"{_cache}:CacheJoined", "cache.joined", lambda _: "joined the same call in flight")
_is(f"{_cache}:CacheServedStale", "cache.served_stale", lambda e: f"answered with {e.age:.3g} s of age: {e.reason}")
_is(f"{_cache}:CacheServedError", "cache.served_error", lambda e: f"answered with a remembered error: {e.error}")
_is(f"{_cache}:CacheRefreshed", "cache.refreshed", lambda e: f"a stale answer was replaced in {e.seconds:.3g} s")
_is(
    f"{_cache}:CacheRefreshFailed",
    "cache.refresh_failed",
    lambda e: f"a stale answer was not replaced: {e.error}",
    "warning",
)
_is(f"{_cache}:CacheEvicted", "cache.evicted", lambda e: f"{e.entries} entries made room")
_is(f"{_cache}:CacheTooLarge", "cache.too_large", lambda e: f"a result of {e.size:,} bytes is not kept")
_is(
    f"{_cache}:CacheStoreFailed",
    "cache.store_failed",
    lambda e: f"the store fails at {e.operation}: {e.error}",
    "warning",
)
_is(f"{_cache}:CacheStoreRecovered", "cache.store_recovered", lambda e: f"the store does {e.operation} again", "info")

_known["guardrails.memory.signals:MemorySampled"] = _Description(_sampled, "debug")
_known["guardrails.memory.signals:AlertRaised"] = _Description(_alert, "error")
_is(
    "memory.signals:AlertCleared",
    "alert.cleared",
    lambda e: f"{e.alert} is over after {e.seconds:.0f} s",
    "info",
)
