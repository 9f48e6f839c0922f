"""Builds a limiter from its arguments, and says what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.guard import Guard
from guardrails.core.retry_after import MAX_RETRY_AFTER
from guardrails.gates.limiter.adaptive import AdaptiveRate
from guardrails.gates.limiter.face import NOT_GIVEN
from guardrails.gates.limiter.gate import Limiter
from guardrails.gates.limiter.settings import Cost, Costs, Limits, number


def limiter(
    max_rate: float | None = None,
    time_period: float | None = None,
    *,
    requests: float | None = None,
    tokens: float | None = None,
    per: float = 60,
    burst: Cost | None = None,
    tiers: Mapping[str, Any] | None = None,
    tier: Callable[..., Hashable] | None = None,
    default_tier: str | None = None,
    key: Callable[..., Hashable] | None = None,
    max_keys: int = 10_000,
    cost: Cost | Callable[..., Cost] | None = None,
    max_wait: float = 30,
    queue: int = 1000,
    adaptive: bool | AdaptiveRate = False,
    drain_on_throttle: bool = True,
    max_retry_after: float = MAX_RETRY_AFTER,
    name: str = "limiter",
    clock: Clock = SYSTEM_CLOCK,
) -> Limiter:
    """A token bucket: ``limiter(requests=500, tokens=200_000, per=60)``.

    Args:
        max_rate, time_period: aiolimiter's words for `requests` and `per`.
        requests: calls that `per` seconds let in.
        tokens: tokens that `per` seconds let in. With both, a call needs room in both.
        per: seconds.
        burst: what a bucket holds, and so what may be taken at once; by default what `per` seconds let in. A number if
            there is one dimension, else a mapping: ``{"requests": 10, "tokens": 20_000}``.
        tiers: limits by tier, in place of `requests` and `tokens`: a number of requests, or a mapping with `requests`,
            `tokens` and `burst`. A key that comes in another tier has other buckets there.
        tier: a function of the call's arguments that returns its tier. With `acquire`, say ``tier=``.
        default_tier: the tier of calls whose own is unknown; by default they raise a ValueError.
        key: a function of the call's arguments that returns whose bucket it takes from: a user, a tenant, a model. With
            `acquire`, say ``key=``. Blocks have no arguments, and need `acquire`.
        max_keys: keys that are kept. Those with full buckets go first, for they lose nothing, the least recently used
            before others; one that has calls waiting never. Take more than you expect.
        cost: what a call takes: tokens if they are limited, else requests; or a mapping; or a function of the call's
            arguments that returns either. By default 1 request and 0 tokens: those are then charged afterwards, by
            `limiter.reservation.correct(...)` inside the call, and the next calls wait until the debt is paid.
        max_wait: seconds that a call may wait, less where a deadline further out is nearer. One whose turn would come
            later is refused at once.
        queue: calls that may wait, for each key. 0: nobody waits.
        adaptive: True or `AdaptiveRate(...)`: a throttled call lowers the rate, and successes raise it again up to what
            is configured, for each key.
        drain_on_throttle: whether a throttled call that says when to come back (Retry-After) drains its bucket until
            then.
        max_retry_after: seconds that a drain lasts at most, whatever is asked for; and that a debt is paid off in at
            most, whatever a call is corrected to. By default, and at most, a day.
        name: how it calls itself in errors and events.
        clock: for tests.

    Raises:
        ValueError: an argument is out of range, or excludes another. TypeError: it has the wrong type, or no limit is
            given.
    """
    if callable(max_rate):
        msg = "limiter has no default rate: call it first, as in @limiter(requests=10, per=1)"
        raise TypeError(msg)
    if max_rate is not None and requests is not None:
        msg = "max_rate and requests are the same: give one"
        raise ValueError(msg)
    requests = max_rate if requests is None else requests
    per = number("per", per if time_period is None else time_period)
    for argument, value, least in (("queue", queue, 0), ("max_keys", max_keys, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            msg = f"{argument} takes a whole number of at least {least}, not {value!r}"
            raise ValueError(msg)
    if isinstance(max_wait, bool) or not isinstance(max_wait, int | float):
        msg = f"max_wait takes a number of seconds, not {type(max_wait).__name__}"
        raise TypeError(msg)
    if not max_wait > 0:
        msg = f"max_wait takes a number of seconds above 0, not {max_wait!r}; for no waiting at all, pass queue=0"
        raise ValueError(msg)
    for argument, function in (("key", key), ("tier", tier)):
        if function is not None and (not callable(function) or isinstance(function, Guard)):
            msg = f"{argument} takes a function of the call's arguments, not {type(function).__name__}"
            raise TypeError(msg)
    if not isinstance(adaptive, bool | AdaptiveRate):
        msg = f"adaptive takes True or an AdaptiveRate, not {type(adaptive).__name__}"
        raise TypeError(msg)
    max_retry_after = number("max_retry_after", max_retry_after)
    if max_retry_after > MAX_RETRY_AFTER:
        msg = f"max_retry_after must be at most {MAX_RETRY_AFTER:g}, a day, not {max_retry_after!r}"
        raise ValueError(msg)
    if tiers is None and (tier is not None or default_tier is not None):
        msg = f"{'tier' if tier is not None else 'default_tier'} needs tiers, the limits by tier"
        raise ValueError(msg)
    limits = Limits(requests, tokens, per, burst, tiers)
    dimensions, rates = limits.rates()
    if default_tier is not None and default_tier not in rates:
        msg = f"default_tier takes one of {', '.join(map(repr, rates))}, not {default_tier!r}"
        raise ValueError(msg)
    costs = Costs(name, dimensions, cost)
    costs.check(rates)
    return Limiter(
        name=name,
        tiers=rates,
        default_tier=NOT_GIVEN if default_tier is None else default_tier,
        costs=costs,
        limits=limits,
        key=key,
        tier=tier,
        max_keys=max_keys,
        max_wait=max_wait,
        queue=queue,
        adaptive=adaptive if isinstance(adaptive, AdaptiveRate) else AdaptiveRate() if adaptive else None,
        drain_on_throttle=drain_on_throttle,
        max_retry_after=max_retry_after,
        clock=clock,
    )
