"""The retry budget: further attempts are paid for by a share of the traffic, so that an outage is not made worse.

Three attempts a call are three times the load on a dependency that is down because of its load. With a budget of 0.1,
further attempts are at most a tenth of the calls, whatever `attempts` allows.

The idea is Finagle's `RetryBudget` and Envoy's retry budgets: a call deposits `share` of a credit, a further attempt
withdraws a whole one. Those two forget deposits after a time window; here, as in gRPC's retry throttling (proposal A6)
and the AWS SDKs, what is saved has an upper bound instead. So a deposit is the counting of a call, without a clock or
a lock, and all arithmetic waits until somebody wants to withdraw: what a bucket with a bound holds then does not depend
on when the deposits came.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable

from guardrails.core.clock import SYSTEM_CLOCK, Clock

#: Ten tenths, added up one by one, are a little less than 1.
_ROUNDING = 1e-9


class RetryBudget:
    """A balance of further attempts, for one guard, or for several retries and hedges that share the object.

    In any stretch of time, however calls and failures fall: at most ``most + share * calls + min_per_second * seconds``
    further attempts; from the start on, at most ``reserve + share * calls + min_per_second * seconds``.

    Args:
        share: credits that each call brings, from 0 to 1.
        min_per_second: credits that time brings while the balance is below `reserve`: for those who make few calls.
        reserve: the balance at the start, and up to which time fills it.
        most: the balance up to which calls fill it. It covers a burst of failures amid calls that succeed.
        clock: for tests.

    Raises:
        TypeError, ValueError: an argument is not such a number.

    Threads: may be shared. Calls are counted without the lock.
    """

    __slots__ = ("_attempts", "_balance", "_calls", "_clock", "_counts_calls", "_lock", "_seen_attempts", "_seen_calls",
                 "_time", "min_per_second", "most", "reserve", "share")  # fmt: skip

    def __init__(
        self,
        share: float = 0.1,
        *,
        min_per_second: float = 1.0,
        reserve: float = 10.0,
        most: float = 100.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        _number("share", share)
        if share > 1:
            msg = f"share takes a share of the calls from 0 to 1 (0.1 is one in ten), not {share!r}"
            raise ValueError(msg)
        _number("min_per_second", min_per_second)
        _number("reserve", reserve)
        _number("most", most)
        if most < reserve:
            msg = f"most takes at least reserve, {reserve:g}, not {most!r}"
            raise ValueError(msg)
        self.share = share
        self.min_per_second = min_per_second
        self.reserve = reserve
        self.most = most
        self._clock = clock
        self._lock = threading.RLock()
        self._balance = float(reserve)
        self._time = clock.now()
        # `next` of a count is one step that no other thread interrupts, and the cheapest counter there is.
        self._calls = itertools.count()
        self._attempts = itertools.count()
        self._seen_calls = 0
        self._seen_attempts = 0
        self._counts_calls = False

    @property
    def balance(self) -> float:
        """Credits at this moment; a further attempt costs 1."""
        with self._lock:
            self._update()
            return self._balance

    def count_calls(self) -> Callable[[], object]:
        """The function that a guard calls once for each call that it sees."""
        self._counts_calls = True
        return self._calls.__next__

    def count_attempts(self) -> Callable[[], object]:
        """The same for a guard that may sit inside another one (hedge in retry) and sees each attempt as a call.

        While anybody counts calls, these are not counted: a call would bring its share twice.
        """
        return self._attempts.__next__

    def withdraw(self) -> bool:
        """Pay for one further attempt; whether the balance allowed it."""
        with self._lock:
            self._update()
            if self._balance < 1 - _ROUNDING:
                return False
            self._balance = max(0.0, self._balance - 1)
            return True

    def give_back(self) -> None:
        """Return what was withdrawn for an attempt that was then not made."""
        with self._lock:
            self._balance = min(self.most, self._balance + 1)

    def describe(self) -> str:
        """A few words for `Pipeline.describe`."""
        return f"budget {self.share:.3g} of the calls"

    def __repr__(self) -> str:
        return f"<RetryBudget: {self.share:g} of the calls, {self.min_per_second:g} a second, balance {self.balance:g}>"

    def _update(self) -> None:
        now = self._clock.now()
        elapsed, self._time = now - self._time, now
        # Reading a count takes a number out of it, which is nobody's call.
        calls = next(self._calls) - self._seen_calls
        self._seen_calls += calls + 1
        attempts = next(self._attempts) - self._seen_attempts
        self._seen_attempts += attempts + 1
        if self._balance < self.reserve:
            self._balance = min(self.reserve, self._balance + elapsed * self.min_per_second)
        earned = self.share * (calls if self._counts_calls else attempts)
        if earned and self._balance < self.most:
            self._balance = min(self.most, self._balance + earned)


def budget_of(budget: float | RetryBudget | None, clock: Clock) -> RetryBudget | None:
    """What a guard's `budget` argument means: a share makes a private budget, None none."""
    if budget is None or isinstance(budget, RetryBudget):
        return budget
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        msg = f"budget takes a share of the calls from 0 to 1, a RetryBudget or None, not {type(budget).__name__}"
        raise TypeError(msg)
    if not 0 <= budget <= 1:
        msg = f"budget takes a share of the calls from 0 to 1 (0.1 is one in ten), not {budget!r}"
        raise ValueError(msg)
    return RetryBudget(budget, clock=clock)


def _number(argument: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        msg = f"{argument} takes a number, not {type(value).__name__}"
        raise TypeError(msg)
    if not (value >= 0 and math.isfinite(value)):
        msg = f"{argument} takes a number from 0 on, not {value!r}"
        raise ValueError(msg)


__all__ = ["RetryBudget"]
