"""The tables of ``runners.toml`` about the machine, traffic and who watches. Sizes in bytes, times in seconds."""

from __future__ import annotations

from typing import Any

import msgspec

from guardrails import timeout
from runners.config.guards import BreakerSection, LimiterSection, RetrySection, Section, TimeoutSection
from runners.config.values import Size, seconds, share, url, whole

_MIB = 1 << 20

# The machine


class MachineSection(Section, frozen=True, kw_only=True):
    """``[machine]``: what there is for all of it.

    Attributes:
        memory: bytes that the application and its runners may hold together; by default what the cgroups allow.
        reserve: of these, for the application itself.
    """

    memory: Size | None = None
    reserve: Size = Size(256 * _MIB)


class FleetSection(Section, frozen=True, kw_only=True):
    """``[fleet]``: runners that share a budget, and are loaded when they are asked; see `Fleet`.

    Attributes:
        runners: which; none named: all.
    """

    budget: Size
    runners: list[str] = msgspec.field(default_factory=list)
    max_wait: float = 60
    patience: float = 2

    def __post_init__(self) -> None:
        """Check."""
        seconds("max_wait", self.max_wait, zero=True)
        seconds("patience", self.patience, zero=True)


# Traffic


class TierSection(Section, frozen=True, kw_only=True):
    """``[tiers.NAME]``: what a user of this tier may use.

    Attributes:
        description: whom it is for, in words. The doctor asks for one.
        requests, tokens: of one user in `per` seconds; at least one of them.
        burst: what may be taken at once; by default what `per` seconds let in.
        connections: of one user at the same time.
        priority: of its calls in a queue; a lower number goes first.
    """

    description: str = ""
    requests: float | None = None
    tokens: float | None = None
    per: float = 60
    burst: float | dict[str, float] | None = None
    connections: int | None = None
    priority: float = 0

    def __post_init__(self) -> None:
        """Check."""
        LimiterSection(requests=self.requests, tokens=self.tokens, per=self.per, burst=self.burst)
        whole("connections", self.connections, 1)

    @property
    def limits(self) -> dict[str, Any]:
        """What `limiter(tiers=...)` takes for it."""
        limits = {"requests": self.requests, "tokens": self.tokens, "burst": self.burst}
        return {name: value for name, value in limits.items() if value is not None}


class EndpointSection(Section, frozen=True, kw_only=True):
    """``[endpoints.NAME]``: something that users call. Either `runner` or `service` answers.

    Attributes:
        runner, service: the name of the table that answers.
        limiter: of all users together; and `tiers`: those that it serves, of each user alone.
        timeout: seconds for all of a call, or a table.
        concurrency: calls that run at the same time; `queue` wait, for `max_wait` seconds at most.
        memory: bytes that one call takes in this process; it waits for them.
    """

    runner: str | None = None
    service: str | None = None
    limiter: LimiterSection | None = None
    tiers: list[str] = msgspec.field(default_factory=list)
    timeout: float | TimeoutSection | None = None
    concurrency: int | None = None
    queue: int | None = None
    max_wait: float = 30
    memory: Size | None = None

    def __post_init__(self) -> None:
        """Check."""
        if (self.runner is None) == (self.service is None):
            msg = "takes runner or service, the name of what answers, and not both"
            raise ValueError(msg)
        _waiting(self)


class ServiceSection(Section, frozen=True, kw_only=True):
    """``[services.NAME]``: an AI API of somebody else's.

    Attributes:
        url: where it is.
        timeout: seconds for all of a call, or a table.
        concurrency: calls that run at the same time; `queue` wait, for `max_wait` seconds at most.
    """

    url: str
    breaker: BreakerSection | None = None
    limiter: LimiterSection | None = None
    timeout: float | TimeoutSection | None = None
    retry: RetrySection | None = None
    concurrency: int | None = None
    queue: int | None = None
    max_wait: float = 30

    def __post_init__(self) -> None:
        """Check."""
        url("url", self.url, ("http", "https"))
        _waiting(self)


def _waiting(section: EndpointSection | ServiceSection) -> None:
    if isinstance(section.timeout, float | int):
        timeout(section.timeout)
    whole("concurrency", section.concurrency, 1)
    whole("queue", section.queue, 0)
    seconds("max_wait", section.max_wait)


# What watches


class RedisSection(Section, frozen=True, kw_only=True):
    """``[redis]``.

    Attributes:
        url: where it is; by default what the variable `url_env` holds, which keeps passwords out of the file.
        prefix: what this toolkit's keys begin with.
        sample: keys that the doctor looks at, at most.
    """

    url: str | None = None
    url_env: str = "REDIS_URL"
    prefix: str = "guardrails:"
    sample: int = 1000

    def __post_init__(self) -> None:
        """Check."""
        if self.url is not None:
            url("url", self.url, ("redis", "rediss", "unix"))
        whole("sample", self.sample, 1)
        if not self.prefix:
            msg = "prefix takes a text that is not empty"
            raise ValueError(msg)


class TelemetrySection(Section, frozen=True, kw_only=True):
    """``[telemetry]``: who is told.

    Attributes:
        sentry_dsn: by default what the variable `sentry_dsn_env` holds.
        prometheus: the address that metrics are served at, as ``"127.0.0.1:9464"``.
        otel: the URL of an OTLP collector.
        logs: whether events are logged.
    """

    sentry_dsn: str | None = None
    sentry_dsn_env: str = "SENTRY_DSN"
    prometheus: str | None = None
    otel: str | None = None
    logs: bool = False

    def __post_init__(self) -> None:
        """Check. A DSN is for the doctor to judge: it is a secret, and no message here repeats it."""
        if self.otel is not None:
            url("otel", self.otel, ("http", "https"))
        if self.prometheus is not None:
            host, _, port = self.prometheus.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
                msg = f"prometheus takes an address such as '127.0.0.1:9464', not {self.prometheus!r}"
                raise ValueError(msg)


class AlertsSection(Section, frozen=True, kw_only=True):
    """``[alerts]``: the signs that somebody is told of. A share, or true or false."""

    memory_high: float = 0.8
    memory_growth: bool = True
    ai_timeouts: bool = True
    memory_crash: bool = True
    slow_at_low_load: bool = True
    redis_memory: float = 0.8

    def __post_init__(self) -> None:
        """Check."""
        for name in ("memory_high", "redis_memory"):
            share(name, getattr(self, name))


class LoadTestSection(Section, frozen=True, kw_only=True):
    """``[load_test]``: the last one, and what it must have shown.

    Attributes:
        report: its file: this project's format (docs/doctor.md), or k6's ``--summary-export``.
        p95: seconds within which 95 of 100 requests must have been answered.
        error_rate: share of requests that may have failed.
        max_age: seconds after which it says nothing any more; 30 days.
        command: what runs it again.
    """

    report: str
    p95: float = 0.5
    error_rate: float = 0.01
    max_age: float = 30 * 86_400
    command: str | None = None

    def __post_init__(self) -> None:
        """Check."""
        seconds("p95", self.p95)
        seconds("max_age", self.max_age)
        if not 0 <= self.error_rate < 1:
            msg = f"error_rate takes a share from 0 to 1, not {self.error_rate!r}"
            raise ValueError(msg)
