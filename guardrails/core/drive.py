"""Drives one call through a run of gates. Streams are driven by `guardrails.core.streams`.

::

    enter outer ─▶ enter inner ─▶ the function ─▶ settle inner ─▶ settle outer

Each shape is one frame however many gates there are. What passes a gate on the way out is what it settles with: an
inner gate that turns a cancellation into `TimedOut` (see `Gate.disarm`) shows the gates outside it a failure, and an
outer deadline shows the gates inside it a cancellation, which is nobody's failure. An exception while entering (a
refusal, a cancelled wait) is nobody's failure either: the dependency was not reached.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from guardrails.core import deadline, events
from guardrails.core.guard import DrivenCall, Gate, Guard, Strategy, Ticket
from guardrails.core.names import name_of
from guardrails.core.observed import ObservedCall
from guardrails.core.outcome import SUCCESS, Outcome, classify_result, is_cancellation
from guardrails.core.unrolled import compile_guarded

_log = logging.getLogger("guardrails")

Verdict = Callable[[BaseException], Outcome]
ResultVerdict = Callable[[Any], Outcome]
CallMaker = Callable[[tuple[Any, ...], dict[str, Any]], DrivenCall]
Held = list[tuple[Gate, Ticket]]


def settle(gate: Gate, ticket: Ticket, outcome: Outcome) -> None:
    """Settle one ticket. A gate must not raise here; if one does, the call's result is kept and the bug is logged."""
    try:
        gate.settle(ticket, outcome)
    except Exception:
        _unsettled(gate)


def _unsettled(gate: Gate, bug: BaseException | None = None, others: Held | None = None) -> None:
    if bug is None or isinstance(bug, Exception):
        _log.exception("bug: %s failed to settle a call; please report this", gate.name)
        return
    abandon(others or [], bug)
    raise bug


def own_verdict(gate: Gate, verdict: ResultVerdict) -> Callable[[Ticket, Any, Outcome], Outcome]:
    """What `gate` makes of a result: a failure if its `failure_if` says so, else what `verdict` says."""
    failure_if_of = gate.failure_if_of

    def own(ticket: Ticket, result: Any, outcome: Outcome) -> Outcome:
        failure_if = failure_if_of(ticket)
        if failure_if is None:
            return outcome
        return judge_result(lambda value: Outcome("failure") if failure_if(value) else verdict(value), result)

    return own


def failure_ifs(layers: Sequence[Guard]) -> list[Callable[[Any], bool]]:
    """What the layers besides count as failures."""
    return [layer.failure_if for layer in layers if isinstance(layer, Guard) and layer.failure_if is not None]


def combined(layers: Sequence[Guard], verdict: ResultVerdict) -> ResultVerdict:
    """The verdict on results of a pipeline: `verdict` if that was given on purpose, or else the default with what the
    `failure_if` of any layer says.
    """
    tests = failure_ifs(layers)
    if verdict is not classify_result or not tests:
        return verdict

    def judged(result: Any) -> Outcome:
        return Outcome("failure") if any(failure_if(result) for failure_if in tests) else verdict(result)

    return judged


def judge(verdict: Verdict, exc: BaseException) -> Outcome:
    """`verdict(exc)`. If that raises, no ticket may stay unsettled: the call counts as a failure."""
    try:
        return verdict(exc)
    except Exception:
        _log.exception("classify failed on %s; the call counts as a failure", type(exc).__name__)
        return Outcome("failure", exc)


def judge_result(verdict: ResultVerdict, result: Any) -> Outcome:
    """`verdict(result)`; if that raises, the call counts as what it was: it returned."""
    try:
        return verdict(result)
    except Exception:
        _log.exception("classify_result failed on a %s; the call counts as a success", type(result).__name__)
        return SUCCESS


def not_reached(exc: BaseException) -> Outcome:
    """The verdict on whatever ends a call that was still entering its gates."""
    return Outcome("ignored", exc)


def late_verdict(verdict: Verdict, deadlines: Sequence[Gate]) -> tuple[Sequence[Gate], Callable[[float], Verdict]]:
    """`deadlines`, and the verdict on a call that began at a time, inside `deadlines` of its own pipeline.

    A call that one of these cuts off ends, for the gates further in, with a cancellation. It is the `TimedOut` that the
    deadline raises if the call had at least half of the deadline's time: less may have been left by attempts before it
    or by our own queues, and says nothing of what was called. A cancellation from elsewhere stays one.
    """

    def begun(began: float) -> Verdict:
        def judged(exc: BaseException) -> Outcome:
            late = deadline.overrun(deadlines, began) if is_cancellation(exc) else None
            return verdict(exc if late is None else late)

        return judged

    return deadlines, begun


def leave(held: Held, exc: BaseException, verdict: Verdict) -> BaseException:
    """Settle all gates, innermost first, after the call ended with `exc`. Returns what it ended with in truth.

    What is no `Exception` (a `KeyboardInterrupt` in `classify`) is raised, once all are settled.
    """
    try:
        outcome = judge(verdict, exc)
        while held:
            gate, ticket = held[-1]
            if gate.interrupts:
                truth = gate.disarm(ticket, exc)
                if truth is not None and truth is not exc:
                    truth.__cause__ = exc
                    exc, outcome = truth, judge(verdict, truth)
            del held[-1]
            settle(gate, ticket, outcome)
    except BaseException:
        abandon(held, exc)
        raise
    return exc


