"""How guards are built, and what they are used for beside decorating. Checked by test_typing.py, never run.

What must be refused says so at the end of its line, with the reason; all other lines must not be refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import assert_type

import pybreaker
import tenacity

import guardrails
from guardrails import (
    admit,
    attempt,
    breaker,
    bulkhead,
    connections,
    deadline_in,
    errors,
    fallback,
    guard,
    hedge,
    keyed,
    limiter,
    remaining,
    retry,
    subscribe,
    timeout,
)
from guardrails.core.events import Event
from guardrails.core.guard import Call, Gate
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Pipeline
from guardrails.gates.admit import Admit, Aimd, Gradient, Learned
from guardrails.gates.breaker import Breaker, BreakerSnapshot, FromRetryAfter, Growing
from guardrails.gates.bulkhead import Bulkhead
from guardrails.gates.connections import Connections
from guardrails.gates.keyed import Keyed
from guardrails.gates.limiter import Limiter
from guardrails.gates.timeout import Timeout
from guardrails.strategies.cache import Cache, cache
from guardrails.strategies.fallback import Fallback
from guardrails.strategies.hedge import Hedge
from guardrails.strategies.inject import Inject, inject
from guardrails.strategies.retry import FullJitter, Retry, RetryBudget
from guardrails.testing import FakeClock, capture_events

clock = FakeClock()

# Names that are not there

guardrails.brake(3)  # expect: attr-defined | reportAttributeAccessIssue, reportUnknownMemberType
errors.CircuitOpened()  # expect: attr-defined | reportAttributeAccessIssue, reportUnknownMemberType

# admit

assert_type(admit(), Admit)
admit(memory="300MiB")
admit(memory=300 * 2**20, queue=0)
admit(memory=lambda image: 2 * len(image))
admit(memory="learned")
admit(memory=Learned(start="10MiB"))
admit(concurrency=Aimd(), priority=lambda prompt, user: 3, key=lambda prompt, user: user)
admit(concurrency=Gradient(), max_wait=1, clock=clock)
admit(concurrency="4")  # expect: call-overload | reportArgumentType
admit(memory=b"300MiB")  # expect: call-overload | reportArgumentType
admit(4)  # expect: call-overload | reportArgumentType
admit(workers=4)  # expect: call-overload | reportCallIssue

# breaker

assert_type(breaker(), Breaker)
breaker(name="x", fail_max=3, reset_timeout=1.5, success_threshold=2)
breaker(exclude=[ValueError, lambda exc: isinstance(exc, KeyError)], failure_on=(OSError,))
breaker(failure_rate=0.5, min_calls=10, window=50, slow_after=2, slow_rate=0.5)
breaker(open_for=15, probes=2, probe_lease=3, half_open_max=60, clock=clock)
breaker(open_for=Growing(5, cap=300))
breaker(open_for=FromRetryAfter(30))
breaker(open_for=lambda outcome: outcome.retry_after or 10)
breaker(listeners=[pybreaker.CircuitBreakerListener()], state_storage=pybreaker.CircuitMemoryStorage("closed"))
assert_type(breaker().snapshot(), BreakerSnapshot)
assert_type(breaker().call(len, "x"), int)
assert_type(breaker().state.name, str)
half = breaker().snapshot().state == "halfopen"  # expect: comparison-overlap | reportUnnecessaryComparison
breaker().call(len, 3)  # expect: arg-type | reportArgumentType
breaker("openai")  # expect: call-overload | reportArgumentType
breaker(fail_max="3")  # expect: call-overload | reportArgumentType
breaker(exclude=ValueError)  # expect: call-overload | reportArgumentType
breaker(open_for="15s")  # expect: call-overload | reportArgumentType
breaker(max_failures=3)  # expect: call-overload | reportCallIssue

# bulkhead

assert_type(bulkhead(10), Bulkhead)
bulkhead(Aimd(), queue=5, priority=1, key=lambda user: user)
bulkhead()  # expect: call-arg | reportCallIssue
bulkhead("10")  # expect: arg-type | reportArgumentType

# cache

assert_type(cache(ttl=60), Cache)
cache(ttl=lambda result: None, max_bytes="1MiB", key=lambda prompt: prompt, stale_if_error=60, clock=clock)
cache()  # expect: call-arg | reportCallIssue
cache(60)  # expect: arg-type, call-arg | reportCallIssue
cache(ttl="60")  # expect: arg-type | reportArgumentType

# connections

assert_type(connections(per_key=3), Connections)
connections(per_key=3, max_total=100, idle_timeout=60, key=lambda user: user, when_full="close_oldest")
connections(3)  # expect: call-arg | reportCallIssue
connections(per_key=3, when_full="close_newest")  # expect: arg-type | reportArgumentType

# fallback

assert_type(fallback(None), Fallback)
fallback(lambda prompt, error: f"sorry: {error}", on=(OSError, lambda exc: exc.args == ()))
fallback("sorry", on=TimeoutError)
fallback()  # expect: call-arg | reportCallIssue
fallback("sorry", on="TimeoutError")  # expect: arg-type | reportArgumentType

# guard


def verdict(exc: BaseException) -> Outcome:
    return Outcome("ignored", exc)


assert_type(guard(), Pipeline)
assert_type(guard(breaker(), guard(timeout(5))).describe(), str)
guard(breaker(), classify=verdict, classify_result=lambda result: Outcome("success"), check_order=False)
guard(breaker)  # expect: arg-type | reportArgumentType
guard("breaker")  # expect: arg-type | reportArgumentType
guard([breaker(), timeout(5)])  # expect: arg-type | reportArgumentType
guard(breaker(), classify=lambda exc: "failure")  # expect: arg-type, return-value | reportArgumentType

# hedge

assert_type(hedge(0.5), Hedge)
hedge(percentile=0.95, attempts=3, budget=RetryBudget(0.1))
hedge("0.5")  # expect: arg-type | reportArgumentType

# inject

assert_type(inject(latency=1), Inject)
inject(latency=(0.5, 2), rate=0.1, seed=1)
inject(latency=lambda: 3.0, error=OSError, when=lambda prompt: prompt == "x")
inject(error=429, retry_after=7, max_faults=3)
inject(error=lambda prompt: OSError(prompt, "down"), after_items=2)
inject(result=None, enabled=False, for_seconds=60)
inject(latency="1")  # expect: arg-type | reportArgumentType
inject(latency=(1, 2, 3))  # expect: arg-type | reportArgumentType
inject(error="503")  # expect: arg-type | reportArgumentType
inject(error=KeyboardInterrupt)  # expect: arg-type | reportArgumentType
inject(0.5)  # expect: call-arg | reportCallIssue

# keyed

hosts = keyed(lambda host: breaker(name=host), key=lambda host, path: host, max_keys=100)
assert_type(hosts, Keyed[Breaker])
assert_type(hosts.guard_of("example.org"), Breaker)
keyed(lambda host: breaker(name=host))  # expect: call-arg | reportCallIssue
keyed(lambda host: retry(), key=lambda host: host)  # expect: type-var | reportArgumentType
keyed(breaker(), key=lambda host: host)  # expect: type-var | reportArgumentType

# limiter

assert_type(limiter(requests=500, tokens=200_000, per=60), Limiter)
limiter(10, 1)
limiter(tiers={"free": 5, "pro": 60}, per=60, key=lambda user: user, tier=lambda user: "free")
limiter(requests=5, cost=lambda prompt: {"requests": 1})
limiter("5/minute")  # expect: arg-type | reportArgumentType
limiter(requests="5")  # expect: arg-type | reportArgumentType
limiter(requests=5, key="user")  # expect: arg-type | reportArgumentType

# retry

assert_type(retry(), Retry)
retry(attempts=5, wait=FullJitter(0.1, 3), budget=RetryBudget(0.1), on=(OSError, lambda exc: not exc.args))
retry(wait=1, on_result=lambda result: result is None, raise_results=True, budget=None)
retry(attempts=None, stop=tenacity.stop_after_delay(10), wait=tenacity.wait_exponential())
retry(3)  # expect: call-overload | reportArgumentType
retry(attempts="3")  # expect: call-overload | reportArgumentType
retry(on="OSError")  # expect: call-overload | reportArgumentType

# timeout

assert_type(timeout(5), Timeout)
timeout(30, first=5, idle=10)
timeout(first=5, name="x", clock=clock)
timeout("5s")  # expect: arg-type | reportArgumentType
timeout(30, 5)  # expect: call-arg | reportCallIssue
timeout(total=30, between=10)  # expect: call-arg | reportCallIssue


# A guard of one's own


class Mine(Gate):
    name = "mine"

    def describe(self) -> str:
        return "mine"

    def try_enter(self, call: Call) -> int:
        return 1

    def settle(self, ticket: int, outcome: Outcome) -> None:
        pass


assert_type(guard(Mine(), breaker()), Pipeline)
Mine()(len)  # expect: operator | reportCallIssue


# Blocks


async def blocks() -> int:
    async with guard(breaker(), limiter(requests=5)) as nothing:
        assert_type(nothing, None)
    async with timeout(5), breaker():
        pass
    assert_type(attempt(), int)
    attempt(2)  # expect: call-arg | reportCallIssue
    with deadline_in(5):
        assert_type(remaining(), float | None)
    with breaker():
        pass
    with breaker().calling():
        return 1  # no guard swallows an exception: nothing is missing after this


def deadlines() -> None:
    deadline_in("5")  # expect: arg-type | reportArgumentType
    deadline_in()  # expect: call-arg | reportCallIssue
    remaining(3)  # expect: call-arg | reportCallIssue


async def acquired() -> None:
    await limiter(requests=5).acquire(2)
    with connections(per_key=3).open("user"):
        pass
    with inject(latency=1, enabled=False).active():
        pass


# Events and errors


def told(event: Event) -> None:
    assert_type(event.source, str)


assert_type(subscribe(told), Callable[[], None])
subscribe(print)
subscribe(lambda: None)  # expect: arg-type, misc | reportArgumentType
subscribe("log")  # expect: arg-type | reportArgumentType

with capture_events() as seen:
    pass


def refused(error: errors.Rejected) -> None:
    assert_type(error.retry_after, float | None)
    assert_type(error.reason, str)
    assert_type(error.guard, str)


def tree(
    circuit: errors.CircuitOpen,
    queue: errors.QueueFull,
    wait: errors.WaitTimeout,
    memory: errors.MemoryRefused,
    rate: errors.RateLimited,
    connection: errors.TooManyConnections,
    timed_out: errors.TimedOut,
) -> None:
    for error in (circuit, queue, wait, memory, rate, connection):
        refused(error)
    open_circuit: pybreaker.CircuitBreakerError = circuit
    late: TimeoutError = timed_out
    refused(timed_out)  # expect: arg-type | reportArgumentType
    print(open_circuit, late)


async def words(prompt: str) -> AsyncIterator[str]:
    yield prompt


async def a_stream_is_closed_by_its_reader() -> None:
    # AsyncIterator has no aclose: the function's own annotation decides that, not the guard.
    stream = timeout(idle=5)(words)("x")
    assert_type(stream, AsyncIterator[str])
    await stream.aclose()  # expect: attr-defined | reportAttributeAccessIssue, reportUnknownMemberType
