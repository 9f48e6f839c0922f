"""How a Redis does: its memory, its eviction, its keys and their TTLs. `redis_health` looks once, `RedisWatch` goes on.

The look is bounded whatever the size of the database: keys are sampled with SCAN (never KEYS), at most `sample` of
them, and asked for their TTL and size in pipelines of a hundred. No value is ever read. A key's name may hold a user's
id, so names are masked unless `show_keys` is on.

Runs on asyncio, as redis-py's client does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from guardrails.shared.redis_keys import Look
from guardrails.shared.redis_report import BigKey, Keys, Level, Numbers, RedisFinding, RedisReport, judge
from guardrails.shared.redis_server import RedisUnreachable, command_line, connection, read_numbers, within
from guardrails.shared.redis_watch import RedisWatch

#: What keys of this toolkit begin with; ``LIMITS:`` is the `limits` library, under shared limits.
PREFIXES = ("guardrails:", "LIMITS:")


async def redis_health(
    client: Any,
    *,
    prefixes: Iterable[str] = PREFIXES,
    sample: int = 1000,
    timeout: float = 10,
    show_keys: bool = False,
) -> RedisReport:
    """Look at a Redis once.

    Args:
        client: a `redis.asyncio.Redis`, or a URL (``redis://localhost:6379/0``), whose connection is closed afterwards.
        prefixes: what this toolkit's own keys begin with; all that are found there must have a TTL.
        sample: keys that are looked at, at most; and as many again of each prefix.
        timeout: seconds that all of it may take. When they are over before all keys were seen, the report says so.
        show_keys: whether the largest keys are named as they are, cut at 60 characters.

    Raises:
        RedisUnreachable: it did not answer within `timeout`, or refused; the message says why.
        MissingExtra: redis is not installed.
        TypeError, ValueError: an argument is not what it should be; the message names it.
    """
    prefixes = _prefixes(prefixes)
    if not isinstance(sample, int) or isinstance(sample, bool) or sample < 1:
        msg = f"sample takes a whole number of at least 1, not {sample!r}"
        raise ValueError(msg)
    if not timeout > 0:
        msg = f"timeout takes a number of seconds above 0, not {timeout!r}"
        raise ValueError(msg)
    async with connection(client) as redis:
        deadline = asyncio.get_running_loop().time() + timeout
        numbers, total = await within(timeout, read_numbers(redis))
        look = Look(prefixes, show_keys=show_keys)
        try:
            async with asyncio.timeout_at(deadline):
                await look.take(redis, sample)
        except TimeoutError:
            look.complete = False
        return judge(numbers, look.keys(total), prefixes, command_line(redis))


def _prefixes(prefixes: Iterable[str]) -> tuple[str, ...]:
    if isinstance(prefixes, str):
        msg = f"prefixes takes several texts, as in ({prefixes!r},)"
        raise TypeError(msg)
    prefixes = tuple(prefixes)
    if not all(isinstance(prefix, str) and prefix for prefix in prefixes):
        msg = f"prefixes takes texts that are not empty, not {prefixes!r}"
        raise ValueError(msg)
    return prefixes


__all__ = [
    "PREFIXES",
    "BigKey",
    "Keys",
    "Level",
    "Numbers",
    "RedisFinding",
    "RedisReport",
    "RedisUnreachable",
    "RedisWatch",
    "redis_health",
]
