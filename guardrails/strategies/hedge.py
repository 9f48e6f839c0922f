"""Hedge: when the first attempt is slow, start another one beside it; the first success is the answer.

::

    attempt 1 ├──────────── delay ────────────┤┄┄┄┄┄┄┄ slow ┄┄┄┄┄┄┄┤✗ cancelled
    attempt 2                                 ├────── answers ─────┤✓

The idea is Dean and Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013: wait as long as all but the
slowest calls take (a delay at the 95th percentile costs about 5 % more calls), so that only the tail is asked twice.

Async calls only: nothing can cancel a sync function, and of two streams one would be half read.

Threads: the lock guards the latencies. Each call is driven by one task group, on its own loop.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio

from guardrails.core import events
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.guard import DrivenCall, Position, Strategy
from guardrails.core.outcome import refusal_of
from guardrails.core.pipeline import Layer
from guardrails.strategies.backoff import seconds
from guardrails.strategies.budget import RetryBudget, budget_of

#: How many latencies a percentile needs to be known, and on how many it looks back.
MIN_LATENCIES = 20
MAX_LATENCIES = 1000


@dataclass(frozen=True, slots=True)
class HedgeStarted(events.Event):
    """No answer within `delay` seconds: attempt number `attempt` (2 is the first hedge) was started beside the rest."""

    attempt: int
    delay: float


@dataclass(frozen=True, slots=True)
class HedgeWon(events.Event):
    """A call was answered by attempt number `attempt`, which was a hedge; the others were cancelled."""

    attempt: int


class Latencies:
    """A percentile of the last `size` latencies, by the nearest rank. Pure; not for several threads at once."""

    __slots__ = ("_last", "_sorted", "size")

    def __init__(self, size: int = MAX_LATENCIES) -> None:
        self.size = size
        self._last: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._last)

    def add(self, latency: float) -> None:
        """Remember one, and forget the oldest if there are too many."""
        if len(self._last) == self.size:
            del self._sorted[bisect.bisect_left(self._sorted, self._last.popleft())]
        self._last.append(latency)
        bisect.insort(self._sorted, latency)

    def percentile(self, share: float) -> float:
        """The smallest latency that `share` of them do not exceed. There must be one."""
        return self._sorted[max(0, math.ceil(share * len(self._sorted)) - 1)]


class _Race:
    """The attempts of one call."""

    __slots__ = ("call", "changed", "error", "failures", "result", "running", "scopes", "winner")

    def __init__(self, call: DrivenCall) -> None:
        self.call = call
        self.changed = anyio.Event()
        self.scopes: list[anyio.CancelScope] = []  # one for each attempt that was started
        self.running = 0
        self.winner = 0  # the number of the attempt that succeeded
        self.result: Any = None
        self.error: BaseException | None = None  # ends the race though it is no success
        self.failures: list[tuple[Exception | None, Any]] = []

    @property
    def started(self) -> int:
        """Attempts that were started."""
        return len(self.scopes)

    @property
    def over(self) -> bool:
        return self.winner > 0 or self.error is not None or self.running == 0

    def raised(self, exc: BaseException) -> None:
        """An attempt ended with `exc`."""
        if self.winner or self.error is not None:
            return  # how a loser ends
        refused = refusal_of(exc) is not None
        if isinstance(exc, Exception) and (refused or self.call.judge(exc).kind != "ignored"):
            self.failures.append((exc, None))
            return
        # The caller's own mistake, which another attempt would not mend; or a cancellation that nobody here asked for,
        # KeyboardInterrupt and the like, which the caller has to see.
        self.error = exc

    def returned(self, number: int, result: Any) -> bool:
        """Attempt `number` ended with `result`; whether that is an answer."""
        if self.call.judge_result(result).kind in ("failure", "throttled"):
            self.failures.append((None, result))
            return False
        if not self.winner and self.error is None:
            self.winner, self.result = number, result
        return True

    def loss(self) -> tuple[BaseException | None, Any]:
        """What a race without a winner ends with: an error, or a result that is a failure. Asked once."""
        ending: tuple[BaseException | None, Any] = self.error, None
        if self.error is None:
            # What a guard refused never reached the dependency: a real failure, where there is one, says more.
            real = [failure for failure in self.failures if refusal_of(failure[0]) is None]
            ending = (real or self.failures)[0]
        self.failures, self.error = [], None  # their tracebacks hold the frames that hold this
        return ending


class Hedge(Layer, Strategy):
    """Parallel attempts against slowness. Build it with `hedge(...)`, which documents the arguments."""

    positions = (Position.HEDGE,)

    def __init__(
        self,
        *,
        delay: float | None,
        percentile: float | None,
        attempts: int,
        budget: RetryBudget | None,
        name: str,
        clock: Clock,
    ) -> None:
        self.name = name
        self.attempts = attempts
        self.budget = budget
        self.percentile = percentile
        self._fixed = delay
        self._clock = clock
        self._tally = None if budget is None else budget.count_attempts()
        self._lock = threading.RLock()
        self._latencies = Latencies()

    @property
    def delay(self) -> float | None:
        """Seconds after which the next attempt is started now; None while the percentile is not known."""
        if self.percentile is None:
            return self._fixed
        with self._lock:
            return self._fixed if len(self._latencies) < MIN_LATENCIES else self._latencies.percentile(self.percentile)

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        after = f"{self._fixed:g} s" if self.percentile is None else f"percentile {self.percentile:g} of the latency"
        budget = "no budget" if self.budget is None else self.budget.describe()
        return f"hedge {self.name!r}: another attempt after {after}, {self.attempts} at most, {budget}"

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    async def run(self, call: DrivenCall, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Race the attempts of one call."""
        if self._tally is not None:
            self._tally()
        race = _Race(call)
        async with anyio.create_task_group() as group:

            def start() -> None:
                race.scopes.append(anyio.CancelScope())
                race.running += 1
                group.start_soon(self._attempt, race, race.started, proceed)

            start()
            await self._referee(race, start)
            # Each by itself: cancelled as a group, anyio 4.16 takes a cancellation too many back from this task, and
            # somebody else's that comes in the same turn is lost.
            for scope in race.scopes:
                scope.cancel()
        # The task group is left before anything is raised: it would wrap it in an ExceptionGroup.
        if race.winner:
            if race.winner > 1 and events.sinks:
                events.emit(HedgeWon(self.name, race.winner))
            return race.result
        error, result = race.loss()
        if error is None:
            return result
        try:
            raise error
        finally:
            del error  # its traceback holds this frame

    async def _referee(self, race: _Race, start: Callable[[], None]) -> None:
        """Return when the race is over; start attempts meanwhile."""
        delay = self.delay if self.attempts > 1 else None
        due = math.inf if delay is None else self._clock.now() + delay
        while not race.over:
            left = due - self._clock.now()
            if left > 0:
                race.changed = anyio.Event()
                if due == math.inf:
                    await race.changed.wait()
                else:
                    with self._clock.scope(left):
                        await race.changed.wait()
                continue
            assert delay is not None  # noqa: S101 - else it is never due
            if self.budget is not None and not self.budget.withdraw():
                due = math.inf
                continue
            start()
            if events.sinks:
                events.emit(HedgeStarted(self.name, race.started, delay))
            due = math.inf if race.started == self.attempts else self._clock.now() + delay

    async def _attempt(self, race: _Race, number: int, proceed: Callable[[], Awaitable[Any]]) -> None:
        """One attempt, in a task of its own. Raises nothing: how it ended is written down in `race`."""
        began = self._clock.now()
        try:
            with race.scopes[number - 1] as scope:
                result = await proceed()
        except BaseException as exc:
            race.raised(exc)
            # A slow first attempt that lost counts with the time that it was given: else the tail would cut itself off,
            # and the percentile sink from call to call.
            answered = race.winner > 0
        else:
            answered = race.winner > 0 if scope.cancelled_caught else race.returned(number, result)
        race.running -= 1
        race.changed.set()
        if number == 1 and answered and self.percentile is not None:
            with self._lock:
                self._latencies.add(self._clock.now() - began)


