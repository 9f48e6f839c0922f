"""Hedge: when the first attempt is slow, or fails, start another one; the first success is the answer.

::

    attempt 1 ├──────────── delay ────────────┤┄┄┄┄┄┄┄ slow ┄┄┄┄┄┄┄┤✗ cancelled
    attempt 2                                 ├────── answers ─────┤✓

The idea is Dean and Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013: wait as long as all but the
slowest calls take (a delay at the 95th percentile costs about 5 % more calls), so that only the tail is asked twice.

Streams race until the first item: the one it comes from is read on, the others are closed. Async calls only: nothing
can cancel a sync function.

Threads: the lock guards the latencies. Each call is driven by one task group, each stream by tasks of its own, on the
loop of the caller.
"""

from __future__ import annotations

import bisect
import functools
import math
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio

from guardrails.core import attempts, events
from guardrails.core.clock import SYSTEM_CLOCK, Clock
from guardrails.core.fixed import fixed
from guardrails.core.guard import DrivenCall, Position, Strategy
from guardrails.core.outcome import refusal_of
from guardrails.core.pipeline import Layer
from guardrails.strategies.backoff import seconds
from guardrails.strategies.budget import RetryBudget, budget_of
from guardrails.strategies.stream_task import StreamTask, end

#: How many latencies a percentile needs to be known, and on how many it looks back.
MIN_LATENCIES = 20
MAX_LATENCIES = 1000


@dataclass(frozen=True, slots=True)
class HedgeStarted(events.Event):
    """No answer within `delay` seconds: attempt number `attempt` (2 is the first hedge) was started beside the rest.
    0.0 if it was started because another one had failed.
    """

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

    __slots__ = ("call", "changed", "error", "failures", "replaced", "result", "running", "scopes", "winner", "wrong")

    def __init__(self, call: DrivenCall) -> None:
        self.call = call
        self.changed = anyio.Event()
        self.scopes: list[Any] = []  # one for each attempt that was started: its cancel scope, or its `StreamTask`
        self.running = 0
        self.wrong = 0  # attempts that failed at the dependency
        self.replaced = 0  # of these, those after which another one was started, or was refused by the budget
        self.winner = 0  # the number of the attempt that succeeded
        self.result: Any = None
        self.error: BaseException | None = None  # ends the race though it is no success
        self.failures: list[tuple[Exception | None, Any]] = []

    @property
    def started(self) -> int:
        """Attempts that were started."""
        return len(self.scopes)

    @property
    def decided(self) -> bool:
        return self.winner > 0 or self.error is not None

    def raised(self, exc: BaseException) -> None:
        """An attempt ended with `exc`."""
        if self.winner or self.error is not None:
            return  # how a loser ends
        refused = refusal_of(exc) is not None
        kind = self.call.judge(exc).kind
        if isinstance(exc, Exception) and (refused or kind != "ignored"):
            self.failures.append((exc, None))
            self.wrong += kind == "failure" and not refused
            return
        # The caller's own mistake, which another attempt would not mend; or a cancellation that nobody here asked for,
        # KeyboardInterrupt and the like, which the caller has to see.
        self.error = exc

    def returned(self, number: int, result: Any) -> bool:
        """Attempt `number` ended with `result`; whether that is an answer."""
        kind = self.call.judge_result(result).kind
        if kind in ("failure", "throttled"):
            self.failures.append((None, result))
            self.wrong += kind == "failure"
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


