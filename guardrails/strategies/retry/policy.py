"""What a retry decides after each attempt: whether to make another, and when.

The order of the questions: may it be tried again at all, are attempts left, may this thread wait, how long, did the
dependency ask for more than that, does `stop` hold, would the wait pass the deadline, does the budget pay for it.

tenacity's objects are asked with a real `tenacity.RetryCallState`. The loop is not tenacity's, which judges by
exception type alone, waits on no injected clock and does not retry streams. tenacity is imported only for those who use
it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from guardrails.core.clock import Clock
from guardrails.core.deadline import remaining
from guardrails.core.errors import Rejected
from guardrails.core.guard import DrivenCall
from guardrails.core.outcome import Outcome, refusal_of
from guardrails.core.retry_after import seconds_asked
from guardrails.core.waiting import on_event_loop
from guardrails.strategies.backoff import Backoff, at_least
from guardrails.strategies.budget import RetryBudget

if TYPE_CHECKING:
    import tenacity

    Stop = Callable[[tenacity.RetryCallState], bool]
    Wait = Callable[[tenacity.RetryCallState], float]
    On = type[Exception] | Callable[[Exception], bool] | tenacity.retry_base

#: Why no further attempt is made, in words for people.
_WHY = {
    "attempts": "no attempts left",
    "budget": "the retry budget is spent",
    "deadline": "the wait would pass the deadline",
    "event_loop": "waiting here would block the thread's event loop",
    "items_delivered": "items were delivered, and are never delivered again",
    "retry_after": "asked to wait longer than max_retry_after",
    "stop": "the stop condition holds",
}


class Run:
    """One call while it is driven."""

    __slots__ = ("attempt", "call", "idle", "outcome", "previous", "reason", "result", "started", "state")

    def __init__(self, call: DrivenCall, started: float, outcome: Outcome | None = None, result: Any = None) -> None:
        self.call = call
        self.started = started
        self.attempt = 1
        self.outcome = outcome  # of the attempt that was made last; None while one is made
        self.result = result
        self.idle = 0.0
        self.previous: float | None = None
        self.reason: str | None = None
        self.state: tenacity.RetryCallState | None = None

    def raised(self, exc: Exception) -> None:
        """The attempt ended with `exc`."""
        self.outcome = self.call.judge(exc)

    def gave_up(self) -> str:
        """For people: how often it was tried and why no more."""
        return (
            f"gave up after {self.attempt} attempt{'s' if self.attempt > 1 else ''}: {_WHY[self.reason or 'attempts']}"
        )

    def forget(self) -> None:
        """Let go of the last attempt's error: its traceback holds the frames that hold this."""
        self.outcome = self.result = self.state = None


