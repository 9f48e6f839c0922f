"""The contract that every guard keeps. There are two kinds, and only two.

A *gate* decides whether one attempt may run (breaker, limiter, admit, bulkhead, timeout)::

    try_enter(call) ── ticket ──▶  the attempt runs  ──▶ settle(ticket, outcome), exactly once
          │ None: it would have to wait
          ▼
    enter(call) waits, then a ticket or Rejected

A *strategy* drives the call, and may run it more than once or not at all (retry, fallback, hedge, cache).

Guards know nothing of each other: `guardrails.core.pipeline` composes them.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

from guardrails.core.outcome import Kind, Outcome

T = TypeVar("T")

#: What `try_enter` gives and `settle` takes back: anything but None. It carries the generation that it was issued in,
#: so that one settled late, after its gate moved on, changes nothing.
Ticket = Any


class Position(enum.IntEnum):
    """Where a guard stands in a pipeline, outermost first. The order is checked when a pipeline is built."""

    DEADLINE = 0
    FALLBACK = 1
    CACHE = 2
    RETRY = 3
    HEDGE = 4
    BREAKER = 5
    LIMITER = 6
    ADMISSION = 7
    TIMEOUT = 8
    INJECT = 9


class Call:
    """One attempt, as the gates see it: the arguments of the call, or None for both when a block is guarded."""

    __slots__ = ("args", "kwargs", "stream")

    def __init__(
        self,
        args: tuple[Any, ...] | None,
        kwargs: Mapping[str, Any] | None,
        stream: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        self.args = args
        self.kwargs = kwargs
        self.stream = stream


#: What gates get for a plain call when none of them reads it.
UNREAD = Call((), {})


class Guard(abc.ABC):
    """What gates and strategies share.

    Attributes:
        name: how the guard calls itself in errors, events and `describe()`.
        positions: where it may stand in a pipeline; empty for guards of one's own, whose place is not checked.
    """

    name: str
    positions: tuple[Position, ...] = ()
    #: False when the guard looks at no call's arguments: a plain call is then handed to it without them, which saves
    #: more than many a guard costs. Read when a function is guarded.
    reads_call = True
    #: A function of a result that is true for a failure. Its own verdict keeps to it; so does that of the pipeline,
    #: unless that was given a `classify_result`.
    failure_if: Callable[[Any], bool] | None = None

    @abc.abstractmethod
    def describe(self) -> str:
        """One line: what it is and the settings that matter."""


class Gate(Guard):
    """Decides whether one attempt may run. Its methods are called on one thread at a time unless the gate says
    otherwise.
    """

    #: True when the gate can interrupt a running call. Such a gate has `arm` and `disarm`, and works on async code
    #: only: nothing can interrupt a sync function from outside.
    interrupts = False
    #: The time that its deadlines are times of (`interrupts` only).
    now: Callable[[], float]
    #: False when the gate's `settle` does nothing after a success that `disarm` did not do.
    settles = True

    #: True when it may have its own verdict on results: then `failure_if_of` is asked for each call.
    judges = False
    #: True when it sets context variables for the code inside. Entering sets them for a plain call and a block; around
    #: each step of a stream `resume` does, and `suspend` sets them back. One that interrupts does so in `arm` and
    #: `disarm`.
    contextual = False
    #: True when `first_item` is to be called.
    times_first = False

    @abc.abstractmethod
    def try_enter(self, call: Call) -> Ticket | None:
        """Let the call in at once, or return None if it would have to wait. Never blocks.

        Raises:
            Rejected: the call is refused, and waiting would not help.
        """

    async def enter(self, call: Call) -> Ticket:
        """Wait until the call may run. Called only after `try_enter` gave None. A cancelled wait leaves nothing behind.

        Raises:
            Rejected: the call is refused, or has waited as long as it may.
        """
        raise NotImplementedError  # a gate whose try_enter never returns None needs no more

    def enter_blocking(self, call: Call) -> Ticket:
        """`enter` for sync code: blocks the thread."""
        raise NotImplementedError

    @abc.abstractmethod
    def settle(self, ticket: Ticket, outcome: Outcome) -> None:
        """Take the ticket back, with what came of the attempt. Called exactly once a ticket; must not raise."""

    def failure_if_of(self, ticket: Ticket) -> Callable[[Any], bool] | None:  # noqa: ARG002
        """What besides the pipeline's verdict makes a result a failure for this gate alone (`judges` only)."""
        return self.failure_if

    def resume(self, ticket: Ticket) -> None:
        """A step of a stream begins: show the code inside what the ticket is (`contextual` only)."""
        raise NotImplementedError

    def suspend(self, ticket: Ticket) -> None:
        """The step is over: leave nothing in the reader's context."""
        raise NotImplementedError

    def first_item(self, ticket: Ticket) -> None:
        """The first item of a stream has come (`times_first` only)."""
        raise NotImplementedError

    def arm(self, ticket: Ticket) -> None:
        """Start to watch one step of a stream (`interrupts` only). For a plain call, entering does it."""
        raise NotImplementedError

    def disarm(self, ticket: Ticket, exc: BaseException | None) -> BaseException | None:
        """Stop watching the step, which ended with `exc` (None: well). Returns what it ended with in truth.

        Called before `settle`, in the task that armed it, and also when arming failed.
        """
        raise NotImplementedError