@fixed("clock")
class Hedge(Layer, Strategy):
    """Parallel attempts against slowness. Build it with `hedge(...)`, which documents the arguments."""

    positions = (Position.HEDGE,)
    streams = True

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
        self._attempts = attempts
        self._budget = budget
        self._percentile = percentile
        self._fixed = delay
        self._clock = clock
        self._tally = None if budget is None else budget.count_attempts()
        self._lock = threading.RLock()
        self._latencies = Latencies()

    @property
    def attempts(self) -> int:
        """Attempts that a call makes at most."""
        return self._attempts

    @property
    def budget(self) -> RetryBudget | None:
        """What bounds the further attempts of all calls; None for no bound."""
        return self._budget

    @property
    def percentile(self) -> float | None:
        """Of the latency, after which a further attempt is made; None for a fixed delay."""
        return self._percentile

    @property
    def delay(self) -> float | None:
        """Seconds after which the next attempt is started now; None while the percentile is not known."""
        if self._percentile is None:
            return self._fixed
        with self._lock:
            return self._fixed if len(self._latencies) < MIN_LATENCIES else self._latencies.percentile(self._percentile)

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        after = f"{self._fixed:g} s" if self._percentile is None else f"percentile {self._percentile:g} of the latency"
        budget = "no budget" if self._budget is None else self._budget.describe()
        return f"hedge {self.name!r}: another attempt after {after}, {self._attempts} at most, {budget}"

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

    async def run_stream(
        self, call: DrivenCall, proceed: Callable[[], AsyncGenerator[Any, Any]]
    ) -> AsyncGenerator[Any, Any]:
        """Race the attempts of one stream until the first item; read on the one that it comes from."""
        if self._tally is not None:
            self._tally()
        race = _Race(call)
        streams: list[StreamTask] = race.scopes

        def start() -> None:
            number = race.started + 1

            def numbered() -> AsyncGenerator[Any, Any]:
                attempts.mark(number)  # called in the task of the attempt
                return proceed()

            streams.append(StreamTask(numbered, functools.partial(self._first, race, number, self._clock.now())))
            race.running += 1
            streams[-1].start()

        try:
            start()
            await self._referee(race, start)
            if not race.winner:
                _raise(race.loss()[0])
            winner = streams[race.winner - 1]
            await end([stream for stream in streams if stream is not winner])
            if race.winner > 1 and events.sinks:
                events.emit(HedgeWon(self.name, race.winner))
            while not winner.ended:
                throw = False
                try:
                    given = yield winner.item
                except GeneratorExit:
                    raise
                except BaseException as exc:  # thrown in by the reader: the stream decides what becomes of it
                    given, throw = exc, True
                await winner.step(given, throw=throw)
                given = None  # an error that was thrown in has a traceback that holds this frame
                _raise_from(winner)
        finally:
            await end(streams)
            if race.winner:
                _raise_from(streams[race.winner - 1])  # one that it was closed with
            for stream in streams:
                stream.error = None

    def _first(self, race: _Race, number: int, began: float) -> None:
        """The first step of an attempt at a stream has ended."""
        stream: StreamTask = race.scopes[number - 1]
        if stream.error is not None:
            race.raised(stream.error)
        elif not race.winner and race.error is None:
            race.winner = number
        race.running -= 1
        race.changed.set()
        self._learn(race, number, began)

    async def _referee(self, race: _Race, start: Callable[[], None]) -> None:
        """Return when the race is over; start attempts meanwhile."""
        delay = self.delay if self._attempts > 1 else None
        due = math.inf if delay is None else self._clock.now() + delay
        while not race.decided:
            failed = race.wrong > race.replaced
            if failed:
                race.replaced += 1
            elif race.running == 0:
                return
            else:
                left = due - self._clock.now()
                if left > 0:
                    race.changed = anyio.Event()
                    if due == math.inf:
                        await race.changed.wait()
                    else:
                        with self._clock.scope(left):
                            await race.changed.wait()
                    continue
            if race.started == self._attempts:
                continue
            if self._budget is not None and not self._budget.withdraw():
                due = due if failed else math.inf
                continue
            start()
            if events.sinks:
                events.emit(HedgeStarted(self.name, race.started, 0.0 if failed or delay is None else delay))
            last = delay is None or race.started == self._attempts
            due = math.inf if last else self._clock.now() + (delay or 0.0)

    async def _attempt(self, race: _Race, number: int, proceed: Callable[[], Awaitable[Any]]) -> None:
        """One attempt, in a task of its own. Raises nothing: how it ended is written down in `race`."""
        began = self._clock.now()
        try:
            with race.scopes[number - 1] as scope:
                attempts.mark(number)
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
        self._learn(race, number, began, answered=answered)

    def _learn(self, race: _Race, number: int, began: float, *, answered: bool | None = None) -> None:
        if number == 1 and self._percentile is not None and (race.winner > 0 if answered is None else answered):
            with self._lock:
                self._latencies.add(self._clock.now() - began)


def _raise(error: BaseException | None) -> None:
    try:
        if error is not None:
            raise error
    finally:
        del error  # its traceback holds this frame


def _raise_from(stream: StreamTask) -> None:
    error, stream.error = stream.error, None
    try:
        if error is not None:
            raise error
    finally:
        del error


def hedge(
    delay: float | None = None,
    *,
    percentile: float | None = None,
    attempts: int = 2,
    budget: float | RetryBudget | None = 0.1,
    name: str = "hedge",
    clock: Clock = SYSTEM_CLOCK,
) -> Hedge:
    """Start another attempt when the last one has not answered after a delay, or has failed; the first success wins.

    The losers are cancelled and awaited, so the call must be one that may be made twice. An attempt that fails starts
    the next one at once, as far as `attempts` and `budget` allow; one that is throttled, or refused by a guard further
    in, does not. If all fail, the first failure is raised, or returned if it was returned. A caller's own mistake (4xx)
    ends the race at once.

    Of a stream, the attempts race until the first item: the stream that it comes from is read on, and the others are
    closed. Later errors are the reader's to see.

    Each attempt runs in a task of its own, with a copy of the caller's context variables.

    Args:
        delay: seconds.
        percentile: above 0 and below 1: the delay is this percentile of the latencies of the last 1,000 calls. Until 20
            are known it is `delay`; without `delay`, nothing is started until then.
        attempts: how many there are at most, the first one included; each is started `delay` after the one before, or
            when one has failed.
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
