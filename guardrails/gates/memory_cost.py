"""What a call costs in memory, learned from how the process grew while such calls ran. A pure decider.

The process tree is measured a few times a second anyway. What it grew by between two measurements is shared evenly by
the calls that were in flight; the most that a call's share came to is what it was seen to cost. Calls that ended before
any measurement teach nothing. A class of sizes is charged a high percentile of what its last calls were seen to cost;
until enough were seen, the start value or the most that was seen, whichever is more.

A process that keeps what it was given (allocators do) grows less for later calls, so the estimate falls, and with it
the caution; the memory that is kept is in the measurement, though, and bounds what may still be let in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from guardrails.core.sizes import parse_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """A cost that is learned. ``memory="learned"`` is this with its defaults.

    Attributes:
        start: bytes that a call is charged until enough were seen.
        floor, ceiling: bytes; the cost never leaves these.
        percentile: of what was seen, above 0 and at most 1.
        size: a function of the call's arguments that says how large it is (a length, a number of rows): calls of the
            same power of two form a class that is learned apart. None: all calls are one class.
        enough: calls to be seen before the percentile counts.
        window: calls that a class remembers.
    """

    start: str | int = "64MiB"
    floor: str | int = "1MiB"
    ceiling: str | int = "8GiB"
    percentile: float = 0.95
    size: Callable[..., float] | None = None
    enough: int = 20
    window: int = 200

    def __post_init__(self) -> None:
        low, start, high = (parse_size(getattr(self, name), name) for name in ("floor", "start", "ceiling"))
        if not low <= start <= high:
            msg = f"sizes must rise, floor <= start <= ceiling, not {self.floor!r}, {self.start!r}, {self.ceiling!r}"
            raise ValueError(msg)
        if not 0 < self.percentile <= 1:
            msg = f"percentile takes a number above 0 and at most 1, not {self.percentile!r}"
            raise ValueError(msg)
        if not 1 <= self.enough <= self.window:
            msg = f"enough takes a number of calls from 1 to window ({self.window}), not {self.enough!r}"
            raise ValueError(msg)
        if self.size is not None and not callable(self.size):
            msg = f"size takes a function of the call's arguments, not {type(self.size).__name__}"
            raise TypeError(msg)


def size_class(size: float) -> int:
    """The class of a size: its power of two. Nothing, and less, is class 0."""
    return int(size).bit_length() if size > 0 else 0


class Charge(int):
    """Bytes that a call is charged, and the class that it belongs to."""

    group: Hashable

    @classmethod
    def of(cls, nbytes: int, group: Hashable) -> Charge:
        """A charge of so many bytes."""
        charge = cls(nbytes)
        charge.group = group
        return charge


class Account:
    """What one call was seen to grow by."""

    __slots__ = ("group", "level", "peak", "seen")

    def __init__(self, group: Hashable) -> None:
        self.group = group
        self.level = 0.0
        self.peak = 0.0
        self.seen = False


class CostBook:
    """Learns the cost of calls by class. Called under the owner's lock."""

    def __init__(self, config: Learned) -> None:
        self._config = config
        self._start = parse_size(config.start, "start")
        self._floor = parse_size(config.floor, "floor")
        self._ceiling = parse_size(config.ceiling, "ceiling")
        self._seen: dict[Hashable, deque[float]] = {}
        self._costs: dict[Hashable, int] = {}
        self._open: set[Account] = set()
        self._last: float | None = None

    def cost(self, group: Hashable) -> Charge:
        """What to charge a call of this class."""
        return Charge.of(self._costs.get(group, self._start), group)

    def begin(self, group: Hashable) -> Account:
        """A call of this class runs from now on."""
        account = Account(group)
        self._open.add(account)
        return account

    def reading(self, total: float) -> None:
        """The process tree holds `total` bytes now."""
        before, self._last = self._last, total
        if before is None or not self._open:
            return
        share = (total - before) / len(self._open)
        for account in self._open:
            account.level += share
            account.peak = max(account.peak, account.level)
            account.seen = True

    def end(self, account: Account) -> None:
        """The call is over."""
        self._open.discard(account)
        if not account.seen:
            return
        seen = self._seen.get(account.group)
        if seen is None:
            seen = self._seen[account.group] = deque(maxlen=self._config.window)
        seen.append(account.peak)
        if len(seen) < self._config.enough:
            cost = max(self._start, *seen)
        else:
            cost = sorted(seen)[math.ceil(self._config.percentile * len(seen)) - 1]
        self._costs[account.group] = int(max(self._floor, min(self._ceiling, cost)))


__all__ = ["Learned"]
