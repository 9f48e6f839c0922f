"""Redis: what `guardrails.shared.redis_health` found, as lines of the doctor's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from guardrails.shared.redis_report import RedisReport
from runners.config import Config
from runners.doctor import finding
from runners.doctor.facts import Facts
from runners.doctor.finding import Finding


def redis_url(config: Config, environment: Mapping[str, str]) -> str | None:
    """The URL of the file, else of the environment; None when there is no ``[redis]``, or no URL."""
    if config.redis is None:
        return None
    return config.redis.url or environment.get(config.redis.url_env) or None


def redis(config: Config, facts: Facts) -> Iterator[Finding]:
    """Its memory is bounded, it evicts, and keys have a TTL."""
    if config.redis is None:
        return
    if redis_url(config, facts.environment) is None:
        why = f"[redis] is there, and neither url nor the variable {config.redis.url_env} says where it is"
        mend = finding.environment(config.redis.url_env, "redis://HOST:6379/0")
        yield Finding("redis", "address", "failure", why, (mend,))
        return
    if facts.redis is None:
        yield Finding("redis", "address", "ok", "configured; whether it answers was not asked")
        return
    if not isinstance(facts.redis, RedisReport):
        url = "redis://HOST:6379/0"
        mend = (
            finding.config({"redis": {"url": url}})
            if config.redis.url is not None
            else finding.environment(config.redis.url_env, url)
        )
        yield Finding("redis", "address", "failure", f"it does not answer: {facts.redis}", (mend,))
        return
    numbers = facts.redis.numbers
    yield Finding("redis", "address", "ok", f"Redis {numbers.version} answers, {facts.redis.keys.total:,} keys")
    for each in facts.redis.findings:
        mends = () if each.mend is None or each.level == "ok" else (finding.command(each.mend),)
        yield Finding("redis", each.check, each.level, each.why, mends)
