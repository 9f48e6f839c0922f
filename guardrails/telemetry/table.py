"""The metrics of guards and of the memory monitor. Importing this module registers them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from guardrails.telemetry.instruments import (
    LIFE_SECONDS,
    Instrument,
    Point,
    counter,
    gauge,
    histogram,
    one_of,
    register,
    sampled,
    updown,
)

if TYPE_CHECKING:
    from guardrails.memory.monitor.sample import Sample
    from guardrails.memory.reading import Scope
    from guardrails.memory.signals import MemorySampled

_CALLS = "guardrails.core.events"
_LIMITER = "guardrails.gates.limiter.signals"
_CONNECTION = "guardrails.gates.connection"
_BREAKER = "guardrails.gates.breaker.events"
_CACHE = "guardrails.strategies.cache.signals"
_RETRY = "guardrails.strategies.retry.strategy"
_HEDGE = "guardrails.strategies.hedge"
_INJECT = "guardrails.strategies.inject"
_MEMORY = "guardrails.memory.signals"
_SAMPLED = f"{_MEMORY}:MemorySampled"

BREAKER_STATES = ("closed", "open", "half-open", "forced-open", "disabled", "metrics-only")
MEMORY_LEVELS = ("normal", "high", "critical")


def scope_names(scopes: Iterable[Scope]) -> list[tuple[str, Scope]]:
    """Each limit with a name for labels: ``host``, ``processes``, and for cgroups ``cgroup`` (the innermost with a
    limit), ``cgroup_1`` (the next one up), ... Their paths hold the names of containers, which change all the time.
    """
    named, groups = [], 0
    for scope in scopes:
        name = scope.name
        if "/" in name:
            name = f"cgroup_{groups}" if groups else "cgroup"
            groups += 1
        named.append((name, scope))
    return named


def _processes(attribute: str) -> Any:
    def read(event: MemorySampled) -> list[Point]:
        found = [(each, getattr(each, attribute)) for each in event.sample.processes]
        return [((each.name, each.role), value) for each, value in found if value is not None]

    return read


def _headroom(event: MemorySampled) -> list[Point]:
    scopes = event.sample.scopes
    return [((event.source,), max(0, min(scope.limit - scope.used for scope in scopes)))] if scopes else []


def _collections(event: MemorySampled) -> list[Point]:
    sample: Sample = event.sample
    return [((f"{generation}",), count) for generation, count in enumerate(sample.gc)]


TABLE: tuple[Instrument, ...] = (
    # Calls, through whatever guards they have
    histogram(
        "guardrails.call.duration",
        "s",
        "Time that guarded calls took, waiting and retries included.",
        "guard outcome",
        [(f"{_CALLS}:CallFinished", lambda e: ((e.source, e.outcome), e.seconds))],
    ),
    histogram(
        "guardrails.call.time_to_first_item",
        "s",
        "Time until the first item of guarded streams.",
        "guard",
        [(f"{_CALLS}:CallFinished", lambda e: None if e.first is None else ((e.source,), e.first))],
    ),
    updown(
        "guardrails.calls.active",
        "{call}",
        "Guarded calls that are under way.",
        "guard",
        {
            f"{_CALLS}:CallStarted": lambda e: ((e.source,), 1),
            f"{_CALLS}:CallFinished": lambda e: ((e.source,), -1),
        },
    ),
    # Gates
    histogram(
        "guardrails.gate.wait",
        "s",
        "Time that calls waited at a gate before it let them in.",
        "guard",
        [(f"{_CALLS}:CallAdmitted", lambda e: ((e.source,), e.waited))],
    ),
    counter(
        "guardrails.gate.rejections",
        "{call}",
        "Calls that a gate refused.",
        "guard reason",
        {f"{_CALLS}:CallRejected": lambda e: ((e.source, e.reason), 1)},
    ),
    counter(
        "guardrails.gate.settled",
        "{call}",
        "Attempts that a gate had let in, by what became of them.",
        "guard outcome",
        {f"{_CALLS}:CallSettled": lambda e: ((e.source, e.outcome), 1)},
    ),
    counter(
        "guardrails.timeouts",
        "{call}",
        "Calls that were cut off by a time limit.",
        "guard limit",
        {f"{_CALLS}:CallTimedOut": lambda e: ((e.source, e.limit), 1)},
    ),
    # Breakers
    gauge(
        "guardrails.breaker.state",
        "",
        "1 for the state that a circuit is in, 0 for the others; nothing before its first change from closed.",
        "guard state",
        {f"{_CALLS}:BreakerChanged": lambda e: one_of(e.source, BREAKER_STATES, e.new)},
    ),
    counter(
        "guardrails.breaker.changes",
        "{change}",
        "Changes of a circuit's state, by the new one.",
        "guard state",
        {f"{_CALLS}:BreakerChanged": lambda e: ((e.source, e.new), 1)},
    ),
    gauge(
        "guardrails.breaker.storage.up",
        "",
        "0 while a breaker's state storage cannot be reached, 1 when it answers again.",
        "guard",
        {
            f"{_BREAKER}:BreakerStorageFailed": lambda e: [((e.source,), 0)],
            f"{_BREAKER}:BreakerStorageRecovered": lambda e: [((e.source,), 1)],
        },
    ),
    # Limits
    counter(
        "guardrails.limiter.drains",
        "{drain}",
        "Times that a limiter's bucket was emptied, since the dependency asked for it or by hand.",
        "guard",
        {f"{_LIMITER}:Drained": lambda e: ((e.source,), 1)},
    ),
    counter(
        "guardrails.limiter.drained",
        "s",
        "Time for which limiters' buckets were emptied, added up.",
        "guard",
        {f"{_LIMITER}:Drained": lambda e: ((e.source,), e.retry_after)},
    ),
    gauge(
        "guardrails.limiter.rate",
        "1",
        "Share of its configured rate that an adaptive limiter allows.",
        "guard",
        {f"{_LIMITER}:RateChanged": lambda e: [((e.source,), e.new)]},
    ),
    updown(
        "guardrails.connections.active",
        "{connection}",
        "Open connections.",
        "guard",
        {
            f"{_CONNECTION}:ConnectionOpened": lambda e: ((e.source,), 1),
            f"{_CONNECTION}:ConnectionEnded": lambda e: ((e.source,), -1),
        },
    ),
    histogram(
        "guardrails.connection.duration",
        "s",
        "Time that connections were open, by why they ended.",
        "guard reason",
        [(f"{_CONNECTION}:ConnectionEnded", lambda e: ((e.source, e.reason), e.seconds))],
        buckets=LIFE_SECONDS,
    ),
    # Strategies
    counter(
        "guardrails.retries",
        "{attempt}",
        "Attempts after the first, by the outcome of the one before.",
        "guard outcome",
        {f"{_RETRY}:RetryScheduled": lambda e: ((e.source, e.outcome), 1)},
    ),
    counter(
        "guardrails.retry.give_ups",
        "{call}",
        "Calls that were not tried again.",
        "guard reason",
        {f"{_RETRY}:RetryGaveUp": lambda e: ((e.source, e.reason), 1)},
    ),
    counter(
        "guardrails.hedges",
        "{attempt}",
        "Attempts that a hedge started beside a slow one.",
        "guard",
        {f"{_HEDGE}:HedgeStarted": lambda e: ((e.source,), 1)},
    ),
    counter(
        "guardrails.hedge.wins",
        "{call}",
        "Calls that a hedge's attempt answered.",
        "guard",
        {f"{_HEDGE}:HedgeWon": lambda e: ((e.source,), 1)},
    ),
    counter(
        "guardrails.fallbacks",
        "{call}",
        "Calls that were answered by their fallback.",
        "guard reason",
        {"guardrails.strategies.fallback:FallbackUsed": lambda e: ((e.source, e.reason), 1)},
    ),
    counter(
        "guardrails.cache.lookups",
        "{call}",
        "Calls to a cache, by where their answer came from: hit, hit_shared, miss, joined, stale, error.",
        "guard result",
        {
            f"{_CACHE}:CacheHit": lambda e: ((e.source, "hit_shared" if e.shared else "hit"), 1),
            f"{_CACHE}:CacheMiss": lambda e: ((e.source, "miss"), 1),
            f"{_CACHE}:CacheJoined": lambda e: ((e.source, "joined"), 1),
            f"{_CACHE}:CacheServedStale": lambda e: ((e.source, "stale"), 1),
            f"{_CACHE}:CacheServedError": lambda e: ((e.source, "error"), 1),
        },
    ),
    counter(
        "guardrails.cache.refreshes",
        "{call}",
        "Stale entries of a cache that were to be replaced, by what came of it: success, failure.",
        "guard result",
        {
            f"{_CACHE}:CacheRefreshed": lambda e: ((e.source, "success"), 1),
            f"{_CACHE}:CacheRefreshFailed": lambda e: ((e.source, "failure"), 1),
        },
    ),
    counter(
        "guardrails.cache.evictions",
        "{entry}",
        "Entries of a cache that had to make room.",
        "guard",
        {f"{_CACHE}:CacheEvicted": lambda e: ((e.source,), e.entries)},
    ),
    counter(
        "guardrails.cache.too_large",
        "{entry}",
        "Results that were too large for a cache.",
        "guard",
        {f"{_CACHE}:CacheTooLarge": lambda e: ((e.source,), 1)},
    ),
    gauge(
        "guardrails.cache.store.up",
        "",
        "0 while the store behind a cache fails at an operation, 1 when it does it again.",
        "guard operation",
        {
            f"{_CACHE}:CacheStoreFailed": lambda e: [((e.source, e.operation), 0)],
            f"{_CACHE}:CacheStoreRecovered": lambda e: [((e.source, e.operation), 1)],
        },
    ),
    counter(
        "guardrails.faults",
        "{call}",
        "Calls that were hit on purpose.",
        "guard kind",
        {f"{_INJECT}.strategy:FaultInjected": lambda e: ((e.source, e.kind), 1)},
    ),
    gauge(
        "guardrails.injection.enabled",
        "",
        "1 while faults are injected on purpose.",
        "guard",
        {f"{_INJECT}.switch:InjectionSwitched": lambda e: [((e.source,), float(e.on))]},
    ),
    # Memory
    gauge(
        "guardrails.admit.level",
        "",
        "1 for the memory level that an admission guard is at, 0 for the others.",
        "guard level",
        {f"{_CALLS}:MemoryPressure": lambda e: one_of(e.source, MEMORY_LEVELS, e.level)},
    ),
    sampled(
        "guardrails.memory.private",
        "By",
        "Bytes that only the process holds: anonymous pages and swap.",
        "process role",
        {_SAMPLED: _processes("private")},
    ),
    sampled(
        "guardrails.memory.rss",
        "By",
        "Resident bytes of the process, those shared with others counted in full.",
        "process role",
        {_SAMPLED: _processes("rss")},
    ),
    sampled(
        "guardrails.memory.pss",
        "By",
        "Private bytes and the process's share of what it has in common with others.",
        "process role",
        {_SAMPLED: _processes("pss")},
    ),
    sampled(
        "guardrails.memory.budget",
        "By",
        "Private bytes at which the process is replaced.",
        "process role",
        {_SAMPLED: _processes("budget")},
    ),
    sampled(
        "guardrails.memory.used",
        "By",
        "Bytes that are used of a limit.",
        "scope",
        {_SAMPLED: lambda e: [((name,), scope.used) for name, scope in scope_names(e.sample.scopes)]},
    ),
    sampled(
        "guardrails.memory.limit",
        "By",
        "The limit: of the host, of a cgroup, of the processes.",
        "scope",
        {_SAMPLED: lambda e: [((name,), scope.limit) for name, scope in scope_names(e.sample.scopes)]},
    ),
    sampled(
        "guardrails.memory.headroom",
        "By",
        "Bytes that are left below the nearest limit.",
        "monitor",
        {_SAMPLED: _headroom},
    ),
    sampled(
        "guardrails.memory.gc.collections",
        "{collection}",
        "Runs of Python's garbage collector.",
        "generation",
        {_SAMPLED: _collections},
        kind="counter",
    ),
    counter(
        "guardrails.memory.trims",
        "{trim}",
        "Times that the allocator gave free memory back to the system.",
        "monitor",
        {_SAMPLED: lambda e: ((e.source,), 1) if e.sample.trimmed else None},
    ),
    # Alarms
    counter(
        "guardrails.alerts",
        "{alert}",
        "Alarms that were announced, reminders included.",
        "alert severity",
        {f"{_MEMORY}:AlertRaised": lambda e: ((e.alert, e.severity), 1)},
    ),
    gauge(
        "guardrails.alert.active",
        "",
        "1 while an alarm stands, 0 when it is over.",
        "subject alert",
        {
            f"{_MEMORY}:AlertRaised": lambda e: [((e.source, e.alert), 1)],
            f"{_MEMORY}:AlertCleared": lambda e: [((e.source, e.alert), 0)],
        },
    ),
)

register(*TABLE)

__all__ = ["BREAKER_STATES", "MEMORY_LEVELS", "TABLE", "scope_names"]
