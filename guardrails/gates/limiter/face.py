"""What a limiter shows of itself, and what is called on it by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from guardrails.core import events, validate
from guardrails.core.keys import checked
from guardrails.core.queue_options import check_max_wait
from guardrails.core.waiting import wake
from guardrails.gates.limiter.adaptive import AdaptiveRate
from guardrails.gates.limiter.lane import Lane, Rates
from guardrails.gates.limiter.reservation import Reservation, running
from guardrails.gates.limiter.settings import Cost, Limits, amount_text, number
from guardrails.gates.limiter.signals import Drained
from guardrails.gates.limiter.turnstile import ALONE, Ident, Turnstile

#: Stands for a key or a tier that was not given: None may be one.
NOT_GIVEN: Any = type("NotGiven", (), {"__repr__": lambda _: "not given"})()


class LimiterFace(Turnstile):
    """The part of `Limiter` that callers look at and turn by hand."""

    _limits: Limits
    _adaptive: AdaptiveRate | None
    _drain_on_throttle: bool
    _key: Callable[..., Hashable] | None
    _default_tier: Hashable
    _tiered: bool

    # Settings that can be assigned to: other limits hold at once, for calls that wait too. What was used stays used.

    @property
    def requests(self) -> float | None:
        """Calls that `per` seconds let in; None if they are not limited."""
        self._untiered("requests")
        return self._limits.requests

    @requests.setter
    def requests(self, value: float) -> None:
        self._adjust("requests", value)

    @property
    def tokens(self) -> float | None:
        """Tokens that `per` seconds let in; None if they are not limited."""
        self._untiered("tokens")
        return self._limits.tokens

    @tokens.setter
    def tokens(self, value: float) -> None:
        self._adjust("tokens", value)

    @property
    def burst(self) -> Cost | None:
        """What the bucket holds: a number, a mapping where there are two dimensions, or None for what `per` lets in."""
        self._untiered("burst")
        return self._limits.burst

    @burst.setter
    def burst(self, value: Cost | None) -> None:
        self._adjust("burst", value)

    @property
    def per(self) -> float:
        """Seconds that `requests` and `tokens` are counted by."""
        return self._limits.per

    @per.setter
    def per(self, value: float) -> None:
        self._adjust("per", number("per", value))

    @property
    def tiers(self) -> Mapping[str, Any] | None:
        """Limits by tier; None if there are none. The tiers stay the same: assign other limits for each."""
        return self._limits.tiers

    @tiers.setter
    def tiers(self, value: Mapping[str, Any]) -> None:
        if not self._tiered:
            msg = f"{self.name} has no tiers: set requests, tokens, burst and per"
            raise ValueError(msg)
        self._adjust("tiers", value)

    @property
    def max_wait(self) -> float:
        """Seconds that a call may wait. Those that wait already keep the time that they were given."""
        return self._max_wait

    @max_wait.setter
    def max_wait(self, value: float) -> None:
        self._max_wait = check_max_wait(value)

    @property
    def queue(self) -> int:
        """Calls that may wait, for each key. A lower number sends none of those away that wait already."""
        return self._lanes.queue

    @queue.setter
    def queue(self, value: int) -> None:
        value = validate.whole("queue", value)
        with self._lock:
            self._lanes.queue = value

    @property
    def drain_on_throttle(self) -> bool:
        """Whether a throttled call that says when to come back drains its bucket until then."""
        return self._drain_on_throttle

    @drain_on_throttle.setter
    def drain_on_throttle(self, value: bool) -> None:
        if not isinstance(value, bool):
            msg = f"drain_on_throttle must be True or False, not {value!r}"
            raise TypeError(msg)
        self._drain_on_throttle = value

    @property
    def adaptive(self) -> AdaptiveRate | None:
        """How the rate follows what the dependency says; None if it does not."""
        return self._adaptive

    @property
    def max_retry_after(self) -> float:
        """Seconds that a drain, or a debt, lasts at most."""
        return self._lanes.longest

    def _untiered(self, argument: str) -> None:
        if self._tiered:
            msg = f"{self.name} has tiers: each has its own {argument}"
            raise AttributeError(msg)

    def _adjust(self, argument: str, value: Any) -> None:
        if argument not in ("tiers", "per"):
            self._untiered(argument)
        with self._lock:
            limits = replace(self._limits, **{argument: value})
            dimensions, tiers = limits.rates()
            if dimensions != self._costs.dimensions:
                msg = f"{self.name} limits {' and '.join(self._costs.dimensions)}, and {argument} cannot change that"
                raise ValueError(msg)
            if tiers.keys() != self._tiers.keys():
                msg = f"{self.name}: tiers must be {', '.join(map(repr, self._tiers))}, as before"
                raise ValueError(msg)
            self._costs.check(tiers)
            self._limits, self._tiers = limits, tiers
            now = self._now()
            woken = [waiter for lane in self._lanes for waiter in lane.set_rates(tiers[lane.tier], now)]
        wake(woken)

    # What it is now

    @property
    def waiting(self) -> int:
        """Calls that wait, whatever their key."""
        with self._lock:
            return sum(map(len, self._lanes))

    @property
    def keys(self) -> int:
        """Keys that are remembered; 1 without `key` and `tiers`."""
        return len(self._lanes)

    @property
    def max_rate(self) -> float:
        """What the bucket holds, in aiolimiter's word. For several dimensions or tiers there is no one number."""
        if self._tiered or len(self._costs.dimensions) > 1:
            msg = f"{self.name} has several rates"
            raise AttributeError(msg)
        return self._tiers[None].capacities[0]

    @property
    def time_period(self) -> float:
        """`per` in aiolimiter's word: seconds."""
        return self.per

    def available(self, *, key: Hashable = NOT_GIVEN, tier: Hashable = NOT_GIVEN) -> dict[str, float]:
        """What is in the buckets, by dimension; below 0 when drained, or when more was used than was there."""
        ident = self._ident(key, tier)
        with self._lock:
            now = self._now()
            lane = self._lanes.peek(ident, self._tiers[ident[0]], now)
            levels = [bucket.level(now) for bucket in lane.buckets]
        return dict(zip(self._costs.dimensions, levels, strict=True))

    def share(self, *, key: Hashable = NOT_GIVEN, tier: Hashable = NOT_GIVEN) -> float:
        """The share of the configured rate that holds now: 1.0 unless `adaptive` has lowered it."""
        ident = self._ident(key, tier)
        with self._lock:
            share = self._lanes.peek(ident, self._tiers[ident[0]], self._now()).share
        return 1.0 if share is None else share.value

    def has_capacity(
        self, amount: float | None = None, *, key: Hashable = NOT_GIVEN, tier: Hashable = NOT_GIVEN
    ) -> bool:
        """Whether `acquire` would let this amount in at once."""
        amounts = self._costs.of(amount, None, None)
        ident = self._ident(key, tier)
        with self._lock:
            now = self._now()
            lane = self._lanes.peek(ident, self._tiers[ident[0]], now)
            fits = all(bucket.fits(part, now) for bucket, part in zip(lane.buckets, amounts, strict=True))
            return lane.first is None and fits

    @property
    def reservation(self) -> Reservation:
        """What the guarded call or block that runs here has reserved, to correct it from inside.

        Raises:
            LookupError: none runs here; or the limiter counts whole calls only, which need no correction.
        """
        found = running(self)
        if found is None:
            msg = f"{self.name}: no call runs here that has a reservation"
            raise LookupError(msg)
        return found

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        tiers = [
            f"{'' if tier is None else f'{tier} '}{self._rates_text(rates)}" for tier, rates in self._tiers.items()
        ]
        whom = "" if self._key is None else " for each key"
        queue = f"{self.queue} may wait for {self.max_wait:g} s"
        return f"limiter {self.name!r}: {'; '.join(tiers)} per {self.per:g} s{whom}, {queue}"

    def _rates_text(self, rates: Rates) -> str:
        texts = []
        for dimension, rate, burst in zip(self._costs.dimensions, rates.rates, rates.capacities, strict=True):
            amount = amount_text(round(rate * self.per, 6))
            texts.append(f"{amount} {dimension}" + ("" if amount == amount_text(burst) else f" (burst {burst:g})"))
        return " and ".join(texts)

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    # By hand

    async def acquire(
        self,
        amount: float | None = None,
        *,
        requests: float | None = None,
        tokens: float | None = None,
        key: Hashable = NOT_GIVEN,
        tier: Hashable = NOT_GIVEN,
    ) -> Reservation:
        """Take an amount, waiting for its turn. Nothing needs to be given back at the end.

        Args:
            amount: tokens if the limiter limits them, else requests; by default what every call costs.
            requests, tokens: by name.
            key, tier: whose, if the limiter has keys or tiers.

        Raises:
            RateLimited: see there. TypeError, ValueError: an argument is wrong.
        """
        amounts, ident = self._costs.of(amount, requests, tokens), self._ident(key, tier)
        reservation = self._try(amounts, ident)
        return await self._wait(amounts, ident) if reservation is None else reservation

    def acquire_blocking(
        self,
        amount: float | None = None,
        *,
        requests: float | None = None,
        tokens: float | None = None,
        key: Hashable = NOT_GIVEN,
        tier: Hashable = NOT_GIVEN,
    ) -> Reservation:
        """`acquire` for threads."""
        amounts, ident = self._costs.of(amount, requests, tokens), self._ident(key, tier)
        reservation = self._try(amounts, ident)
        return self._wait_blocking(amounts, ident) if reservation is None else reservation

    def try_acquire(
        self,
        amount: float | None = None,
        *,
        requests: float | None = None,
        tokens: float | None = None,
        key: Hashable = NOT_GIVEN,
        tier: Hashable = NOT_GIVEN,
    ) -> Reservation | None:
        """Take an amount if that can be done at once, else None."""
        return self._try(self._costs.of(amount, requests, tokens), self._ident(key, tier))

    def drain(self, retry_after: float, *, key: Hashable = NOT_GIVEN, tier: Hashable = NOT_GIVEN) -> None:
        """Empty the bucket for `retry_after` seconds: nobody is let in until then, and it fills from empty.

        It lasts for `max_retry_after` at most (see `limiter`), and `reset` ends it.
        Calls whose turn comes later than they may wait are refused now. Without `key` and `tier`, every known bucket.
        """
        if isinstance(retry_after, bool) or not isinstance(retry_after, int | float) or not 0 <= retry_after < math.inf:
            msg = f"retry_after takes a number of seconds of at least 0, not {retry_after!r}"
            raise ValueError(msg)
        retry_after = min(retry_after, self._lanes.longest)
        self._on_lanes(lambda lane, now: lane.drain(retry_after, now), key, tier)
        if events.sinks:
            events.emit(Drained(self.name, retry_after))

    def reset(self, *, key: Hashable = NOT_GIVEN, tier: Hashable = NOT_GIVEN) -> None:
        """Fill the bucket and end a drain. Without `key` and `tier`, every bucket."""
        self._on_lanes(Lane.reset, key, tier)

    def _on_lanes(self, action: Callable[[Lane, float], Iterable[Any]], key: Hashable, tier: Hashable) -> None:
        everyone = key is NOT_GIVEN and tier is NOT_GIVEN
        ident = ALONE if everyone else self._ident(key, tier)
        with self._lock:
            now = self._now()
            lanes = self._lanes if everyone else (self._lanes.of(ident, self._tiers[ident[0]], now),)
            woken = [waiter for lane in lanes for waiter in action(lane, now)]
        wake(woken)

    def _ident(self, key: Hashable, tier: Hashable) -> Ident:
        for argument, value, wanted in (("key", key, self._key is not None), ("tier", tier, self._tiered)):
            if (value is NOT_GIVEN) == wanted:
                msg = f"{self.name} has {'a' if wanted else 'no'} {argument}: {'say which' if wanted else 'give none'}"
                raise TypeError(msg)
        return self._lane_ident(key if self._key is not None else None, tier)

    def _lane_ident(self, key: Hashable, tier: Hashable) -> Ident:
        if self._key is not None:
            key = checked(self.name, key)
        if not self._tiered:
            return None, key
        checked(self.name, tier, "tier")
        if tier not in self._tiers:
            if self._default_tier is NOT_GIVEN:
                known = ", ".join(map(repr, self._tiers))
                msg = f"{self.name}: there is no tier {tier!r}, only {known}; default_tier would stand for it"
                raise ValueError(msg)
            tier = self._default_tier
        return tier, key
