"""The guard itself: lets guarded calls in, and learns from what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from guardrails.core import events
from guardrails.core.clock import Clock
from guardrails.core.errors import Rejected
from guardrails.core.fixed import fixed
from guardrails.core.guard import Call, Gate, Position
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Layer
from guardrails.core.waiting import wake
from guardrails.gates.limiter.adaptive import AdaptiveRate
from guardrails.gates.limiter.bucket import Bucket, Part
from guardrails.gates.limiter.exclusive import STEADY
from guardrails.gates.limiter.face import NOT_GIVEN, LimiterFace
from guardrails.gates.limiter.lane import Rates
from guardrails.gates.limiter.reservation import Reservation, closed, opened, resumed, suspended
from guardrails.gates.limiter.settings import Costs, Limits
from guardrails.gates.limiter.signals import Drained, RateChanged
from guardrails.gates.limiter.turnstile import ALONE, Ident

#: The ticket of the quick way in: when it was taken, `v` then, where it ends in the row, and the bucket's mark.
_Quick = tuple[float, float, float, float]


@fixed("tier", "default_tier", "key", "max_keys", "cost", "clock")
class Limiter(LimiterFace, Layer, Gate):
    """A limit on how much is called in a time. Build it with `limiter(...)`, which documents the arguments."""

    positions = (Position.LIMITER,)

    def __init__(
        self,
        *,
        name: str,
        tiers: Mapping[Hashable, Rates],
        default_tier: Hashable,
        costs: Costs,
        limits: Limits,
        key: Callable[..., Hashable] | None,
        tier: Callable[..., Hashable] | None,
        max_keys: int,
        max_wait: float,
        queue: int,
        adaptive: AdaptiveRate | None,
        drain_on_throttle: bool,
        max_retry_after: float,
        clock: Clock,
    ) -> None:
        super().__init__(
            name=name,
            tiers=tiers,
            costs=costs,
            keyed=key is not None,
            max_keys=max_keys,
            max_wait=max_wait,
            queue=queue,
            adaptive=adaptive,
            max_retry_after=max_retry_after,
            clock=clock,
        )
        self._limits = limits
        self._adaptive = adaptive
        self._drain_on_throttle = drain_on_throttle
        self._default_tier = default_tier
        self._key = key
        self._tier = tier
        self._tiered = None not in tiers
        # For `reservation`. Whole calls of a fixed weight need no correction, and so nothing that it could find.
        self.contextual = costs.fixed is None or costs.dimensions != ("requests",)
        self.reads_call = costs.fixed is None or key is not None or tier is not None
        self._bucket: Bucket | None = None
        self._amount = 0.0
        # Whether a success is of no more interest.
        self._careless = not self.contextual and adaptive is None
        if STEADY and self._lane is not None and not self.contextual and costs.fixed is not None:
            # The common case has a quick way in, and no reservation.
            (self._bucket,) = self._lane.buckets
            (self._amount,) = costs.fixed

    # The contract

    def try_enter(self, call: Call) -> _Quick | Reservation | None:
        """Let the call in if its tokens are there and nobody waits; None if it has to wait.

        Raises:
            RateLimited: the bucket can never hold what it costs.
        """
        bucket = self._bucket
        if bucket is None:
            reservation = self._try(self._costs.of_call(call), self._ident_of(call))
            if reservation is None or not self.contextual or call.stream:
                return reservation
            return opened(reservation)
        clock = self._now  # read first and called then: as a method call it would take twice as long
        now = clock()
        # One step for other threads, since nothing is called from here to the last assignment: see `exclusive`.
        if self._lock.held or self._lane.first is not None:  # type: ignore[union-attr]
            return None
        virtual = bucket.anchor + (now - bucket.since) * bucket.rate
        full = bucket.full
        if full < virtual:  # noqa: PLR1730 - max() is a call
            full = virtual
        full += self._amount
        if full > virtual + bucket.limit:
            return None
        bucket.full = full
        mark = bucket.refunded
        if events.sinks:
            events.emit(events.CallAdmitted(self.name, 0.0))
        return now, virtual, full, mark

    async def enter(self, call: Call) -> Reservation:
        """Wait for its turn, in arrival order. Cancelled, it leaves nothing behind.

        Raises:
            RateLimited: see there.
        """
        reservation = await self._wait(self._costs.of_call(call), self._ident_of(call))
        return opened(reservation) if self.contextual and not call.stream else reservation

    def enter_blocking(self, call: Call) -> Reservation:
        """`enter` for sync code: blocks the thread. On an event loop's thread it refuses rather than stop the loop."""
        reservation = self._wait_blocking(self._costs.of_call(call), self._ident_of(call))
        return opened(reservation) if self.contextual and not call.stream else reservation

    def resume(self, ticket: Reservation) -> None:
        """`reservation` is this stream's, for a step of it."""
        resumed(ticket)

    def suspend(self, ticket: Reservation) -> None:
        """`reservation` is again what it was for the reader."""
        suspended(ticket)

    def settle(self, ticket: _Quick | Reservation, outcome: Outcome) -> None:
        """Learn from what came of the call. A call that a guard further in refused gets its tokens back."""
        if not self._careless or outcome.kind != "success":
            if self.contextual:
                closed(ticket)  # type: ignore[arg-type]
            if self._adaptive is not None or outcome.kind != "success":
                self._learn(ticket, outcome)
        if events.sinks:
            events.emit(events.CallSettled(self.name, outcome.kind))

    def _learn(self, ticket: _Quick | Reservation, outcome: Outcome) -> None:
        kind = outcome.kind
        if isinstance(ticket, Reservation):
            lane, taken = ticket.lane, ticket.taken
        else:
            assert self._lane is not None  # noqa: S101 - the quick way in is for a limiter with one lane
            lane, taken = self._lane, ticket[0]
        if kind == "ignored":
            # Refused further in, it never reached the dependency. Of one that was cancelled nobody knows.
            if isinstance(outcome.exception, Rejected):
                self._give_back(ticket)
            return
        wait = outcome.retry_after if kind == "throttled" and self._drain_on_throttle else None
        if wait is not None:
            wait = min(wait, self._lanes.longest)
        old = new = 1.0
        woken: list[Any] = []
        with self._lock:
            now = self._now()
            share = lane.share
            if share is not None:
                old = share.value
                changed = (kind == "throttled" and share.on_throttled(taken, now)) or (
                    kind == "success" and share.on_success(taken, now)
                )
                new = share.value
                if changed:
                    woken += lane.set_share(new, now)
            if wait is not None:
                woken += lane.drain(wait, now)
        wake(woken)
        if events.sinks and new != old:
            events.emit(RateChanged(self.name, old, new))
        if events.sinks and wait is not None:
            events.emit(Drained(self.name, wait))

    def _give_back(self, ticket: _Quick | Reservation) -> None:
        if isinstance(ticket, Reservation):
            ticket.refund()
            return
        _, virtual, full, mark = ticket
        part: Part = (self._amount, virtual + self._amount, full, mark)
        with self._lock:
            assert self._lane is not None  # noqa: S101 - the quick way in is for a limiter with one lane
            woken = self._lane.give_back(([part],), (self._amount,), self._now())
        wake(woken)

    def _ident_of(self, call: Call) -> Ident:
        if self._lane is not None:
            return ALONE
        if call.args is None or call.kwargs is None:
            msg = f"{self.name}: key and tier are functions of a call's arguments, and a block has none: use acquire()"
            raise TypeError(msg)
        key = None if self._key is None else self._key(*call.args, **call.kwargs)
        return self._lane_ident(key, NOT_GIVEN if self._tier is None else self._tier(*call.args, **call.kwargs))
