"""Token bucket arithmetic, pure: no clock, no lock, no queue. Times are passed in, in seconds.

A bucket holds `capacity` tokens and refills at `rate` tokens a second. It is kept as a virtual clock (J. S. Turner's
leaky bucket of 1986 as ITU-T I.371 writes it down, the generic cell rate algorithm), in tokens: `v(t)` grows with the
rate, and each taking moves `full`, the virtual moment at which the bucket is full again, on by its amount::

    v(t) ──────────────▶│◀── debt = full - v ──▶│          level = capacity - debt
         ├──────────────┼───────────────────────┼──────────────▶ tokens
                       now                     full

So takings stand in a row, first in first out, and the row drains at the rate. From this follows what the limiter
promises: in no window of `w` seconds is more than ``capacity + rate x w`` taken.

Giving back. Tokens that were taken and not used may go back only as far as the bucket would hold them now had they
never been taken; more would break the promise, since a full bucket takes no more. Of a taking, that is the part that
has not drained yet. Where it ends in the row is known from below by two bounds: where it ended at first less all that
was given back since, and the time it was taken plus its amount. The larger is used: never too much is given back, at
one moment everything is, and in a busy bucket, whose row is long, nearly always all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: One taking: its amount; where it ends in the row at the earliest; where it ended when it was taken; and how much had
#: been given back to the bucket until then.
Part = tuple[float, float, float, float]

#: Rounding that is forgiven, as a share of what the bucket holds and of what it gets in a second. So a call that waits
#: exactly as long as was computed does fit then.
SLACK = 1e-9


class Bucket:
    """One token bucket, full at first.

    Attributes:
        capacity: tokens that it holds.
        rate: tokens a second that it gets.
        full: see the module's picture.
        limit: what `full` may be ahead of `v` at most: the capacity and a rounding error.
        refunded: tokens given back so far.
        anchor, since: ``v(since) = anchor``.
    """

    __slots__ = ("_sealed", "anchor", "capacity", "full", "limit", "rate", "refunded", "since")

    def __init__(self, capacity: float, rate: float, now: float) -> None:
        self.capacity = capacity
        self.rate = rate
        self.limit = capacity + (capacity + rate) * SLACK
        self.anchor = 0.0
        self.since = now
        self.full = 0.0
        self.refunded = 0.0
        self._sealed = 0.0

    def virtual(self, now: float) -> float:
        """`v(now)`."""
        return self.anchor + (now - self.since) * self.rate

    def time_of(self, virtual: float) -> float:
        """The time at which `v` comes to `virtual`."""
        return self.since + (virtual - self.anchor) / self.rate

    def level(self, now: float) -> float:
        """Tokens in the bucket; below 0 when it is drained or more was used than was there."""
        return self.capacity - max(0.0, self.full - self.virtual(now))

    def fits(self, amount: float, now: float) -> bool:
        """Whether `amount` can be taken now. 0 can be unless the bucket is in debt."""
        virtual = self.virtual(now)
        return max(self.full, virtual) + amount <= virtual + self.limit

    def take(self, amount: float, now: float) -> Part:
        """Take `amount`, whether it is there or not."""
        virtual = self.virtual(now)
        self.full = full = max(self.full, virtual) + amount
        return amount, virtual + amount, full, self.refunded

    def give_back(self, parts: list[Part], amount: float, now: float) -> float:
        """Give back `amount` of `parts`, the newest first; they are changed to what is left.

        Returns what the bucket took: less than `amount` where it would have overflowed.
        """
        virtual = self.virtual(now)
        taken = 0.0
        while parts and amount > 0:
            size, floor, end, mark = parts.pop()
            asked = min(size, amount)
            amount -= asked
            back = 0.0
            if end > self._sealed:
                back = max(0.0, min(asked, max(floor, end - (self.refunded - mark)) - virtual))
                self.full -= back
                self.refunded += back
                taken += back
            if asked < size:
                # Its own giving back is left out of the bound, hence the later mark.
                parts.append((size - asked, floor - back, end - back, mark + back))
        return taken

    def drain(self, until: float, now: float) -> None:
        """Have it empty until the time `until`, when it starts to fill. What was taken before cannot be given back."""
        until = max(until, now)
        virtual = self.virtual(until)
        if until > self.since:
            # Anchored there, the bucket is empty until then whatever becomes of the rate.
            self.anchor, self.since = virtual, until
        self.full = self._sealed = max(self.full, virtual + self.capacity)

    def resize(self, capacity: float, rate: float, now: float) -> None:
        """Hold `capacity` from now on, and refill at `rate`. What was used stays used; a drain stays one."""
        self.set_rate(rate, now)
        if now < self.since:  # drained until then, when it is empty whatever it holds
            self.full += capacity - self.capacity
            self._sealed = max(self._sealed, self.full)
        self.capacity = capacity
        self.limit = capacity + (capacity + rate) * SLACK

    def set_rate(self, rate: float, now: float) -> None:
        """Refill at another rate from now on."""
        if now > self.since:
            self.anchor, self.since = self.virtual(now), now
        self.rate = rate

    def reset(self, now: float) -> None:
        """Full again, and no longer drained. What was taken before cannot be given back."""
        virtual = max(self.virtual(now), self.full)
        self.anchor, self.since = virtual, now
        self.full = self._sealed = virtual


class Plan:
    """When calls that wait for the same buckets get their turn, one after the other, if nothing else happens.

    Attributes:
        at: the turn of the last one that was added.
    """

    __slots__ = ("_buckets", "_fulls", "at")

    def __init__(self, buckets: Sequence[Bucket], now: float) -> None:
        self._buckets = buckets
        self._fulls = [bucket.full for bucket in buckets]
        self.at = now

    def when(self, amounts: Iterable[float], now: float) -> float:
        """When a call that takes `amounts`, one from each bucket and all at once, would have its turn."""
        at = max(self.at, now)
        for bucket, full, amount in zip(self._buckets, self._fulls, amounts, strict=True):
            at = max(at, bucket.time_of(full + amount - bucket.capacity))
        return at

    def add(self, amounts: Iterable[float], at: float) -> None:
        """Count with a call that takes `amounts` at the time `at`."""
        self.at = at
        self._fulls = [
            max(full, bucket.virtual(at)) + amount
            for bucket, full, amount in zip(self._buckets, self._fulls, amounts, strict=True)
        ]