class Policy:
    """When to try again. `retry(...)` documents the arguments."""

    def __init__(
        self,
        *,
        attempts: int | None,
        wait: Backoff | Wait,
        stop: Stop | None,
        budget: RetryBudget | None,
        on: tuple[On, ...] | None,
        on_result: Callable[[Any], bool] | None,
        retry_rejected: bool,
        max_retry_after: float,
        clock: Clock,
    ) -> None:
        self.attempts = attempts
        self.budget = budget
        self.max_retry_after = max_retry_after
        self._wait = wait
        self._stop = stop
        self._on_result = on_result
        self._retry_rejected = retry_rejected
        self._clock = clock
        self._narrowed = on is not None
        loaded = sys.modules.get("tenacity")  # not loaded: then nothing of it was given
        base: Any = () if loaded is None else loaded.retry_base
        self._types = tuple(item for item in on or () if isinstance(item, type))
        self._conditions: tuple[Any, ...] = tuple(item for item in on or () if isinstance(item, base))
        self._predicates: tuple[Any, ...] = tuple(
            item for item in on or () if not isinstance(item, type) and not isinstance(item, base)
        )
        #: Whether it shows the call, as tenacity's `RetryCallState`, to functions of the user's.
        self.asks_tenacity = bool(stop is not None or self._conditions or not isinstance(wait, Backoff))
        self._retrying = _retrying(stop, wait) if self.asks_tenacity else None
        #: Whether what the pipeline ignores (a refusal, a 4xx) may be tried again.
        self.may_retry_ignored = self._narrowed or retry_rejected
        #: Whether it must see a call from its start: a stop may ask how long ago that was, and a result may be a
        #: failure here that is none for the pipeline.
        self.from_the_start = stop is not None or on_result is not None or bool(self._conditions)

    def describe(self) -> str:
        """The settings that matter, in a few words."""
        parts = [] if self.attempts is None else [f"{self.attempts} attempt{'s' if self.attempts > 1 else ''}"]
        if self._stop is not None:
            parts.append(_named(self._stop))
        parts.append(self._wait.describe() if isinstance(self._wait, Backoff) else _named(self._wait))
        parts.append("no budget" if self.budget is None else self.budget.describe())
        if self._narrowed:
            asked = [kind.__name__ for kind in self._types] + ["a predicate" for _ in self._predicates]
            parts.append(f"on {' or '.join(asked + [_named(condition) for condition in self._conditions])}")
        return ", ".join(parts)

    def accepted(self, run: Run, result: Any) -> bool:
        """Whether `result` ends the call as a success; if not, `run` holds what it is."""
        outcome = run.outcome = run.call.judge_result(result)
        run.result = result
        if outcome.kind in ("failure", "throttled"):
            return False
        if (self._on_result is not None and self._on_result(result)) or self._condition_holds(run, outcome):
            run.outcome = Outcome("failure", None, outcome.retry_after)
            return False
        return outcome.kind == "success"

    def decide(self, run: Run, *, blocking: bool = False, delivered: bool = False) -> float | None:
        """Seconds until the next attempt, which is then paid for, or None if there is none.

        `run.reason` then says why; it is None where trying again is out of the question.
        """
        outcome = run.outcome
        assert outcome is not None  # noqa: S101 - an attempt was made
        run.reason = None
        try:
            if not self._retryable(run, outcome):
                return None
            delay, run.reason = self._weigh(run, outcome, blocking=blocking, delivered=delivered)
        except Exception as bug:  # of a predicate, stop or wait: the call's error must not get lost behind it
            if bug is not outcome.exception:
                bug.__context__ = outcome.exception
            raise
        return delay if run.reason is None else None

    def _retryable(self, run: Run, outcome: Outcome) -> bool:
        error = outcome.exception
        if error is None or not self._narrowed:
            if refusal_of(error) is not None:
                return self._retry_rejected
            return outcome.kind in ("failure", "throttled")
        if isinstance(error, Rejected):
            # Wanted by the flag or by name: a predicate that looks at any exception does not mean our refusals.
            named = tuple(kind for kind in self._types if issubclass(kind, Rejected))
            return self._retry_rejected or isinstance(error, named)
        return (
            isinstance(error, self._types)
            or any(predicate(error) for predicate in self._predicates)
            or self._condition_holds(run, outcome)
        )

    def _weigh(self, run: Run, outcome: Outcome, *, blocking: bool, delivered: bool) -> tuple[float, str | None]:
        """The wait before a further attempt, and the reason, if any, why there is none."""
        if delivered:
            return 0.0, "items_delivered"
        if self.attempts is not None and run.attempt >= self.attempts:
            return 0.0, "attempts"
        if blocking and on_event_loop():
            return 0.0, "event_loop"
        if isinstance(self._wait, Backoff):
            delay = self._wait.delay(run.attempt, run.previous)
        else:
            delay = max(0.0, float(self._wait(self._state(run, outcome))))
        run.previous = delay
        error = outcome.exception
        # A verdict of the user's may leave out what a refusal asks for.
        asked = seconds_asked(error.retry_after) if isinstance(error, Rejected) else outcome.retry_after
        if asked is not None:
            if asked > self.max_retry_after:
                return 0.0, "retry_after"
            delay = at_least(delay, asked)
        if self._stop is not None:
            state = self._state(run, outcome)
            state.upcoming_sleep = delay
            if self._stop(state):
                return 0.0, "stop"
        left = remaining()
        if left is not None and delay >= left:
            return 0.0, "deadline"
        if self.budget is not None and not self.budget.withdraw():
            return 0.0, "budget"
        return delay, None

    def _condition_holds(self, run: Run, outcome: Outcome) -> bool:
        if not self._conditions:
            return False
        state = self._state(run, outcome)
        return any(condition(state) for condition in self._conditions)

    def _state(self, run: Run, outcome: Outcome) -> tenacity.RetryCallState:
        state = run.state
        if state is None:
            import tenacity  # noqa: PLC0415 - loaded when the guard was built

            assert self._retrying is not None  # noqa: S101 - nothing else asks for a state
            state = run.state = tenacity.RetryCallState(self._retrying, None, run.call.args, run.call.kwargs)
            state.start_time = run.started
        error = outcome.exception
        state.attempt_number = run.attempt
        state.idle_for = run.idle
        if error is None:
            state.set_result(run.result)
        else:
            state.set_exception((type(error), error, error.__traceback__))
        state.outcome_timestamp = self._clock.now()  # tenacity took the machine's time
        return state


def _retrying(stop: Any, wait: Any) -> tenacity.BaseRetrying:
    # What a RetryCallState takes for the loop that it belongs to.
    import tenacity  # noqa: PLC0415 - a tenth of a second that only those pay who use it

    return tenacity.Retrying(
        stop=tenacity.stop_never if stop is None else stop,
        wait=tenacity.wait_none() if isinstance(wait, Backoff) else wait,
    )


def _named(thing: Any) -> str:
    return str(getattr(thing, "__qualname__", type(thing).__name__))
