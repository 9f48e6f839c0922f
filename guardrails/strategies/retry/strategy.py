"""The loop of a retry, for coroutines, sync functions and streams.

::

    attempt ─▶ success ─▶ done
       ▲   └─▶ ignored ─▶ as it is (a cancellation, a refusal, the caller's own mistake)
       │   └─▶ failure, throttled ─▶ policy: attempts? stop? Retry-After? deadline? budget? ─▶ no: give up
       └────────────────────── wait ◀───────────────────────────────────────────────── yes

Threads: the guard itself holds no state that changes; its budget does, and is safe.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from guardrails.core import attempts, events
from guardrails.core.clock import Clock
from guardrails.core.errors import Failed
from guardrails.core.fixed import fixed
from guardrails.core.guard import DrivenCall, Position, Strategy
from guardrails.core.outcome import Outcome
from guardrails.core.pipeline import Layer
from guardrails.strategies.budget import RetryBudget
from guardrails.strategies.retry.policy import Policy, Run

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryScheduled(events.Event):
    """Attempt number `attempt` (2 is the first retry) is made in `delay` seconds; `outcome` is that of the one before:
    ``failure``, ``throttled``, or ``ignored`` (retried on request).
    """

    attempt: int
    delay: float
    outcome: str


@dataclass(frozen=True, slots=True)
class RetryGaveUp(events.Event):
    """A call that might have been tried again was not, after `attempts` attempts. `reason` is ``attempts``, ``budget``,
    ``deadline``, ``event_loop``, ``items_delivered``, ``retry_after`` or ``stop``.
    """

    reason: str
    attempts: int


class RetriesExhausted(Failed):
    """What was returned counts as a failure, and no further attempt is made (only with ``raise_results=True``).

    Attributes:
        guard: name of the guard.
        reason: as in `RetryGaveUp`.
        attempts: how many were made.
        result: what the last one returned.
    """

    def __init__(self, guard: str, *, reason: str, attempts: int, result: Any, detail: str) -> None:
        super().__init__(guard)
        self.guard = guard
        self.reason = reason
        self.attempts = attempts
        self.result = result
        self.detail = detail

    @property
    def response(self) -> Any:
        """The result, by the name under which guards further out look for a status: a 429 stays throttling."""
        return self.result

    def __str__(self) -> str:
        return f"{self.guard}: what was returned is a failure; {self.detail}"


@fixed("attempts", "wait", "stop", "on", "on_result", "raise_results", "retry_rejected", "max_retry_after", "clock")
class Retry(Layer, Strategy):
    """Further attempts. Build it with `retry(...)`, which documents the arguments."""

    positions = (Position.RETRY,)
    streams = True
    numbers = True

    def __init__(self, policy: Policy, *, raise_results: bool, name: str, clock: Clock) -> None:
        self.name = name
        self._policy = policy
        self._raise_results = raise_results
        self._clock = clock
        #: Counts a call for the budget; None without one.
        self.tally: Callable[[], object] | None = None if policy.budget is None else policy.budget.count_calls()
        self.recovers = not policy.from_the_start
        self.reads_call = policy.asks_tenacity
        if not policy.may_retry_ignored:  # a refusal by an open circuit then costs next to nothing more
            self.recovers_from = frozenset({"failure", "throttled"})

    @property
    def budget(self) -> RetryBudget | None:
        """What pays for further attempts, if there is a limit."""
        return self._policy.budget

    def describe(self) -> str:
        """One line for `Pipeline.describe`."""
        return f"retry {self.name!r}: {self._policy.describe()}"

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    # The contract

    async def run(self, call: DrivenCall, proceed: Callable[[], Awaitable[T]]) -> Any:
        """Drive an async call from its first attempt on."""
        return await self._drive(self._begin(call), proceed)

    async def recover(
        self, call: DrivenCall, outcome: Outcome, result: Any, proceed: Callable[[], Awaitable[T]]
    ) -> Any:
        """Go on after a first attempt that was no success."""
        run = Run(call, self._clock.now(), outcome, result)
        del outcome  # the traceback of its exception will hold this frame: a reference cycle
        return await self._drive(run, proceed)

    def run_blocking(self, call: DrivenCall, proceed: Callable[[], T]) -> Any:
        """Drive a sync call from its first attempt on."""
        return self._drive_blocking(self._begin(call), proceed)

    def recover_blocking(self, call: DrivenCall, outcome: Outcome, result: Any, proceed: Callable[[], T]) -> Any:
        """`recover` for sync calls."""
        run = Run(call, self._clock.now(), outcome, result)
        del outcome
        return self._drive_blocking(run, proceed)

    async def run_stream(
        self, call: DrivenCall, proceed: Callable[[], AsyncGenerator[T, Any]]
    ) -> AsyncGenerator[T, Any]:
        """Start a stream again that fails before its first item. Later errors are the reader's to see."""
        run = self._begin(call)
        while True:
            delay = 0.0
            source = proceed()
            number = run.attempt  # it counts the next one before this is closed
            step: Callable[[Any], Awaitable[T]] = source.asend
            given: Any = None
            delivered = False
            try:
                while True:
                    try:
                        if number > 1 or attempts.FURTHER.made:
                            item = await attempts.at(number, step, given)
                        else:
                            item = await step(given)
                    except StopAsyncIteration:
                        return
                    except Exception as exc:
                        run.raised(exc)
                        found = self._next(run, delivered=delivered)
                        if found is None:
                            self._note(run, exc)
                            run.forget()
                            raise
                        delay = found
                        break
                    delivered = True
                    step = source.asend
                    try:
                        given = yield item
                    except GeneratorExit:
                        raise
                    except BaseException as exc:  # thrown in by the reader: the source decides what becomes of it
                        step, given = source.athrow, exc
            finally:
                await attempts.at(number, source.aclose)
            await self._wait(run, delay)

    # The loop

    def _begin(self, call: DrivenCall) -> Run:
        if self.tally is not None:
            self.tally()
        return Run(call, self._clock.now())

    async def _drive(self, run: Run, proceed: Callable[[], Awaitable[T]]) -> Any:
        while True:
            if run.outcome is None:
                try:
                    result = await attempts.at(run.attempt, proceed)
                except Exception as exc:
                    run.raised(exc)
                else:
                    if self._policy.accepted(run, result):
                        return result
            delay = self._next(run)
            if delay is None:
                return self._end(run)
            await self._wait(run, delay)

    def _drive_blocking(self, run: Run, proceed: Callable[[], T]) -> Any:
        while True:
            if run.outcome is None:
                try:
                    result = attempts.at_blocking(run.attempt, proceed)
                except Exception as exc:
                    run.raised(exc)
                else:
                    if self._policy.accepted(run, result):
                        return result
            delay = self._next(run, blocking=True)
            if delay is None:
                return self._end(run)
            run.forget()
            with self._paid():
                self._clock.wait_thread(threading.Event(), delay)

    async def _wait(self, run: Run, delay: float) -> None:
        run.forget()
        with self._paid():
            await self._clock.sleep(delay)

    @contextmanager
    def _paid(self) -> Iterator[None]:
        # A wait that is broken off leads to no attempt: what was paid for it comes back.
        try:
            yield
        except BaseException:
            if self.budget is not None:
                self.budget.give_back()
            raise

    def _next(self, run: Run, *, blocking: bool = False, delivered: bool = False) -> float | None:
        """Seconds until the next attempt; None if there is none."""
        delay = self._policy.decide(run, blocking=blocking, delivered=delivered)
        if delay is None:
            if run.reason is not None and events.sinks:
                events.emit(RetryGaveUp(self.name, run.reason, run.attempt))
            return None
        kind = "failure" if run.outcome is None else run.outcome.kind
        run.attempt += 1
        run.idle += delay
        if events.sinks:
            events.emit(RetryScheduled(self.name, run.attempt, delay, kind))
        return delay

    def _end(self, run: Run) -> Any:
        error = None if run.outcome is None else run.outcome.exception
        result, reason = run.result, run.reason
        run.forget()
        if error is not None:
            self._note(run, error)
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        if self._raise_results and reason is not None:
            detail = run.gave_up()
            raise RetriesExhausted(self.name, reason=reason, attempts=run.attempt, result=result, detail=detail)
        return result

    def _note(self, run: Run, error: BaseException) -> None:
        if run.reason is None:
            return
        head = f"{self.name}: gave up after "
        with suppress(Exception):  # an exception that lets nothing be set on it goes without
            notes = getattr(error, "__notes__", None)
            if notes:  # one object that is raised again and again must not grow
                notes[:] = [note for note in notes if not note.startswith(head)]
            error.add_note(f"{self.name}: {run.gave_up()}")
