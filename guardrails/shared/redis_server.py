"""A connection to a Redis, and what the server says of itself."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from guardrails.core.errors import Failed, MissingExtra
from guardrails.shared.redis_report import Numbers

T = TypeVar("T")

_PORT = 6379


class RedisUnreachable(Failed):
    """The server did not answer, or refused. The message says where and why, without a password."""


@asynccontextmanager
async def connection(client: Any) -> AsyncIterator[Any]:
    """A client; what goes wrong within is a `RedisUnreachable`. One that was made from a URL is closed at the end.

    Raises:
        TypeError, ValueError: `client` is neither a client nor a URL. MissingExtra: redis is not installed.
    """
    try:
        import redis.asyncio as asyncio_redis  # noqa: PLC0415 - an extra
        from redis.asyncio.retry import Retry  # noqa: PLC0415
        from redis.backoff import NoBackoff  # noqa: PLC0415
        from redis.exceptions import RedisError  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtra("redis_health", extra="redis", module="redis") from error
    ours = isinstance(client, str)
    if not ours and not isinstance(client, asyncio_redis.Redis):
        msg = f"client takes a redis.asyncio.Redis or a URL, not {type(client).__module__}.{type(client).__name__}"
        raise TypeError(msg)
    if ours:
        try:
            client = asyncio_redis.Redis.from_url(
                client, socket_timeout=5, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
            )
        except ValueError:
            msg = "client takes a URL such as 'redis://localhost:6379/0', or rediss:// for TLS, unix:// for a socket"
            raise ValueError(msg) from None
    try:
        yield client
    except (RedisError, OSError) as error:
        raise RedisUnreachable(f"{_place(client)}: {_reason(error)}") from error
    finally:
        if ours:
            await client.aclose()


def _reason(error: Exception) -> str:
    number = re.match(r"Error (\d+) (?:while )?connecting", str(error))  # followed by the address, once more
    return os.strerror(int(number[1])).lower() if number else str(error)


def _place(client: Any) -> str:
    options = client.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', _PORT)}")


def command_line(client: Any) -> str:
    """The beginning of a redis-cli command that reaches the same server; without user and password."""
    options = client.connection_pool.connection_kwargs
    words = ["redis-cli"]
    if options.get("path"):
        words += ["-s", str(options["path"])]
    else:
        for option, value, usual in (("-h", options.get("host"), "localhost"), ("-p", options.get("port"), _PORT)):
            words += [] if value in (None, usual) else [option, str(value)]
    if options.get("db"):
        words += ["-n", str(options["db"])]
    if client.connection_pool.connection_class.__name__.startswith("SSL"):
        words.append("--tls")
    return shlex.join(words)


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Its result. Raises OSError when it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        msg = f"no answer within {seconds:g} s"
        raise OSError(msg) from error


async def read_numbers(client: Any) -> tuple[Numbers, int]:
    """What the server says, and how many keys there are."""
    from redis.exceptions import ResponseError  # noqa: PLC0415 - an extra

    info = await client.info("all")
    try:
        saves = (await client.config_get("save")).get("save")
    except ResponseError:  # a hosted Redis keeps its settings to itself
        saves = None
    return numbers_of(info, saves), await client.dbsize()


def numbers_of(info: Mapping[str, Any], saves: str | None = None) -> Numbers:
    """Read an INFO, as redis-py has it; `saves` is the setting ``save``, if it could be read."""
    logged = bool(info.get("aof_enabled"))
    return Numbers(
        version=str(info.get("redis_version", "")),
        role=str(info.get("role", "master")),
        used=int(info["used_memory"]),
        peak=int(info.get("used_memory_peak", info["used_memory"])),
        limit=int(info.get("maxmemory", 0)) or None,
        policy=str(info.get("maxmemory_policy", "noeviction")),
        resident=int(info.get("used_memory_rss", 0)),
        system=int(info.get("total_system_memory", 0)),
        evicted=int(info.get("evicted_keys", 0)),
        expired=int(info.get("expired_keys", 0)),
        persistent=True if logged else None if saves is None else bool(saves),
        saved=info.get("rdb_last_bgsave_status", "ok") == "ok" and info.get("aof_last_bgrewrite_status", "ok") == "ok",
        replicas=int(info.get("connected_slaves", 0)),
    )
