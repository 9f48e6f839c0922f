"""Watching: somebody is told, of the right things, and it was tried under load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from runners.config import AlertsSection, Config, TelemetrySection
from runners.doctor import finding
from runners.doctor.facts import Facts, LoadTest
from runners.doctor.finding import Finding, Mend

_DAY = 86_400
_DSN = "https://PUBLIC_KEY@HOST/PROJECT"
#: Above this share, an alert of memory comes when nothing can be done any more.
_LATE = 0.95


# Sinks


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens."""

    host: str
    port: int
    tls: bool


def dsn_address(dsn: str) -> Address | str:
    """Where a Sentry DSN leads, or what is wrong with it; neither says the key."""
    try:
        parts = urlsplit(dsn)
        port = parts.port
    except ValueError:
        return "is no URL"
    if parts.scheme not in ("http", "https"):
        return "does not begin with https:// or http://"
    if not parts.username:
        return "has no public key before the @"
    if not parts.hostname:
        return "names no host"
    if not parts.path.rpartition("/")[2].isdecimal():
        return "does not end with a project's number"
    return Address(parts.hostname, port or (443 if parts.scheme == "https" else 80), parts.scheme == "https")


def sentry_dsn(config: Config, environment: Mapping[str, str]) -> str | None:
    """The DSN of the file, else of the environment."""
    if config.telemetry is None:
        return None
    return config.telemetry.sentry_dsn or environment.get(config.telemetry.sentry_dsn_env) or None


def sinks(config: Config, facts: Facts) -> Iterator[Finding]:
    """Sentry or another sink is configured, and can be reached."""
    telemetry = config.telemetry
    dsn = sentry_dsn(config, facts.environment)
    if telemetry is None or not any(_configured(telemetry, dsn).values()):
        why = "nobody is told: no Sentry, no Prometheus, no OpenTelemetry, no logs"
        mends = (
            finding.config({"telemetry": {"sentry_dsn_env": "SENTRY_DSN", "logs": True}}),
            finding.environment("SENTRY_DSN", _DSN),
        )
        yield Finding("sinks", "telemetry", "failure", why, mends)
        return
    named = [name for name, there in _configured(telemetry, dsn).items() if there]
    yield Finding("sinks", "telemetry", "ok", f"events go to {', '.join(named)}")
    if dsn is not None:
        address = dsn_address(dsn)
        in_file = telemetry.sentry_dsn is not None
        mend = (
            finding.config({"telemetry": {"sentry_dsn": _DSN}}, "the DSN as Sentry shows it: Settings, Client Keys")
            if in_file
            else finding.environment(telemetry.sentry_dsn_env, _DSN)
        )
        if isinstance(address, str):
            yield Finding("sinks", "sentry", "failure", f"the DSN {address}", (mend,))
        else:
            yield _reached("sentry", facts, mend)
    if telemetry.otel is not None:
        mend = finding.config({"telemetry": {"otel": "http://HOST:4318"}}, "HOST: where your collector is")
        yield _reached("otel", facts, mend)
    if telemetry.prometheus is not None:
        yield Finding("sinks", "prometheus", "ok", f"metrics are served at {telemetry.prometheus}")
    if telemetry.logs:
        alone = dsn is None and telemetry.prometheus is None and telemetry.otel is None
        why = "events are logged" + (
            "; nobody is woken by a log, so see to it that one who is reads it" if alone else ""
        )
        yield Finding("sinks", "logs", "ok", why)


def _configured(telemetry: TelemetrySection, dsn: str | None) -> dict[str, bool]:
    return {
        "Sentry": dsn is not None,
        "Prometheus": telemetry.prometheus is not None,
        "OpenTelemetry": telemetry.otel is not None,
        "logs": telemetry.logs,
    }


def _reached(name: str, facts: Facts, mend: Mend) -> Finding:
    reach = facts.sinks.get(name)
    if reach is None:
        return Finding("sinks", name, "ok", "configured; whether it answers was not asked")
    if reach.reached:
        return Finding("sinks", name, "ok", f"configured, and {reach.detail}")
    why = f"{reach.detail}: what it should be told is lost. Let this machine reach it, or correct the address"
    return Finding("sinks", name, "failure", why, (mend,))