def abandon(held: Held, exc: BaseException | None) -> None:
    """Settle what is left after something that is no `Exception` was raised in the middle: as if cancelled."""
    outcome = Outcome("ignored", exc)
    while held:
        gate, ticket = held.pop()
        try:
            if gate.interrupts:
                gate.disarm(ticket, exc)
        finally:
            settle(gate, ticket, outcome)


def finish(held: Held) -> None:
    """Settle all gates, innermost first, after a block ended well."""
    try:
        while held:
            gate, ticket = held[-1]
            if gate.interrupts:
                gate.disarm(ticket, None)
            del held[-1]
            settle(gate, ticket, SUCCESS)
    except BaseException:
        abandon(held, None)
        raise


def gated(
    fn: Callable[..., Any],
    gates: Sequence[Gate],
    verdict: Verdict,
    result_verdict: ResultVerdict,
    *,
    is_async: bool,
    strategy: Strategy | None = None,
    call_of: CallMaker | None = None,
    observed: Callable[..., Any] | None = None,
    own: Mapping[Gate, Callable[[Ticket, Any, Outcome], Outcome]] | None = None,
    late: tuple[Sequence[Gate], Callable[[float], Verdict]] | None = None,
    binder: Callable[..., object] | None = None,
) -> Callable[..., Any]:
    """`fn`, a plain function or one that gives an awaitable, behind `gates` (outermost first).

    With `strategy`, one that recovers, directly around them; `call_of` then makes its view of a call. With
    `observed`, that is called in place of all this while there are listeners of events. `own` has the verdicts on
    results of gates that are not judged as the pipeline is, `late` is `late_verdict` where there are deadlines
    further out. A plain function's waiting blocks the thread.
    """
    tools = {
        "verdict": verdict,
        "result_verdict": result_verdict,
        "judged": judger(verdict),
        "judge_result": judge_result,
        "not_reached": not_reached,
        "leave": leave,
        "unsettled": _unsettled,
        "call_of": call_of,
        "LAZY": _LAZY,
        "refuse_lazy": _refuse_lazy,
        "EVENTS": events,
        "bind": binder,
        "deadlines": () if late is None else late[0],
        "now": None if late is None else late[0][0].now,
        "late": None if late is None else late[1],
    }
    plain = result_verdict is classify_result
    return compile_guarded(
        fn, gates, is_async=is_async, plain=plain, tools=tools, strategy=strategy, observed=observed, own=own or {}
    )


def observed(
    fn: Callable[..., Any], name: str, verdict: Verdict, result_verdict: ResultVerdict, *, is_async: bool
) -> Callable[..., Any]:
    """`fn`, a whole pipeline around a function, that announces each call to those who listen, and its end.

    `name` is the pipeline's. What the call came to is judged as the guards inside judge it.
    """
    judged = judger(verdict)

    async def call(*args: Any, **kwargs: Any) -> Any:
        announced = ObservedCall(name)
        try:
            result = await fn(*args, **kwargs)
        except BaseException as exc:
            announced.end(judged(exc))
            raise
        announced.end(judge_result(result_verdict, result))
        return result

    def blocking(*args: Any, **kwargs: Any) -> Any:
        announced = ObservedCall(name)
        try:
            result = fn(*args, **kwargs)
        except BaseException as exc:
            announced.end(judged(exc))
            raise
        announced.end(judge_result(result_verdict, result))
        return result

    return call if is_async else blocking


def judger(verdict: Verdict) -> Verdict:
    """`verdict`, made safe: it never raises, and its outcome carries the exception."""

    def judged(exc: BaseException) -> Outcome:
        outcome = judge(verdict, exc)
        # A classify of the user's may leave the exception out; without it the call would seem to have returned.
        return outcome if outcome.exception is not None else replace(outcome, exception=exc)

    return judged


def call_maker(function: Callable[..., Any], verdict: Verdict, result_verdict: ResultVerdict) -> CallMaker:
    """A function that makes a strategy's view of a call of `function` from its arguments."""
    judged = judger(verdict)

    def judged_result(result: Any) -> Outcome:
        return judge_result(result_verdict, result)

    def call_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> DrivenCall:
        return DrivenCall(function, args, kwargs, judged, judged_result)

    return call_of


_LAZY = frozenset({CoroutineType, AsyncGeneratorType, GeneratorType})


def _refuse_lazy(fn: Callable[..., Any], result: Any) -> None:
    # A plain function that gives back a coroutine or a future has not done its work: it would run outside the guard.
    if isinstance(result, CoroutineType | GeneratorType):
        result.close()
    msg = (
        f"{name_of(fn)} is a plain function that returned a {type(result).__name__}, whose work would run unguarded: "
        "guard the async function or generator itself, or wrap it in an 'async def' that awaits it"
    )
    raise TypeError(msg)