class DrivenCall(Call):
    """A call as a strategy sees it, with the pipeline's judgement, so that all guards agree on what a failure is.

    Attributes:
        function: what the caller guarded, without any guard: tells the functions apart that share one strategy.
        judge: the outcome of an exception; the outcome carries it.
        judge_result: the outcome of what a call returned.
    """

    __slots__ = ("function", "judge", "judge_result")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        judge: Callable[[BaseException], Outcome],
        judge_result: Callable[[Any], Outcome],
    ) -> None:
        self.args = args  # not by the base's __init__, which takes longer than all of this
        self.kwargs = kwargs
        self.stream = False
        self.function = function
        self.judge = judge
        self.judge_result = judge_result


class Strategy(Guard):
    """Drives the call. `proceed()` runs everything further in, once a call of it.

    A strategy that has nothing to do until the first attempt has failed (retry, fallback) says so with `recovers`: the
    pipeline then makes the first attempt itself and calls `recover` only if that was no success, so that a call that
    succeeds costs next to nothing more. Any other strategy is asked by `run`.
    """

    #: Whether the strategy acts only after a first attempt that was no success.
    recovers = False
    #: With `recovers`: after which outcomes it is asked. Any other is what the caller gets.
    recovers_from: frozenset[Kind] = frozenset({"failure", "throttled", "ignored"})
    #: With `recovers`: called once for each call before its first attempt, if it is not None. Must be cheap and must
    #: not raise. A stream is counted by `run_stream` itself.
    tally: Callable[[], object] | None = None
    #: With `recovers`: whether it numbers its further attempts (see `guardrails.core.attempts`). The pipeline then sees
    #: to it that the first one has its number.
    numbers = False
    #: Whether it can drive an async generator, by `run_stream`.
    streams = False

    @property
    def idle(self) -> bool:
        """Whether it would only hand a call on: then it is not asked to. Looked at before each call."""
        return False

    async def run(self, call: DrivenCall, proceed: Callable[[], Awaitable[T]]) -> T:
        """Run an async call: zero times, once, or more often."""
        raise NotImplementedError

    def run_blocking(self, call: DrivenCall, proceed: Callable[[], T]) -> T:
        """Run a sync call."""
        raise NotImplementedError

    def run_stream(self, call: DrivenCall, proceed: Callable[[], AsyncGenerator[T, Any]]) -> AsyncGenerator[T, Any]:
        """Run a stream: an async generator over the items. Items that were delivered are never delivered again."""
        raise NotImplementedError

    async def recover(self, call: DrivenCall, outcome: Outcome, result: Any, proceed: Callable[[], Awaitable[T]]) -> T:
        """Go on after a first attempt that was no success (`recovers` only).

        Args:
            call: the call.
            outcome: of the first attempt; its `exception` is None when the attempt returned something that is a
                failure.
            result: what it returned then, else None.
            proceed: makes a further attempt.

        Returns or raises what the caller shall get.
        """
        raise NotImplementedError

    def recover_blocking(self, call: DrivenCall, outcome: Outcome, result: Any, proceed: Callable[[], T]) -> T:
        """`recover` for sync calls."""
        raise NotImplementedError