# Alerts


def alerts(config: Config, facts: Facts) -> Iterator[Finding]:
    """The signs of trouble are watched for."""
    told = config.alerts
    if told is None:
        why = "no alerts: memory that grows is noticed when the process is gone"
        mend = finding.config({"alerts": {"memory_high": 0.8, "memory_growth": True}})
        yield Finding("alerts", "alerts", "failure", why, (mend,))
        return
    yield Finding("alerts", "alerts", "ok", "set")
    if told.memory_high > _LATE:
        why = f"memory_high at {told.memory_high:.0%}: too late to do anything"
        yield Finding("alerts", "memory_high", "warning", why, (finding.config({"alerts": {"memory_high": 0.8}}),))
    else:
        yield Finding("alerts", "memory_high", "ok", f"at {told.memory_high:.0%} of a limit")
    for name, what in _SIGNS.items():
        if getattr(told, name):
            yield Finding("alerts", name, "ok", what)
        else:
            mend = finding.config({"alerts": {name: True}})
            yield Finding("alerts", name, "warning", f"off: nobody is told of {what}", (mend,))


_SIGNS = {
    "memory_growth": "memory that grows all the time, a leak",
    "ai_timeouts": "calls of models that time out often",
    "memory_crash": "workers that died for want of memory",
    "slow_at_low_load": "answers that are slow though few ask",
}
assert all(name in AlertsSection.__struct_fields__ for name in _SIGNS)  # noqa: S101 - a name that is wrong is a bug


# The load test


def load_test(config: Config, facts: Facts) -> Iterator[Finding]:
    """It was tried under load, not long ago, and held."""
    wanted = config.load_test
    if wanted is None:
        why = "no load test: nobody knows what it holds"
        mends = (
            finding.config({"load_test": {"report": "load-test.json", "p95": 0.5}}),
            _again("load-test.json", None),
        )
        yield Finding("load_test", "report", "failure", why, mends)
        return
    again = (_again(wanted.report, wanted.command),)
    report = facts.load_test
    if not isinstance(report, LoadTest):
        yield Finding("load_test", "report", "failure", f"{wanted.report}: {report or 'it was not read'}", again)
        return
    if report.requests == 0:
        yield Finding("load_test", "report", "failure", f"{wanted.report}: not one request was made", again)
        return
    duration = "" if report.duration is None else f" in {report.duration:,.0f} s"
    yield Finding("load_test", "report", "ok", f"{report.requests:,} requests{duration}, by {report.source}")
    age = facts.now - report.started
    if age > wanted.max_age:
        why = f"{age / _DAY:,.0f} days old, and says nothing of what has changed since"
        yield Finding("load_test", "age", "warning", why, again)
    else:
        yield Finding("load_test", "age", "ok", f"{max(0.0, age) / _DAY:,.1f} days old")
    if report.p95 is None:
        yield Finding("load_test", "p95", "warning", "it does not say how long answers took", again)
    elif report.p95 > wanted.p95:
        why = f"{report.p95:.3g} s, and {wanted.p95:g} s was the aim: more workers or lower limits, then once more"
        yield Finding("load_test", "p95", "failure", why, again)
    else:
        yield Finding("load_test", "p95", "ok", f"{report.p95:.3g} s, within {wanted.p95:g} s")
    if report.error_rate > wanted.error_rate:
        why = f"{report.error_rate:.2%} of requests failed, and {wanted.error_rate:.2%} may"
        yield Finding("load_test", "error_rate", "failure", why, again)
    else:
        yield Finding("load_test", "error_rate", "ok", f"{report.error_rate:.2%} of requests failed")


def _again(report: str, command: str | None) -> Mend:
    return finding.command(command or f"k6 run --summary-export {report} load-test.js", "in the folder of the file")
