"""Traffic: queues that end, limits on every endpoint, tiers that somebody wrote down, workers that follow the load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from guardrails.core.sizes import format_size
from runners.config import Config, LimiterSection, ServiceSection, TierSection
from runners.doctor import finding, memory
from runners.doctor.facts import Facts
from runners.doctor.finding import Finding

#: A queue with more places than that holds callers that have left by the time it is their turn.
LONG, ENDLESS = 2_048, 10_000
_LIMITER = {"requests": 60, "per": 60}


# Queues


def queues(config: Config, facts: Facts) -> Iterator[Finding]:
    """What waits is bounded, in number and in time."""
    for name, runner in config.runners.items():
        yield _queue(finding.table("runners", name), runner.queue, f"for {runner.timeout:g} s at most", 1024)
    for section, tables in (("services", config.services), ("endpoints", config.endpoints)):
        for name, each in tables.items():
            subject = finding.table(section, name)
            if each.queue is not None:
                yield _queue(subject, each.queue, f"for {each.max_wait:g} s at most", 100)
            if each.limiter is not None:
                yield _limiter_queue(subject, each.limiter)
    for name, service in config.services.items():
        yield _concurrency(config, name, service)


def _queue(subject: str, size: int, how_long: str, better: int) -> Finding:
    if size <= LONG:
        return Finding("queues", subject, "ok", f"{size:,} may wait, {how_long}")
    level: finding.Level = "failure" if size > ENDLESS else "warning"
    why = f"{size:,} may wait, each with its payload in this process, most of them longer than anybody stays"
    return Finding("queues", subject, level, why, (finding.config({subject: {"queue": better}}),))


def _concurrency(config: Config, name: str, service: ServiceSection) -> Finding:
    table = finding.table("services", name)
    subject = f"{table}.concurrency"
    callers = [endpoint.concurrency for endpoint in config.endpoints.values() if endpoint.service == name]
    if service.concurrency is not None:
        return Finding("queues", subject, "ok", f"{service.concurrency:,} calls at the same time")
    if callers and None not in callers:
        return Finding("queues", subject, "ok", "each of its endpoints has a bound")
    why = "any number of calls may be under way at once: when it slows down, they pile up in this process"
    rest = {"queue": 100, "max_wait": 10} if service.queue is None else {}
    return Finding("queues", subject, "failure", why, (finding.config({table: {"concurrency": 20, **rest}}),))


def _limiter_queue(subject: str, limiter: LimiterSection) -> Finding:
    why = f"{limiter.queue:,} calls may wait for it, for {limiter.max_wait:g} s at most"
    if limiter.queue <= LONG:
        return Finding("queues", f"{subject}.limiter", "ok", why)
    level: finding.Level = "failure" if limiter.queue > ENDLESS else "warning"
    given = {**limiter.given(), "queue": 1000}
    return Finding("queues", f"{subject}.limiter", level, why, (finding.config({subject: {"limiter": _plain(given)}}),))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    whole = {name: int(value) for name, value in values.items() if isinstance(value, float) and value.is_integer()}
    return {**values, **whole}


# Rate limits


def rate_limits(config: Config, facts: Facts) -> Iterator[Finding]:
    """Every endpoint with a model or an AI API behind it has a rate limit."""
    if not config.endpoints:
        behind = next(iter(config.runners), None) or next(iter(config.services), None)
        if behind is not None:
            what = "runner" if config.runners else "service"
            why = "no endpoint is described, so no limit stands between users and the models"
            mend = finding.config({finding.table("endpoints", behind): {what: behind, "limiter": _LIMITER}})
            yield Finding("rate_limits", "endpoints", "failure", why, (mend,))
        return
    yield Finding("rate_limits", "endpoints", "ok", f"{len(config.endpoints)} described")
    for name, endpoint in config.endpoints.items():
        subject = finding.table("endpoints", name)
        if endpoint.limiter is not None or endpoint.tiers:
            limits = [_limit_text(endpoint.limiter)] if endpoint.limiter is not None else []
            limits += [f"by tier: {', '.join(endpoint.tiers)}"] if endpoint.tiers else []
            yield Finding("rate_limits", subject, "ok", "; ".join(limits))
            continue
        why = "no rate limit: one user can take all of it"
        limit: dict[str, Any] = {"tiers": list(config.tiers)} if _alike(config.tiers) else {"limiter": _LIMITER}
        yield Finding("rate_limits", subject, "failure", why, (finding.config({subject: limit}),))


def _limit_text(limiter: LimiterSection) -> str:
    amounts = [(limiter.requests, "requests"), (limiter.tokens, "tokens")]
    return f"{' and '.join(f'{amount:,g} {word}' for amount, word in amounts if amount)} in {limiter.per:g} s"


def _alike(tiers: Mapping[str, TierSection]) -> bool:
    """Whether one limiter can hold them."""
    return bool(tiers) and len({(tier.per, tier.requests is None, tier.tokens is None) for tier in tiers.values()}) == 1


# Tiers


def tiers(config: Config, facts: Facts) -> Iterator[Finding]:
    """What users of each tier may use is written down."""
    if not (config.endpoints or config.runners or config.services):
        return
    if not config.tiers:
        why = "no tiers: what a user may use is written down nowhere"
        tier = {"description": "Anybody.", "requests": 60, "per": 60, "connections": 2}
        yield Finding("tiers", "tiers", "warning", why, (finding.config({"tiers.free": tier}),))
        return
    yield Finding("tiers", "tiers", "ok", f"{len(config.tiers)} described")
    for name, tier_ in config.tiers.items():
        subject = finding.table("tiers", name)
        if tier_.description.strip():
            limits = LimiterSection(requests=tier_.requests, tokens=tier_.tokens, per=tier_.per)
            yield Finding("tiers", subject, "ok", _limit_text(limits))
        else:
            why = "no description: nobody knows whom these limits are for"
            mend = finding.config({subject: {"description": "WHOM IT IS FOR"}})
            yield Finding("tiers", subject, "warning", why, (mend,))


# Workers


def autoscaling(config: Config, facts: Facts) -> Iterator[Finding]:
    """Runners have room to grow with their load, as far as memory allows."""
    if not config.runners:
        return
    there = memory.available(config, facts.machine)
    fixed = [name for name, runner in config.runners.items() if not _scales(config, name) and runner.hard]
    for name, runner in config.runners.items():
        subject = finding.table("runners", name)
        if _scales(config, name):
            size = runner.size
            why = "loaded when the fleet has room" if size.minimum == size.maximum else "as the load and memory have it"
            yield Finding("autoscaling", subject, "ok", f"{size.minimum} to {size.maximum} workers, {why}")
            continue
        if runner.hard is None or not there:
            yield Finding("autoscaling", subject, "ok", f"{runner.size.maximum} workers; more cannot be judged yet")
            continue
        spare = (there - config.machine.reserve - memory.needed(config, hard=True)) / len(fixed)
        most = runner.size.maximum + int(spare // runner.hard)
        if most <= runner.size.maximum:
            why = f"{runner.size.maximum} of {format_size(runner.hard)}: no more would fit"
            yield Finding("autoscaling", subject, "ok", why)
            continue
        most = min(most, max(runner.size.maximum + 1, facts.machine.cores))
        why = f"always {runner.size.maximum}: a burst waits though {most} would fit, and at night they stay loaded"
        mend = finding.config({subject: {"workers": [1, most]}})
        yield Finding("autoscaling", subject, "warning", why, (mend,))


def _scales(config: Config, name: str) -> bool:
    size = config.runners[name].size
    return size.minimum < size.maximum or name in config.in_fleet
