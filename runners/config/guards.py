"""The guards in ``runners.toml``. Their keys are the keywords of the guards' constructors, which also check them."""

from __future__ import annotations

from typing import Any

import msgspec

from guardrails import breaker, limiter, retry, timeout

#: Keys whose values may hold a password or a key.
_SECRET = frozenset({"environment", "sentry_dsn", "url"})


class Section(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A table of the file."""

    def __repr__(self) -> str:
        """Without what may hold a password or a key."""
        shown = (f"{name}={'...' if name in _SECRET else repr(value)}" for name, value in self.given().items())
        return f"{type(self).__name__}({', '.join(shown)})"

    def given(self) -> dict[str, Any]:
        """The keys with other values than their defaults, nested tables as they are."""
        fields = msgspec.structs.fields(self)
        values = {field.name: getattr(self, field.name) for field in fields}
        return {
            field.name: values[field.name]
            for field in fields
            if field.required or values[field.name] != _default(field)
        }


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


class LimiterSection(Section, frozen=True, kw_only=True):
    """``limiter(...)``: so many `requests`, `tokens` or both in `per` seconds."""

    requests: float | None = None
    tokens: float | None = None
    per: float = 60
    burst: float | dict[str, float] | None = None
    max_wait: float = 30
    queue: int = 1000
    max_keys: int = 10_000
    adaptive: bool = False
    drain_on_throttle: bool = True

    def __post_init__(self) -> None:
        """Check."""
        limiter(**self.given())


class BreakerSection(Section, frozen=True, kw_only=True):
    """``breaker(...)``. An empty table is a breaker with its defaults."""

    fail_max: int = 5
    reset_timeout: float = 60
    success_threshold: int = 1
    failure_rate: float | None = None
    slow_after: float | None = None
    slow_rate: float | None = None
    min_calls: int = 10
    window: int | None = None
    window_seconds: float | None = None
    open_for: float | None = None
    probes: int | None = None
    probe_lease: float = 30
    half_open_max: float | None = None

    def __post_init__(self) -> None:
        """Check."""
        breaker(**self.given())


class RetrySection(Section, frozen=True, kw_only=True):
    """``retry(...)``."""

    attempts: int | None = None
    budget: float | None = 0.1
    max_retry_after: float = 60

    def __post_init__(self) -> None:
        """Check."""
        retry(**self.given())


class TimeoutSection(Section, frozen=True, kw_only=True):
    """``timeout(...)``, in seconds: for all of a call, until its first item, between two."""

    total: float | None = None
    first: float | None = None
    idle: float | None = None

    def __post_init__(self) -> None:
        """Check."""
        timeout(**self.given())
