"""Lets calls into the lanes of a limiter, at once or after a wait, or turns them away.

Threads: the lock guards the lanes; it is never held across an await, a wake-up, a sink or a function of the user's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NoReturn

from guardrails.core import events
from guardrails.core.clock import Clock
from guardrails.core.deadline import remaining
from guardrails.core.waiting import on_event_loop, wake
from guardrails.gates.limiter.adaptive import AdaptiveRate
from guardrails.gates.limiter.exclusive import Exclusive
from guardrails.gates.limiter.lane import Amounts, Lane, Lanes, Pending, Rates, TaskTurn, ThreadTurn
from guardrails.gates.limiter.reservation import Reservation
from guardrails.gates.limiter.settings import Costs, amount_text
from guardrails.gates.limiter.signals import RateLimited

#: Tier and key of a lane; both None where there are none.
Ident = tuple[Hashable, Hashable]
ALONE: Ident = (None, None)


class Turnstile:
    """The base of `Limiter`: everything that goes in, whether as a guarded call or by hand, goes in here.

    Attributes:
        name: how it calls itself.
    """

    def __init__(
        self,
        *,
        name: str,
        tiers: Mapping[Hashable, Rates],
        costs: Costs,
        keyed: bool,
        max_keys: int,
        max_wait: float,
        queue: int,
        adaptive: AdaptiveRate | None,
        max_retry_after: float,
        clock: Clock,
    ) -> None:
        self.name = name
        self._max_wait = max_wait
        self._tiers = tiers
        self._costs = costs
        self._clock = clock
        self._now = clock.now
        self._lock = Exclusive()
        self._lanes = Lanes(queue, adaptive, max_keys, longest=max_retry_after)
        #: The only lane, if there is but one.
        self._lane = None if keyed or None not in tiers else self._lanes.of(ALONE, tiers[None], self._now())

    # For its reservations

    @property
    def lock(self) -> Exclusive:
        """Guards the lanes."""
        return self._lock

    @property
    def costs(self) -> Costs:
        """What calls take."""
        return self._costs

    @property
    def now(self) -> Callable[[], float]:
        """The clock's."""
        return self._now

    def _try(self, amounts: Amounts, ident: Ident) -> Reservation | None:
        now = self._now()
        woken: Iterable[Any] = ()
        parts = None
        with self._lock:
            lane = self._lane
            if lane is None:
                lane = self._lanes.of(ident, self._tiers[ident[0]], now)
            if lane.first is not None:
                # Whoever comes looks after those who wait already: the first one's own loop may be busy.
                woken = lane.advance(now)
            if lane.first is None:
                parts = lane.take(amounts, now)
        if woken:
            wake(woken)
        if parts is not None:
            if events.sinks:
                events.emit(events.CallAdmitted(self.name, 0.0))
            return Reservation(self, lane, amounts, parts, now, 0.0)
        never = lane.too_large(amounts)
        if never is not None:
            self._refuse(self._too_large(lane, amounts, never))
        return None

    async def _wait(self, amounts: Amounts, ident: Ident) -> Reservation:
        started = self._now()
        pending = Pending(amounts, started, self._patience())
        pending.waiter = turn = TaskTurn(pending)
        lane = self._join(pending, ident)
        try:
            while (delay := self._turn(lane, pending)) is not None:
                if delay == math.inf:
                    await turn.wait()
                else:
                    with self._clock.scope(delay):
                        await turn.wait()
        except BaseException:
            self._abandon(lane, pending)
            raise
        return self._arrive(lane, pending, started)

    def _wait_blocking(self, amounts: Amounts, ident: Ident) -> Reservation:
        started = self._now()
        pending = Pending(amounts, started, self._patience())
        pending.waiter = turn = ThreadTurn(pending)
        lane = self._join(pending, ident, may_wait=not on_event_loop())
        try:
            while (delay := self._turn(lane, pending)) is not None:
                turn.wait(self._clock, None if delay == math.inf else delay)
        except BaseException:  # KeyboardInterrupt in the main thread
            self._abandon(lane, pending)
            raise
        return self._arrive(lane, pending, started)

    def _patience(self) -> float:
        left = remaining()
        return self._max_wait if left is None else min(left, self._max_wait)

    def _join(self, pending: Pending, ident: Ident, *, may_wait: bool = True) -> Lane:
        refusal = None
        with self._lock:
            now = self._now()
            lane = self._lanes.of(ident, self._tiers[ident[0]], now) if self._lane is None else self._lane
            woken = () if lane.first is None else lane.advance(now)
            if lane.first is None:
                pending.parts, pending.taken = lane.take(pending.amounts, now), now
            if pending.parts is None:
                refusal = self._why_refuse(lane, pending, now, may_wait)
                if refusal is None:
                    lane.join(pending, now)
        wake(woken)
        if refusal is not None:
            self._refuse(refusal)
        return lane

    def _why_refuse(self, lane: Lane, pending: Pending, now: float, may_wait: bool) -> RateLimited | None:  # noqa: FBT001
        never = lane.too_large(pending.amounts)
        if never is not None:
            return self._too_large(lane, pending.amounts, never)
        delay = lane.delay(pending.amounts, now)
        if lane.crowded and self._lanes.queue:
            detail = f"{self._lanes.queue} calls wait already"
            return RateLimited(self.name, reason="queue_full", retry_after=delay, detail=detail)
        if lane.crowded or now + delay > pending.deadline:
            detail = "" if lane.crowded else f"its turn would come later than in {pending.patience:.3g} s"
            return RateLimited(self.name, retry_after=delay, detail=detail)
        if not may_wait:
            detail = (
                "no room now, and a sync call on the event loop's thread must not wait: make it async, or use a thread"
            )
            return RateLimited(self.name, reason="would_block", retry_after=delay, detail=detail)
        return None

    def _too_large(self, lane: Lane, amounts: Amounts, place: int) -> RateLimited:
        asked, most = amount_text(amounts[place]), amount_text(lane.buckets[place].capacity)
        detail = f"{asked} {self._costs.dimensions[place]} asked for, and {most} is all that there can ever be at once"
        return RateLimited(self.name, reason="amount_too_large", detail=f"{detail}; raise burst, or ask for less")

    def _turn(self, lane: Lane, pending: Pending) -> float | None:
        # None: the wait is over. Else sleep for so long, or until woken if that is infinite.
        woken: Iterable[Any] = ()
        delay: float | None = None
        with self._lock:
            if pending.parts is None and pending.retry_after is None:
                pending.waiter.rearm()
                now = self._now()
                if lane.due(pending, now):
                    woken = lane.advance(now)
                if pending.parts is None:
                    delay = lane.sleep(pending, now)
                    if delay <= 0 and now >= pending.deadline:
                        woken = [*woken, *lane.leave(pending, now)]
                        pending.retry_after = max(0.0, lane.delay(pending.amounts, now))
                        pending.expired = True
                        delay = None
        wake(woken)
        return delay

    def _arrive(self, lane: Lane, pending: Pending, started: float) -> Reservation:
        if pending.never is not None:
            self._refuse(self._too_large(lane, pending.amounts, pending.never))
        if pending.retry_after is not None:
            may = f"the {pending.patience:.3g} s that it may wait"
            detail = f"the rate has fallen, and its turn would come later than in {may}"
            if pending.expired:
                detail = f"it was not let in within {may}: those before it were let in late"
            self._refuse(RateLimited(self.name, reason="wait_timeout", retry_after=pending.retry_after, detail=detail))
        waited = pending.taken - started
        if events.sinks:
            events.emit(events.CallAdmitted(self.name, waited))
        return Reservation(self, lane, pending.amounts, pending.parts or [], pending.taken, waited)

    def _abandon(self, lane: Lane, pending: Pending) -> None:
        with self._lock:
            now = self._now()
            if pending.parts is not None:
                woken = lane.give_back([[part] for part in pending.parts], pending.amounts, now)
            else:
                woken = lane.leave(pending, now)
        wake(woken)

    def _refuse(self, refusal: RateLimited) -> NoReturn:
        if events.sinks:
            events.emit(events.CallRejected(self.name, refusal.reason, refusal.retry_after))
        raise refusal
