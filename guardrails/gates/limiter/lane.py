"""One lane of a limiter: the buckets of one key, and the calls that wait for them in arrival order.

Every method of a `Lane` is called under its limiter's lock. Those that let calls in, or turn them away, return the
waiters to be woken once the lock is free again.

The first in the queue sets a timer for the moment at which its tokens are there. The others are woken when they are let
in, become the first, or are turned away: whatever lengthens the queue (a drain, a lower rate, a call that used more
than it had reserved) computes every turn anew, and those whose turn would come too late need not wait for it.

Calls of one lane may wait in several threads and event loops, and the first may be in one that is blocked. So the first
of each thread has a timer too, a little after its own turn and at its deadline at the latest: it then lets in, on their
behalf and in order, whose tokens are there. In one event loop that is one timer, however many calls wait.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from guardrails.core.retry_after import MAX_RETRY_AFTER
from guardrails.core.waiting import TaskWaiter, ThreadWaiter, Waiter, WaitingRoom
from guardrails.gates.limiter.adaptive import AdaptiveRate, Share
from guardrails.gates.limiter.bucket import Bucket, Part, Plan

Amounts = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rates:
    """The limits of one tier: for each dimension, how many tokens its bucket holds, and how many it gets a second."""

    capacities: Amounts
    rates: Amounts


#: Seconds after its turn at which a call that is not the first looks for itself. The first is on time, as a rule.
LATE = 0.05


class Pending:
    """A call that waits.

    Attributes:
        amounts: what it takes.
        patience, deadline: seconds that it may wait, and when they are over.
        turn: when it is let in, if nothing else happens.
        parts: what it has taken, once it was let in, at the time `taken`.
        retry_after: once it was turned away.
        expired: whether it was turned away since its time was over.
        never: the dimension in which it can never fit, if it was turned away for that.
        home: the thread that it waits in.
        hurried: whether one that came before it to its thread has a later deadline: it needs a timer of its own.
        waiter: wakes it.
    """

    __slots__ = (
        "amounts",
        "deadline",
        "expired",
        "home",
        "hurried",
        "never",
        "parts",
        "patience",
        "retry_after",
        "taken",
        "turn",
        "waiter",
    )

    def __init__(self, amounts: Amounts, came: float, patience: float) -> None:
        self.amounts = amounts
        self.patience = patience
        self.deadline = came + patience
        self.turn = came
        self.parts: list[Part] | None = None
        self.retry_after: float | None = None
        self.expired = False
        self.never: int | None = None
        self.home = threading.get_ident()
        self.hurried = False
        self.taken = 0.0
        self.waiter: Turn


class TaskTurn(TaskWaiter[Pending]):
    """A task that waits. Unlike a plain waiter it can be woken more than once."""

    __slots__ = ()

    def rearm(self) -> None:
        """Sleep again: under the lock, so that no wake-up is lost."""
        TaskWaiter.__init__(self, self.ticket)


class ThreadTurn(ThreadWaiter[Pending]):
    """A thread that waits."""

    __slots__ = ()

    def rearm(self) -> None:
        """Sleep again: under the lock, so that no wake-up is lost."""
        ThreadWaiter.__init__(self, self.ticket)


Turn = TaskTurn | ThreadTurn


class _Home:
    """The calls of a lane that wait in one thread, the oldest first, and the latest deadline there has been."""

    __slots__ = ("latest", "pending")

    def __init__(self) -> None:
        self.latest = -math.inf
        self.pending: dict[Pending, None] = {}


class _Queue(WaitingRoom[Pending]):
    __slots__ = ()

    def __iter__(self) -> Iterator[Pending]:
        return (waiter.ticket for waiter in self._waiters)


class Lane:
    """See the module.

    Attributes:
        ident: tier and key, as its limiter's table knows it.
        buckets: one for each dimension.
        first: who sets the timer; None exactly when nobody waits.
        share: what is left of the configured rate; None if the rate is not adaptive.
    """

    __slots__ = ("_homes", "_longest", "_now", "_plan", "_rates", "_room", "buckets", "first", "ident", "share")

    def __init__(  # noqa: PLR0917
        self,
        ident: tuple[Hashable, Hashable],
        rates: Rates,
        queue: int,
        adaptive: AdaptiveRate | None,
        now: float,
        longest: float = MAX_RETRY_AFTER,
    ) -> None:
        self.ident = ident
        self._longest = longest
        self.buckets = tuple(
            Bucket(capacity, rate, now) for capacity, rate in zip(rates.capacities, rates.rates, strict=True)
        )
        self.first: Pending | None = None
        self.share = None if adaptive is None else Share(adaptive)
        self._rates = rates.rates
        self._room = _Queue(queue)
        self._homes: dict[int, _Home] = {}
        self._plan: Plan | None = None
        self._now = now

    def __len__(self) -> int:
        return len(self._room)

    @property
    def tier(self) -> Hashable:
        """Whose limits it has; None where there are no tiers."""
        return self.ident[0]

    # Taking

    def take(self, amounts: Amounts, now: float) -> list[Part] | None:
        """Take from every bucket, or from none and return None."""
        # `Bucket.fits` and `take` without the calls, which would cost more than the work.
        parts: list[Part] = []
        place = 0
        for bucket in self.buckets:
            amount = amounts[place]
            virtual = bucket.anchor + (now - bucket.since) * bucket.rate
            full = bucket.full
            full = (full if full > virtual else virtual) + amount  # noqa: FURB136
            if full > virtual + bucket.limit:
                return None
            parts.append((amount, virtual + amount, full, bucket.refunded))
            place += 1  # noqa: SIM113 - enumerate and zip cost as much as the rest
        place = 0
        for bucket in self.buckets:
            # Anew: should the garbage collector have run a correction meanwhile (see the limiter's lock), it counts.
            amount, floor, _, _ = parts[place]
            full = bucket.full + amount
            bucket.full = full if full > floor else floor  # noqa: FURB136
            place += 1  # noqa: SIM113
        return parts

    def delay(self, amounts: Amounts, now: float) -> float:
        """Seconds until a call that came now would have its turn."""
        return self._planned(now).when(amounts, now) - now

    def too_large(self, amounts: Amounts) -> int | None:
        """The dimension in which `amounts` can never fit."""
        for place, (bucket, amount) in enumerate(zip(self.buckets, amounts, strict=True)):
            if amount > bucket.capacity:
                return place
        return None

    def untouched(self, now: float) -> bool:
        """Whether a new lane would be just the same."""
        full = all(bucket.full <= bucket.virtual(now) for bucket in self.buckets)
        return full and self.first is None and (self.share is None or self.share.value == 1.0)

    # Waiting

    @property
    def crowded(self) -> bool:
        """Whether nobody more may wait."""
        return self._room.full

    def join(self, pending: Pending, now: float) -> None:
        """Wait at the end."""
        plan = self._planned(now)
        pending.turn = plan.when(pending.amounts, now)
        plan.add(pending.amounts, pending.turn)
        self._plan = plan
        self._room.join(pending.waiter)
        home = self._homes.get(pending.home)
        if home is None:
            home = self._homes[pending.home] = _Home()
        home.pending[pending] = None
        pending.hurried = pending.deadline < home.latest
        home.latest = max(home.latest, pending.deadline)
        if self.first is None:
            self.first = pending

    def leave(self, pending: Pending, now: float) -> list[Waiter[Pending]]:
        """Go away without having been let in."""
        self._room.leave(pending.waiter)
        self._plan = None
        return [*self._gone((pending,)), *self.advance(now)]

    def advance(self, now: float) -> list[Waiter[Pending]]:
        """Let in, from the first on, whose tokens are there; whoever is the first then sets the timer."""
        before, self._now = self.first, now
        woken = self._room.grant(self._take_pending)
        if woken:
            woken += self._gone([waiter.ticket for waiter in woken])
        self.first = next(iter(self._room), None)
        if self.first is None:
            self._plan = None
        elif self.first is not before and self.first.waiter not in woken[-1:]:
            woken.append(self.first.waiter)
        return woken

    def due(self, pending: Pending, now: float) -> bool:
        """Whether a call that waits has to look who can be let in."""
        return self.first is pending or now >= min(pending.turn + LATE, pending.deadline)

    def sleep(self, pending: Pending, now: float) -> float:
        """Seconds for which a call that waits may sleep unless it is woken; 0 and less when its time is over."""
        if self.first is pending:
            at = self._first_turn(now)
        elif pending.hurried or next(iter(self._homes[pending.home].pending)) is pending:
            at = pending.turn + LATE
            if at <= now:  # those before it are late: it looks after them
                at = self._first_turn(now) + LATE
        else:
            return math.inf
        return min(at, pending.deadline) - now

    def _first_turn(self, now: float) -> float:
        assert self.first is not None  # noqa: S101 - there is a waiter
        return Plan(self.buckets, now).when(self.first.amounts, now)

    def _gone(self, gone: Iterable[Pending]) -> list[Waiter[Pending]]:
        """Calls that wait no longer; returns those that are the first of their threads now, to set their timers."""
        homes: dict[int, _Home] = {}
        for pending in gone:
            home = self._homes.get(pending.home)
            if home is None or pending not in home.pending:
                continue
            if next(iter(home.pending)) is pending:
                homes[pending.home] = home
            del home.pending[pending]
            if not home.pending:
                del self._homes[pending.home]
        return [next(iter(home.pending)).waiter for home in homes.values() if home.pending]

    def _take_pending(self, pending: Pending) -> bool:
        pending.parts, pending.taken = self.take(pending.amounts, self._now), self._now
        return pending.parts is not None

    def _planned(self, now: float) -> Plan:
        # Kept while calls join and are let in, as planned; anything else that happens makes a new one.
        plan = self._plan
        if plan is None:
            plan = Plan(self.buckets, now)
            for pending in self._room:
                plan.add(pending.amounts, plan.when(pending.amounts, now))
            if self.first is not None:
                self._plan = plan
        return plan

    # What changes everybody's turn

    def give_back(self, parts: Sequence[list[Part]], amounts: Sequence[float], now: float) -> list[Waiter[Pending]]:
        """Give back `amounts` of `parts`."""
        for bucket, mine, amount in zip(self.buckets, parts, amounts, strict=True):
            if amount > 0:
                bucket.give_back(mine, amount, now)
        return self._sooner(now)

    def charge(self, parts: Sequence[list[Part]], amounts: Sequence[float], now: float) -> list[Waiter[Pending]]:
        """Take `amounts` more, into debt if need be, and add them to `parts`: up to what `longest` seconds pay off."""
        for bucket, mine, amount in zip(self.buckets, parts, amounts, strict=True):
            if amount > 0:
                most = max(0.0, bucket.level(now) + bucket.rate * self._longest)
                mine.append(bucket.take(min(amount, most), now))
        return self._later(now)

    def drain(self, seconds: float, now: float) -> list[Waiter[Pending]]:
        """Let nobody in for `seconds`, and start empty then."""
        for bucket in self.buckets:
            bucket.drain(now + seconds, now)
        return self._later(now)

    def reset(self, now: float) -> list[Waiter[Pending]]:
        """Start full."""
        for bucket in self.buckets:
            bucket.reset(now)
        return self._sooner(now)

    def set_rates(self, rates: Rates, now: float) -> list[Waiter[Pending]]:
        """Have other limits. Calls that can never fit any more are turned away."""
        share = 1.0 if self.share is None else self.share.value
        self._rates = rates.rates
        for bucket, capacity, rate in zip(self.buckets, rates.capacities, rates.rates, strict=True):
            bucket.resize(capacity, rate * share, now)
        too_large = []
        for pending in self._room:
            pending.never = self.too_large(pending.amounts)
            if pending.never is not None:
                pending.retry_after = 0.0
                too_large.append(pending.waiter)
        for waiter in too_large:
            self._room.leave(waiter)
        woken = [*too_large, *self._gone([waiter.ticket for waiter in too_large])]
        return [*woken, *self.advance(now), *self._later(now), *self._sooner(now)]

    def set_queue(self, queue: int) -> None:
        """Have another number of calls that may wait. Those that wait already stay."""
        self._room.capacity = queue

    def set_share(self, share: float, now: float) -> list[Waiter[Pending]]:
        """Fill at this share of the configured rate."""
        for bucket, rate in zip(self.buckets, self._rates, strict=True):
            bucket.set_rate(rate * share, now)
        return [*self._later(now), *self._sooner(now)]

    def _sooner(self, now: float) -> list[Waiter[Pending]]:
        if self.first is None:
            return []
        self._plan = None
        first = self.first
        woken = self.advance(now)
        if self.first is first:
            woken.append(first.waiter)  # its timer is set too late
        return woken

    def _later(self, now: float) -> list[Waiter[Pending]]:
        if self.first is None:
            return []
        plan = Plan(self.buckets, now)
        late = []
        for pending in self._room:
            at = plan.when(pending.amounts, now)
            if at > pending.deadline:
                pending.retry_after = at - now
                late.append(pending.waiter)
            else:
                pending.turn = at
                plan.add(pending.amounts, at)
        for waiter in late:
            self._room.leave(waiter)
        self._plan = plan
        return [*late, *self._gone([waiter.ticket for waiter in late]), *self.advance(now)]


class Lanes:
    """The lanes of a limiter, made when their key is first seen. Called under the limiter's lock."""

    __slots__ = ("_adaptive", "_lanes", "_queue", "longest", "max_keys")

    #: How many of the longest unused lanes are looked at to find one that nobody would miss.
    LOOK = 32

    def __init__(
        self,
        queue: int,
        adaptive: AdaptiveRate | None,
        max_keys: float = math.inf,
        *,
        longest: float = MAX_RETRY_AFTER,
    ) -> None:
        self.max_keys = max_keys
        self.longest = longest
        self._adaptive = adaptive
        self._queue = queue
        self._lanes: dict[Hashable, Lane] = {}  # least recently used first

    def __len__(self) -> int:
        return len(self._lanes)

    def __iter__(self) -> Iterator[Lane]:
        return iter(list(self._lanes.values()))

    def of(self, ident: tuple[Hashable, Hashable], rates: Rates, now: float) -> Lane:
        """The lane of `ident`. It counts as a use."""
        lane = self._lanes.pop(ident, None)
        if lane is None:
            while len(self._lanes) >= self.max_keys and self._evict(now):
                pass
            lane = self._new(ident, rates, now)
        self._lanes[ident] = lane
        return lane

    def peek(self, ident: tuple[Hashable, Hashable], rates: Rates, now: float) -> Lane:
        """The lane of `ident` to look at: if there is none, one as it would be, which is not kept."""
        lane = self._lanes.get(ident)
        return self._new(ident, rates, now) if lane is None else lane

    def _new(self, ident: tuple[Hashable, Hashable], rates: Rates, now: float) -> Lane:
        return Lane(ident, rates, self._queue, self._adaptive, now, self.longest)

    @property
    def queue(self) -> int:
        """Calls that may wait, for each key."""
        return self._queue

    @queue.setter
    def queue(self, value: int) -> None:
        self._queue = value
        for lane in self._lanes.values():
            lane.set_queue(value)

    def _evict(self, now: float) -> bool:
        # Of the longest unused, one that is as good as new; else the longest unused of all. One in which calls wait is
        # in use, and stays, even if there are too many then.
        victim: Lane | None = None
        for lane in list(islice(self._lanes.values(), self.LOOK)):
            if lane.first is not None:
                self._lanes[lane.ident] = self._lanes.pop(lane.ident)
            elif lane.untouched(now):
                victim = lane
                break
            else:
                victim = lane if victim is None else victim
        if victim is None:
            return False
        del self._lanes[victim.ident]
        return True