def hedge(
    delay: float | None = None,
    *,
    percentile: float | None = None,
    attempts: int = 2,
    budget: float | RetryBudget | None = 0.1,
    name: str = "hedge",
    clock: Clock = SYSTEM_CLOCK,
) -> Hedge:
    """Start another attempt when the last one has not answered after a delay; the first success wins.

    The losers are cancelled and awaited, so the call must be one that may be made twice. An attempt that fails does not
    start the next one (that is `retry`'s business): the others in flight are waited for, and if all fail, the first
    failure is raised, or returned if it was returned. A caller's own mistake (4xx) ends the race at once.

    Each attempt runs in a task of its own, with a copy of the caller's context variables.

    Args:
        delay: seconds.
        percentile: above 0 and below 1: the delay is this percentile of the latencies of the last 1,000 calls. Until 20
            are known it is `delay`; without `delay`, nothing is started until then.
        attempts: how many there are at most, the first one included; each is started `delay` after the one before.
        budget: share of the calls that may be asked again (0.1: one in ten, ten at the start, and one a second for
            those who make few calls), or a `RetryBudget` to share with retries and other hedges; None for no limit.
        name: how it calls itself in events.
        clock: for tests.

    Raises:
        TypeError: neither `delay` nor `percentile` is given, or an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    if delay is None and percentile is None:
        msg = "hedge takes delay (seconds) or percentile (0.95)"
        raise TypeError(msg)
    if delay is not None:
        seconds("delay", delay)
    if percentile is not None:
        if isinstance(percentile, bool) or not isinstance(percentile, int | float):
            msg = f"percentile takes a number, not {type(percentile).__name__}"
            raise TypeError(msg)
        if not 0 < percentile < 1:
            msg = f"percentile takes a share above 0 and below 1 (0.95), not {percentile!r}"
            raise ValueError(msg)
    if isinstance(attempts, bool) or not isinstance(attempts, int):
        msg = f"attempts takes a whole number, not {type(attempts).__name__}"
        raise TypeError(msg)
    if attempts < 2:
        msg = f"attempts takes a number from 2 on, the first attempt included, not {attempts}"
        raise ValueError(msg)
    return Hedge(
        delay=delay,
        percentile=percentile,
        attempts=attempts,
        budget=budget_of(budget, clock),
        name=name,
        clock=clock,
    )


__all__ = ["Hedge", "HedgeStarted", "HedgeWon", "RetryBudget", "hedge"]
