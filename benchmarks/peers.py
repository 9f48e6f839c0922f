"""What other packages, and guards of one's own making, put around the same trivial work: for `overhead.py`.

Each function returns the guarded work by name. Limits are set so high that nothing ever waits: what is measured is the
way in and the way out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiobreaker
import anyio
import circuitbreaker
import hyx.circuitbreaker
import nopanic
import purgatory
import pybreaker
import pyresilience
import stamina
import tenacity
from aiolimiter import AsyncLimiter

AsyncWork = Callable[[int], Awaitable[int]]
SyncWork = Callable[[int], int]
Stream = Callable[[int], AsyncIterator[int]]

PLENTY = 10**9


async def work(x: int) -> int:
    return x


def sync_work(x: int) -> int:
    return x


async def stream_work(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


def breakers() -> dict[str, AsyncWork]:
    """One breaker around an async call."""
    inside: SyncWork = pybreaker.CircuitBreaker()(sync_work)

    async def through_pybreaker(x: int) -> int:
        return inside(x)  # its decorator leaves `async def` unguarded, so what it costs is taken from a sync call

    return {
        "aiobreaker": aiobreaker.CircuitBreaker()(work),
        "circuitbreaker": circuitbreaker.CircuitBreaker()(work),
        "hyx": hyx.circuitbreaker.consecutive_breaker(failure_threshold=5, recovery_time_secs=10, recovery_threshold=3)(
            work
        ),
        "nopanic": nopanic.circuit_breaker()(work),
        "purgatory": purgatory.AsyncCircuitBreakerFactory()("overhead")(work),
        "pybreaker (sync inside)": through_pybreaker,
        "pyresilience": pyresilience.resilient(circuit_breaker=pyresilience.CircuitBreakerConfig())(work),
    }


def others() -> dict[str, AsyncWork]:
    """One of the other guards around an async call."""
    limiter = AsyncLimiter(PLENTY, 1)
    semaphore = asyncio.Semaphore(1000)

    async def limited(x: int) -> int:
        async with limiter:
            return await work(x)

    async def bounded(x: int) -> int:
        async with semaphore:
            return await work(x)

    async def timed(x: int) -> int:
        async with asyncio.timeout(30):
            return await work(x)

    async def timed_by_anyio(x: int) -> int:
        with anyio.fail_after(30):
            return await work(x)

    return {
        "limiter: aiolimiter": limited,
        "limiter: nopanic": nopanic.rate_limit(PLENTY, per=1.0)(work),
        "bulkhead: asyncio.Semaphore": bounded,
        "bulkhead: nopanic": nopanic.bulkhead(1000)(work),
        "timeout: asyncio.timeout": timed,
        "timeout: anyio.fail_after": timed_by_anyio,
        "timeout: nopanic": nopanic.timeout(30.0)(work),
        "retry: nopanic": nopanic.retry(attempts=3)(work),
        "retry: stamina": stamina.retry(on=Exception, attempts=3)(work),
        "retry: tenacity": tenacity.retry(stop=tenacity.stop_after_attempt(3))(work),
    }


def _nopanic_five() -> Any:
    return nopanic.compose(
        nopanic.retry(attempts=3),
        nopanic.circuit_breaker(),
        nopanic.rate_limit(PLENTY, per=1.0),
        nopanic.bulkhead(1000),
        nopanic.timeout(30.0),
    )


def fives() -> dict[str, AsyncWork]:
    """Retry, breaker, limiter, bulkhead and timeout together, around an async call."""
    limiter = AsyncLimiter(PLENTY, 1)
    semaphore = asyncio.Semaphore(1000)

    async def inner(x: int) -> int:
        async with limiter, semaphore:
            with anyio.fail_after(30):
                return await work(x)

    return {
        "nopanic compose": _nopanic_five()(work),
        "pyresilience": pyresilience.resilient(
            circuit_breaker=pyresilience.CircuitBreakerConfig(),
            retry=pyresilience.RetryConfig(max_attempts=3),
            timeout=pyresilience.TimeoutConfig(seconds=30),
            bulkhead=pyresilience.BulkheadConfig(max_concurrent=1000),
            rate_limiter=pyresilience.RateLimiterConfig(max_calls=PLENTY, period=1.0),
        )(work),
        "by hand": tenacity.retry(stop=tenacity.stop_after_attempt(3))(aiobreaker.CircuitBreaker()(inner)),
    }


def streams() -> dict[str, Stream]:
    """The same five around a stream."""
    limiter = AsyncLimiter(PLENTY, 1)
    semaphore = asyncio.Semaphore(1000)
    breaker = aiobreaker.CircuitBreaker()

    async def by_hand(count: int) -> AsyncIterator[int]:
        async with limiter, semaphore:
            items = stream_work(count)
            while True:
                try:
                    with anyio.fail_after(30):
                        item = await breaker.call_async(anext, items)
                except StopAsyncIteration:
                    return
                yield item

    return {"nopanic compose": _nopanic_five()(stream_work), "by hand": by_hand}


def sync_breakers() -> dict[str, SyncWork]:
    """One breaker around a sync call."""
    return {
        "circuitbreaker": circuitbreaker.CircuitBreaker()(sync_work),
        "nopanic": nopanic.circuit_breaker()(sync_work),
        "pybreaker": pybreaker.CircuitBreaker()(sync_work),
        "pyresilience": pyresilience.resilient(circuit_breaker=pyresilience.CircuitBreakerConfig())(sync_work),
    }


def sync_fours() -> dict[str, SyncWork]:
    """Retry, breaker, limiter and bulkhead around a sync call, which nothing can interrupt."""
    return {
        "nopanic compose": nopanic.compose(
            nopanic.retry(attempts=3),
            nopanic.circuit_breaker(),
            nopanic.rate_limit(PLENTY, per=1.0),
            nopanic.bulkhead(1000),
        )(sync_work),
        "by hand": tenacity.retry(stop=tenacity.stop_after_attempt(3))(pybreaker.CircuitBreaker()(sync_work)),
    }


class Down(Exception):
    """What the dependency of an open circuit raised."""


async def down(_: int) -> int:
    raise Down


def open_breakers() -> dict[str, AsyncWork]:
    """One breaker around an async call that has failed often enough: the circuit is open, and stays so."""
    return {
        "aiobreaker": aiobreaker.CircuitBreaker(3)(down),
        "circuitbreaker": circuitbreaker.CircuitBreaker(failure_threshold=3, recovery_timeout=600)(down),
        "hyx": hyx.circuitbreaker.consecutive_breaker(
            failure_threshold=3, recovery_time_secs=600, recovery_threshold=3
        )(down),
        "nopanic": nopanic.circuit_breaker()(down),
        "purgatory": purgatory.AsyncCircuitBreakerFactory(default_threshold=3, default_ttl=600)("open")(down),
        "pyresilience": pyresilience.resilient(
            circuit_breaker=pyresilience.CircuitBreakerConfig(failure_threshold=3, recovery_timeout=600)
        )(down),
    }
